"""Guarded: any Generator, with guards before, during and after it. It is a Generator itself.

    generator = Guarded(router, Guards(prompt=(RuleGuard(...),), answer=(RuleGuard(...),)))

A refused prompt raises PolicyError and nothing is generated. A refused answer ends with finish "guard"; what was held back of it is gone, and its
generator is told to stop. Token probabilities leave with their text, never before it; tool calls leave whole and checked.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

from bedplate.core.contracts import Generator, Guard, Verdict
from bedplate.core.errors import BedplateError, PolicyError
from bedplate.core.generation import Ask, Deliver, Load, Piece, Ticket, TokenLogprob, ToolCall, WorkerCard
from bedplate.core.prediction import Vector, texts_in
from bedplate.serve.guards import ALLOWED, GuardedStream, StreamingGuard, Windowed, checked


@dataclass(frozen=True)
class Guards:
    """Who checks what."""

    prompt: tuple[Guard, ...] = ()
    """Before: every text of the question."""
    answer: tuple[Guard, ...] = ()
    """During, and after: every answer and every tool call. A guard without `look` sees the answer whole."""

    def prompt_verdict(self, ask: Ask) -> Verdict:
        """Of a question, text by text and as a whole. Token ids cannot be read, and are refused where there is a guard."""
        if not self.prompt:
            return ALLOWED
        if isinstance(ask.prompt, tuple):
            return Verdict(False, "a prompt of token ids cannot be checked; send text", "token ids")
        texts = texts_of(ask)
        for text in (*texts, "\n".join(texts)) if len(texts) > 1 else texts:
            verdict = checked(self.prompt, text)
            if not verdict.allowed:
                return verdict
        return ALLOWED


def texts_of(ask: Ask) -> list[str]:
    """Every text of a question: prompt, turns, tool calls, tools, what the answer must look like and where it must stop."""
    texts = [ask.prompt] if isinstance(ask.prompt, str) else []
    for turn in ask.turns:
        texts += [turn.text, *(text for call in turn.tool_calls for text in texts_of_call(call)), turn.tool_call_id]
        texts += [turn.role] if turn.role not in ROLES else []
    for tool in ask.tools:
        texts += [tool.name, tool.description, *_strings(tool.parameters)]
    if ask.form is not None:
        texts += [*_strings(ask.form.schema), ask.form.regex or "", *ask.form.choice]
    return [text for text in (*texts, *ask.sampling.stop) if text]


def texts_of_call(call: ToolCall) -> list[str]:
    """A tool call as it is written, and the texts in its arguments as whoever reads them has them: a letter can be written as an escape."""
    try:
        read = json.loads(call.arguments)
    except (ValueError, RecursionError):
        read = None
    return [f"{call.name} {call.arguments}", *_strings(read)]


def _strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value, names included."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            yield from map(str, one)
            waiting += one.values()
        elif isinstance(one, (list, tuple)):
            waiting += one


ROLES = ("system", "developer", "user", "assistant", "tool")
"""Words of the format, which nobody can choose."""


class Guarded:
    """A Generator behind guards.

    Args:
        generator: what answers.
        guards: who checks.
        pool: where guards run that take longer than a token may (a model of their own); None: in the generator's thread, right for rules.
    """

    def __init__(self, generator: Generator, guards: Guards, pool: Executor | None = None) -> None:
        self.generator, self.guards = generator, guards
        self._pool = pool

    def submit(self, ask: Ask, deliver: Deliver) -> GuardedTicket:
        """Check the question, then begin the answer.

        Raises:
            PolicyError: the question was refused; with a pool it comes as the answer's error instead.
        """
        ticket = GuardedTicket()
        answer = _Answer(self.guards.answer, ask.sampling.n, deliver, ticket)
        if self._pool is None:
            self._begin(ask, answer, ticket, _at_once)
        else:
            in_turn = _InOrder(self._pool, answer.broke)
            in_turn(lambda: self._begin(ask, answer, ticket, in_turn))
        return ticket

    def workers(self) -> Sequence[WorkerCard]:
        """The generator's."""
        return self.generator.workers()

    def count(self, ask: Ask) -> int:
        """The generator's."""
        return self.generator.count(ask)

    def load(self) -> Load:
        """The generator's."""
        return self.generator.load()

    def close(self) -> None:
        """The generator's; the pool belongs to whoever made it."""
        self.generator.close()

    def _begin(self, ask: Ask, answer: _Answer, ticket: GuardedTicket, in_turn: Callable[[Callable[[], None]], None]) -> None:
        verdict = self.guards.prompt_verdict(ask)
        if not verdict.allowed:
            ticket.verdict = verdict
            refused = PolicyError(verdict.reason or "a guard refused the question", "ask without it")
            refused.rule = verdict.rule
            raise refused
        ticket.begun(self.generator.submit(ask, lambda piece: in_turn(lambda: answer.take(piece))))


class GuardedTicket:
    """An answer under way behind guards."""

    def __init__(self) -> None:
        self.verdict = ALLOWED
        """What the guards said so far."""
        self.inner: Ticket | None = None
        """Of the generator behind the guards."""
        self._turn = threading.Lock()
        self._stopped = False

    def cancel(self) -> None:
        """Stop; the last piece comes."""
        with self._turn:
            self._stopped = True
            inner = self.inner
        if inner is not None:
            inner.cancel()

    def begun(self, inner: Ticket) -> None:
        """The generator has taken it."""
        with self._turn:
            self.inner, stopped = inner, self._stopped
        if stopped:
            inner.cancel()


