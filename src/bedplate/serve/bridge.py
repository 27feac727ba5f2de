"""The one way from a generator's thread to the event loop. However many pieces a step of the engine makes, the loop is woken once.

    bridge = Bridge(loop, most_pieces=256)
    answer = await bridge.ask([(generator, ask), ...])
    while pieces := await answer.pieces():      # [(number of the choice, Piece), ...], everything that has come since
        ...
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bedplate.core.contracts import Generator
from bedplate.core.errors import BedplateError, ResourceError
from bedplate.core.generation import Ask, Piece, Ticket, Usage

Numbered = tuple[int, Piece]
"""(number among all choices of all questions, a piece of it)."""


@dataclass(frozen=True)
class Question:
    """An ask and who answers it."""

    generator: Generator
    ask: Ask


class Answer:
    """Answers under way to the questions of one request, as one stream of pieces. Lives in the event loop."""

    def __init__(self, questions: Sequence[Question], most_pieces: int) -> None:
        self.usage = Usage(0, 0, 0)
        """Of what has ended so far."""
        self.said = 0
        """Pieces that held something: about as many as tokens, where it is not known yet what the answer cost."""
        self.overflowed = False
        """Whether the reader was so slow that the answer was cancelled."""
        self.on_overflow: Callable[[], object] | None = None
        """Called then: the reader may be stuck in sending."""
        self._kept: deque[Numbered] = deque()
        self._most = most_pieces
        self._open = len(questions)
        self.tickets: list[Ticket] = []
        """Of the questions, in order."""
        self._waiting: asyncio.Future[None] | None = None
        self._cancelled = False

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self._open == 0

    async def pieces(self) -> list[Numbered]:
        """All that has come since the last call, waiting for something; empty at the end.

        Raises:
            BedplateError: an answer failed; the others are cancelled.
            ResourceError: they came faster than they were read, and too many would have had to be kept.
        """
        while not self._kept and self._open and not self.overflowed:
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        if self.overflowed:
            raise ResourceError("the answer was not read as fast as it came", f"at most {self._most} pieces are kept")
        found = list(self._kept)
        self._kept.clear()
        for _, piece in found:
            if piece.error is not None:
                self.cancel()
                raise piece.error
        return found

    def cancel(self) -> None:
        """Stop all of it. Harmless where it has ended."""
        self._cancelled = True
        for ticket in self.tickets:
            ticket.cancel()

    def _started(self, ticket: Ticket) -> None:
        self.tickets.append(ticket)
        if self._cancelled:
            ticket.cancel()

    def _put(self, number: int, piece: Piece) -> None:
        if piece.last:
            self._open -= 1
            if piece.usage is not None:
                self.usage = Usage(*(a + b for a, b in zip(self.usage, piece.usage)))
        if self._cancelled and not piece.last:
            return
        self.said += bool(piece.text or piece.tool_calls or piece.logprobs)
        self._kept.append((number, piece))
        if len(self._kept) > self._most and not self.overflowed:
            self.overflowed = True
            self._kept.clear()
            self.cancel()
            if self.on_overflow is not None:
                self.on_overflow()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Bridge:
    """Carries pieces from any thread to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most_pieces: int = 256) -> None:
        """
        Args:
            loop: the one in which answers are read.
            most_pieces: most that is kept of an answer for a reader who is slow; beyond it the answer is cancelled.
        """
        self.wakes = 0
        """Times that the loop was woken."""
        self.carried = 0
        """Pieces that were carried."""
        self._loop = loop
        self._most = most_pieces
        self._carried: deque[tuple[Answer, int, Piece]] = deque()
        self._woken = False
        self._lock = threading.Lock()

    async def ask(self, questions: Sequence[Question]) -> Answer:
        """Begin answers, off the loop, as reading long prompts takes a while. If one is refused, the others are cancelled.

        Raises:
            ConfigError: a question cannot be answered.
            ResourceError: too many wait already.
        """
        answer = Answer(questions, self._most)

        def submit() -> None:
            first = 0
            for question in questions:
                answer._started(question.generator.submit(question.ask, self._deliverer(answer, first)))
                first += question.ask.sampling.n

        try:
            await self._loop.run_in_executor(None, submit)
        except (BedplateError, asyncio.CancelledError):
            answer.cancel()
            raise
        return answer

    def _deliverer(self, answer: Answer, first: int) -> _Deliverer:
        return _Deliverer(self, answer, first)

    def _carry(self, answer: Answer, number: int, piece: Piece) -> None:
        with self._lock:
            self._carried.append((answer, number, piece))
            if self._woken:
                return
            self._woken = True
        try:
            self._loop.call_soon_threadsafe(self._arrive)
        except RuntimeError:  # the loop has closed: nobody reads any more
            answer.cancel()

    def _arrive(self) -> None:
        with self._lock:
            arrived, self._carried = self._carried, deque()
            self._woken = False
        self.wakes += 1
        self.carried += len(arrived)
        for answer, number, piece in arrived:
            answer._put(number, piece)


class _Deliverer:
    """Takes one question's pieces in the generator's thread."""

    __slots__ = ("_answer", "_bridge", "_first")

    def __init__(self, bridge: Bridge, answer: Answer, first: int) -> None:
        self._bridge, self._answer, self._first = bridge, answer, first

    def __call__(self, piece: Piece) -> None:
        self._bridge._carry(self._answer, self._first + piece.choice, piece)
