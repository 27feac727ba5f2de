"""Guards: where texts are checked before, during and after generation. With streaming, nothing leaves that was not checked.

    stream = GuardedStream((RuleGuard(rules),))
    stream.push("the pass")  -> ""          # held: it may become the password
    stream.push("age is")    -> "the pass"  # it did not; what may still begin something stays held
    stream.end()             -> "age is"
    stream.verdict                           # once it says no, nothing leaves any more

A guard that can say how far a text is settled (`StreamingGuard`) lets it leave piece by piece; any other `Guard` of core/contracts.py sees the
answer whole, and holds it back until then. A guard that fails has refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from bedplate.core.contracts import Guard, Verdict

ALLOWED = Verdict(True)


class Look(NamedTuple):
    """What a guard says of a text that goes on."""

    verdict: Verdict
    settled: int
    """So many characters of it may leave, whatever follows."""


@runtime_checkable
class StreamingGuard(Guard, Protocol):
    """A guard that can decide while a text goes on."""

    @property
    def reach_characters(self) -> int:
        """So far before and behind a place a decision about it can depend on the text."""
        ...

    def look(self, text: str, fresh: int, *, ended: bool) -> Look:
        """Judge a text whose beginning was let go before.

        Args:
            text: at least `reach_characters` of what has left (or all of it), then what is held.
            fresh: where what is held begins.
            ended: nothing follows.
        """
        ...


class Whole:
    """Makes a StreamingGuard of any guard: the text is held until it is whole, then checked."""

    reach_characters = 0

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def check(self, text: str) -> Verdict:
        """The guard's own decision."""
        return self.guard.check(text)

    def look(self, text: str, fresh: int, *, ended: bool) -> Look:
        """Nothing is settled before the end."""
        return Look(self.guard.check(text), len(text)) if ended else Look(ALLOWED, 0)


class Windowed:
    """Makes a StreamingGuard of a guard whose decisions rest on stretches of bounded length: it checks a moving window.

    Args:
        guard: decides about a text; what it refuses, it refuses because of a stretch of at most `reach_characters`.
        reach_characters: the longest such stretch.
    """

    def __init__(self, guard: Guard, reach_characters: int) -> None:
        self.guard = guard
        self.reach_characters = reach_characters

    def check(self, text: str) -> Verdict:
        """The guard's own decision."""
        return self.guard.check(text)

    def look(self, text: str, fresh: int, *, ended: bool) -> Look:
        """Settled is what is too far from the end to be part of a stretch that goes on."""
        return Look(self.guard.check(text), len(text) if ended else max(0, len(text) - self.reach_characters + 1))


class GuardedStream:
    """A text on its way out: what is pushed in comes out checked, complete and in order, or not at all.

    Args:
        guards: all must allow it. None: everything leaves at once.
    """

    def __init__(self, guards: Sequence[Guard]) -> None:
        self._guards = tuple(streaming(guard) for guard in guards)
        self._reach = max((guard.reach_characters for guard in self._guards), default=0)
        self._before = ""
        self._held = ""
        self.verdict = ALLOWED
        """Of the text so far; once it does not allow, it stays so."""

    def push(self, text: str) -> str:
        """What may leave now that this has come."""
        return self._go_on(text, ended=False)

    def end(self) -> str:
        """What may leave now that nothing follows."""
        return self._go_on("", ended=True)

    @property
    def held_characters(self) -> int:
        """Characters that wait."""
        return len(self._held)

    def _go_on(self, text: str, ended: bool) -> str:
        if not self.verdict.allowed or not (text or ended):
            return ""
        self._held += text
        if not self._guards:
            out, self._held = self._held, ""
            return out
        window, fresh = self._before + self._held, len(self._before)
        settled = len(window)
        for guard in self._guards:
            look = looked(guard, window, fresh, ended)
            if not look.verdict.allowed:
                self.verdict, self._held, self._before = look.verdict, "", ""
                return ""
            settled = min(settled, look.settled)
        settled = len(window) if ended else max(settled, fresh)
        out, self._held = window[fresh:settled], window[settled:]
        self._before = window[:settled][-self._reach :] if self._reach else ""
        return out


def streaming(guard: Guard) -> StreamingGuard:
    """The guard itself where it can judge while a text goes on, else one that waits for the whole."""
    return guard if isinstance(guard, StreamingGuard) else Whole(guard)


def looked(guard: StreamingGuard, text: str, fresh: int, ended: bool) -> Look:
    """What it says; a guard that fails has refused."""
    try:
        return guard.look(text, fresh, ended=ended)
    except Exception as error:
        return Look(_failed(guard, error), 0)


def checked(guards: Sequence[Guard], text: str) -> Verdict:
    """The first refusal of a text that is whole, or that all allow it."""
    for guard in guards:
        try:
            verdict = guard.check(text)
        except Exception as error:
            verdict = _failed(guard, error)
        if not verdict.allowed:
            return verdict
    return ALLOWED


def _failed(guard: object, error: Exception) -> Verdict:
    name = type(guard.guard).__name__ if isinstance(guard, (Whole, Windowed)) else type(guard).__name__
    return Verdict(False, f"the guard {name} failed: {type(error).__name__}", f"{name} failed")