@dataclass
class _Choice:
    stream: GuardedStream
    numbers: GuardedStream
    """What the tokens spell whose probabilities are told: not always the text, and whatever it is, it leaves."""
    logprobs: deque[tuple[int, TokenLogprob]] = field(default_factory=deque)
    """With the characters of text that had come with each."""
    came: int = 0
    """Characters of text so far ..."""
    left: int = 0
    """... and those that have left."""
    released: int = 0
    """Characters that have left, less those of the tokens whose probabilities have."""
    spelled: int = 0
    """The same of what tokens spell."""
    before: str = ""
    """The last that was spelled."""
    over: bool = False


class _Answer:
    """The pieces of one answer, one after the other."""

    def __init__(self, guards: tuple[Guard, ...], n: int, deliver: Deliver, ticket: GuardedTicket) -> None:
        self._guards, self._deliver, self._ticket = guards, deliver, ticket
        # What could have been said is checked word by word, or by guards that take their time not told at all.
        self._quick = all(isinstance(guard, StreamingGuard) and not isinstance(guard, Windowed) for guard in guards)
        self._reach = max((guard.reach_characters for guard in guards if isinstance(guard, StreamingGuard)), default=0)
        self._choices = [_Choice(GuardedStream(guards), GuardedStream(guards)) for _ in range(n)]
        self._broken = False

    def take(self, piece: Piece) -> None:
        """Pass on what may leave of it."""
        if self._broken:
            return
        unchecked = isinstance(piece.prediction, Vector) or piece.part is not None  # who passes a thing on says that it is
        if not self._guards or piece.error is not None or unchecked:
            self._deliver(piece)
            return
        choice = self._choices[piece.choice]
        if choice.over:
            if piece.usage is not None:
                self._deliver(Piece(choice=piece.choice, usage=piece.usage))
            return
        out = choice.stream.push(piece.text)
        verdict = choice.stream.verdict
        for call in piece.tool_calls:
            verdict = verdict if not verdict.allowed else self._call(call)
        if verdict.allowed and piece.prediction is not None:
            verdict = self._all(texts_in(piece.prediction))
        if verdict.allowed and piece.finish is not None:
            out += choice.stream.end()
            verdict = choice.stream.verdict
        if not verdict.allowed:
            self._refuse(piece, choice, verdict)
            return
        choice.came += len(piece.text)
        for one in piece.logprobs:
            choice.logprobs.append((choice.came, one))
            choice.spelled += len(choice.numbers.push(one.said.text))
        passed = replace(piece, text=out, logprobs=self._told(choice, len(out), piece.finish is not None))
        choice.over = piece.finish is not None
        if passed.text or passed.tool_calls or passed.logprobs or passed.prediction is not None or passed.finish is not None or passed.usage is not None:
            self._deliver(passed)

    def broke(self, error: Exception) -> None:
        """The question was refused, or something is wrong with us: the answer ends."""
        if not self._broken:
            self._broken = True
            self._ticket.cancel()
            foreseen = error if isinstance(error, BedplateError) else BedplateError(f"the answer could not be checked: {type(error).__name__}")
            self._deliver(Piece(finish="error", error=foreseen))

    def _refuse(self, piece: Piece, choice: _Choice, verdict: Verdict) -> None:
        choice.over = True
        choice.logprobs.clear()
        self._ticket.verdict = verdict
        self._deliver(Piece(choice=piece.choice, finish="guard", usage=piece.usage))
        if piece.usage is None and all(one.over for one in self._choices):
            self._ticket.cancel()

    def _call(self, call: ToolCall) -> Verdict:
        return self._all(texts_of_call(call))

    def _all(self, texts: Iterable[str]) -> Verdict:
        verdicts = (checked(self._guards, text) for text in texts)
        return next((verdict for verdict in verdicts if not verdict.allowed), ALLOWED)

    def _told(self, choice: _Choice, characters: int, ended: bool) -> tuple[TokenLogprob, ...]:
        choice.released += characters
        choice.left += characters
        if ended:
            choice.numbers.end()
        if not choice.numbers.verdict.allowed:  # they spell what must not pass, though the text does not: it goes without them
            choice.logprobs.clear()
        told = []
        while choice.logprobs:
            came, one = choice.logprobs[0]
            length = len(one.said.text)
            if not ended and (came > choice.left or length > choice.released or length > choice.spelled):
                break
            choice.logprobs.popleft()
            choice.released -= length
            choice.spelled -= length
            # Behind what was said: a word's last token can be forbidden, and would be read here.
            top = tuple(other for other in one.top if checked(self._guards, choice.before + other.text).allowed) if self._quick else ()
            choice.before = (choice.before + one.said.text)[-self._reach :] if self._reach else ""
            told.append(replace(one, top=top))
        return tuple(told)


class _InOrder:
    """Runs what it is given one after the other, in a pool."""

    def __init__(self, pool: Executor, broke: Callable[[Exception], None]) -> None:
        self._pool, self._broke = pool, broke
        self._turn = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._running = False

    def __call__(self, work: Callable[[], None]) -> None:
        with self._turn:
            self._waiting.append(work)
            if self._running:
                return
            self._running = True
        self._pool.submit(self._work)

    def _work(self) -> None:
        while True:
            with self._turn:
                if not self._waiting:
                    self._running = False
                    return
                work = self._waiting.popleft()
            try:
                work()
            except Exception as error:  # nobody would hear of it in a pool, and whoever asked would wait for ever
                self._broke(error)


def _at_once(work: Callable[[], None]) -> None:
    work()
