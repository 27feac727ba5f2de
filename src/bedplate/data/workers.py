"""Worker processes that give their results in order, a few ahead and no more; an input that kills its process is found and left out."""

from __future__ import annotations

import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from bedplate.core.errors import StateError

Item = TypeVar("Item")
Result = TypeVar("Result")

GUARD = 'put your code in a file under `if __name__ == "__main__":`, or set workers = 0'


class Workers(Generic[Item, Result]):
    """A pool of spawned processes. Use as a context manager; leaving it early (Ctrl-C, an error) does not wait for work in flight.

    Args:
        count: processes.
        start: called once in each, with `arguments`.
        arguments: what each process needs.
        work: turns a list of items into a result, in a worker.
        died: the result for an item whose process died twice on it.
    Raises:
        StateError: the running program is none that a new process could import.
    """

    def __init__(
        self, count: int, start: Callable[..., None], arguments: tuple[Any, ...], work: Callable[[list[Item]], Result], died: Callable[[Item], Result]
    ) -> None:
        _check_that_processes_can_start()
        self._count, self._start, self._arguments, self._work, self._died = count, start, arguments, work, died
        self._pool = self._new_pool(count)

    def in_order(self, chunks: Iterable[list[Item]]) -> Iterator[list[Result]]:
        """The results of each chunk, in order: one, or one an item where the chunk had to be taken apart."""
        waiting: deque[tuple[list[Item], Future[Result]]] = deque()
        chunks = iter(chunks)
        while True:
            while len(waiting) < 2 * self._count + 1 and (chunk := next(chunks, None)) is not None:
                waiting.append((chunk, self._submit(chunk)))
            if not waiting:
                return
            chunk, future = waiting.popleft()
            try:
                yield [future.result()]
            except BrokenProcessPool:
                results = [self._alone(item) for item in chunk]
                self._renew(self._count)
                waiting = deque((later, self._submit(later)) for later, _ in waiting)
                yield results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop(wait=error is None)

    def _submit(self, chunk: list[Item]) -> Future[Result]:
        try:
            return self._pool.submit(self._work, chunk)
        except BrokenProcessPool as error:  # died since the last result: the future tells it in its turn
            broken: Future[Result] = Future()
            broken.set_exception(error)
            return broken

    def _alone(self, item: Item) -> Result:
        """The result of one item in a process of its own."""
        self._renew(1)
        try:
            return self._pool.submit(self._work, [item]).result()
        except BrokenProcessPool:
            self._check_that_any_lives()
            return self._died(item)

    def _check_that_any_lives(self) -> None:
        """Blame an item for a death only where a process that has nothing to do lives."""
        self._renew(1)
        try:
            self._pool.submit(int).result()
        except BrokenProcessPool as error:
            raise StateError("worker processes die before they begin; their own words stand above", f"if they import your script: {GUARD}") from error

    def _renew(self, count: int) -> None:
        self._stop(wait=False)
        self._pool = self._new_pool(count)

    def _new_pool(self, count: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(count, mp_context=context, initializer=self._start, initargs=self._arguments)

    def _stop(self, wait: bool) -> None:
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=wait, cancel_futures=True)
        if not wait:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()


def _check_that_processes_can_start() -> None:
    """A spawned process imports the running program again, so it must be a file."""
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    if program is not None and not Path(program).exists():
        raise StateError(f"worker processes cannot import this program: it comes from {program}", GUARD)
