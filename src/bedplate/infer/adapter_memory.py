"""Adapters as a runner computes with them: read and packed on a thread of their own when they are first asked for, so that nobody's next token
waits for a disk; the longest unused forgotten again where they take too much memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from bedplate.infer.adapters import Adapters, Registered
from bedplate.infer.step import Packed, Runner

AHEAD = 2
"""Adapters that are read at once at most: the one that is first to be used, and the next."""


class AdapterMemory:
    """Which adapters the runner holds. The engine's thread only."""

    def __init__(self, adapters: Adapters, runner: Runner, most_bytes: int, wake: Callable[[], None]) -> None:
        """Nothing is held.

        Args:
            adapters: reads them.
            runner: packs them, and computes with them.
            most_bytes: memory for them; those that are in use are always kept.
            wake: called from the reading thread, when one is read or cannot be.
        """
        self._adapters, self._runner, self._most_bytes, self._wake = adapters, runner, most_bytes, wake
        self._hot: OrderedDict[str, int] = OrderedDict()
        """Digest -> bytes, the longest unused first."""
        self._reading: dict[str, Future[Packed]] = {}
        self._thread = ThreadPoolExecutor(1, "bedplate adapters")

    @property
    def hot(self) -> Mapping[str, int]:
        """Digests of those that the runner holds -> bytes."""
        return self._hot

    @property
    def has_read(self) -> bool:
        """Whether there is something to link."""
        return any(one.done() for one in self._reading.values())

    def ready(self, one: Registered) -> bool:
        """Whether the runner holds it; where not, it is being read, or will be when it is asked for again."""
        if one.digest in self._hot:
            self._hot.move_to_end(one.digest)
            return True
        if one.digest not in self._reading and len(self._reading) < AHEAD:
            self._reading[one.digest] = read = self._thread.submit(self._read, one)
            read.add_done_callback(lambda _: self._wake())
        return False

    def link(self, needed: Collection[str]) -> Mapping[str, Exception]:
        """Let the runner compute with what has been read.

        Args:
            needed: digests that must be held on.
        Returns:
            Digests of adapters that could not be read, and why.
        """
        lost: dict[str, Exception] = {}
        for digest in [digest for digest, one in self._reading.items() if one.done()]:
            try:
                packed = self._reading.pop(digest).result()
                self._runner.put(digest, packed)
            except Exception as error:
                lost[digest] = error
                continue
            self._hot[digest] = packed.bytes
            self._forget({digest, *needed})
        return lost

    def close(self) -> None:
        """End the thread, once it has read what it is reading."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, one: Registered) -> Packed:
        return self._runner.pack(self._adapters.read(one))

    def _forget(self, needed: Collection[str]) -> None:
        """Those without a name, and the longest unused while they are too many."""
        known = {one.digest for one in self._adapters.registered.values()}
        for digest in [digest for digest in self._hot if digest not in needed]:
            if digest not in known or sum(self._hot.values()) > self._most_bytes:
                del self._hot[digest]
                self._runner.drop(digest)
