"""An answer under way in an engine that is not ours: its choices, how it ends, and what leaves of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bedplate.core.errors import BedplateError
from bedplate.core.generation import Ask, Deliver, Finish, Piece, TokenLogprob, ToolCall, Usage
from bedplate.infer import tools


class Answering:
    """The ticket of one question, and the only way by which its pieces leave: in order, one end a choice, nothing after the last.

    Args:
        ask: the question.
        deliver: takes the pieces.
        listens: whether calls of tools are read from the text; else the engine tells them.
        wake: called once the answer is cancelled.
    """

    def __init__(self, ask: Ask, deliver: Deliver, listens: bool, wake: Callable[[], None] = lambda: None) -> None:
        self.ask = ask
        self._deliver, self._wake = deliver, wake
        self._deadline = None if ask.deadline_s is None else time.monotonic() + ask.deadline_s
        self._cancelled = False
        self._lock = threading.RLock()
        reads = listens and ask.tools and ask.tool_choice != "none"
        self._calls = [tools.Calls(ask.tools) if reads else None for _ in range(ask.sampling.n)]
        self._called = [False] * ask.sampling.n
        self._open = set(range(ask.sampling.n))
        self._usage = Usage(0, 0, 0)

    def cancel(self) -> None:
        """Stop; harmless where it has ended."""
        self._cancelled = True
        self._wake()

    @property
    def over(self) -> Finish | None:
        """Why nobody waits any more; None: somebody does."""
        if self._cancelled:
            return "cancelled"
        return "deadline" if self._deadline is not None and time.monotonic() >= self._deadline else None

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline; None: there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def ended(self) -> bool:
        """Whether the last piece has left."""
        return not self._open

    def say(self, choice: int, text: str = "", logprobs: Sequence[TokenLogprob] = (), calls: Sequence[ToolCall] = ()) -> None:
        """A stretch of a choice."""
        with self._lock:
            if choice not in self._open:
                return
            if (reader := self._calls[choice]) is not None:
                text, calls = reader.push(text)
            self._called[choice] |= bool(calls)
            if text or logprobs or calls:
                self._deliver(Piece(choice, text, tuple(calls), tuple(logprobs)))

    def end(self, choice: int, finish: Finish, usage: Usage) -> None:
        """A choice has ended, at a cost; the prompt of a question counts once."""
        with self._lock:
            if choice not in self._open:
                return
            self._open.discard(choice)
            before = self._usage
            said = Usage(
                max(before.prompt_tokens, usage.prompt_tokens),
                max(before.cached_tokens, usage.cached_tokens),
                before.completion_tokens + usage.completion_tokens,
            )
            self._usage = said
            reader = self._calls[choice]
            heard = reader.end() if reader is not None else tools.Heard()
            self._called[choice] |= bool(heard.calls)
            if finish == "stop" and self._called[choice]:
                finish = "tool_calls"
            self._deliver(Piece(choice, heard.text, heard.calls, (), finish, None if self._open else said))

    def vector(self, piece: Piece) -> None:
        """The one piece that answers a question for a vector."""
        with self._lock:
            if self._open:
                self._open.clear()
                self._deliver(piece)

    def end_all(self, finish: Finish, usage: Usage) -> None:
        """Every choice that is still open has ended."""
        with self._lock:
            for choice in sorted(self._open):
                self.end(choice, finish, usage)

    def fail(self, error: BedplateError) -> None:
        """It came to nothing."""
        with self._lock:
            if self._open:
                self._open.clear()
                self._deliver(Piece(finish="error", error=error))


def required(ask: Ask) -> Ask:
    """A question with the form that its choice of tools asks for."""
    form = tools.form(ask.tools, ask.tool_choice)
    return ask if form is None else replace(ask, form=form)
