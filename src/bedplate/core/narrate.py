"""Events in words: one line an event, and the pace of a job (step, loss, speed, time left) computed from its events alone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from bedplate.core.units import format_count, format_seconds

WINDOW = 50
"""Events over which the time of a step is averaged."""


def number(value: Any) -> float:
    """A field of an event as a float; NaN where it is missing or not a number ("nan" and "inf" are written as strings)."""
    if isinstance(value, bool) or value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


class Pace:
    """How far a job is and how long it will take. Feed it `step` and `progress` events in order."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._event: dict[str, Any] = {}
        self._label = ""

    def after(self, event: dict[str, Any]) -> Pace:
        """This pace with one more event taken in. A new label, or a step back, starts afresh."""
        done, label = self._progress(event)[0], str(event.get("label", event["event"]))
        if label != self._label or (self._seen and done < self._seen[-1][1]):
            self._seen.clear()
        self._event, self._label = event, label
        self._seen.append((number(event.get("t")), done))
        return self

    @property
    def left_s(self) -> float:
        """Seconds left, from the events seen; NaN while unknown."""
        done, total = self._progress(self._event)
        if len(self._seen) < 2 or not math.isfinite(total):
            return math.nan
        (first_t, first), (last_t, last) = self._seen[0], self._seen[-1]
        return (last_t - first_t) / (last - first) * max(total - done, 0.0) if last > first else math.nan

    @property
    def complete(self) -> bool:
        """Whether the last event is the last of its job."""
        done, total = self._progress(self._event)
        return done >= total

    def line(self) -> str:
        """One line: how far, loss, speed, time left; what is unknown is left out."""
        if not self._event:
            return ""
        done, total = self._progress(self._event)
        parts = [self._position(done, total)]
        if not math.isnan(loss := number(self._event.get("loss"))) or "loss" in self._event:
            parts.append(f"loss {loss:.3f}")
        if math.isfinite(speed := number(self._event.get("units_per_s"))):
            parts.append(f"{format_count(speed)} positions/s")
        if math.isfinite(left := self.left_s) and not self.complete:
            parts.append(f"{format_seconds(left)} left")
        return " | ".join(parts)

    def _position(self, done: float, total: float) -> str:
        of = f"/{total:,.0f}" if math.isfinite(total) else ""
        if self._event.get("event") == "step":
            return f"step {done:,.0f}{of}"
        share = f" ({done / total:.0%})" if math.isfinite(total) and total > 0 else ""
        return f"{self._event.get('label') or 'progress'}: {done:,.0f}{of} {self._event.get('unit', '')}".rstrip() + share

    @staticmethod
    def _progress(event: dict[str, Any]) -> tuple[float, float]:
        names = ("step", "steps") if event.get("event") == "step" else ("done", "total")
        return number(event.get(names[0])), number(event.get(names[1]))


def describe(event: dict[str, Any]) -> str:
    """One event as a line for people; "" for an event that has no line of its own."""
    tell = _TELL.get(str(event.get("event")))
    return tell(event) if tell else ""


def _at(event: dict[str, Any]) -> str:
    step = number(event.get("step"))
    return f"step {step:,.0f}: " if math.isfinite(step) else ""


def _seconds(event: dict[str, Any]) -> str:
    seconds = number(event.get("seconds"))
    return f" in {format_seconds(seconds)}" if math.isfinite(seconds) else ""


def _evaluated(event: dict[str, Any]) -> str:
    shown = {key.removeprefix("loss_").removeprefix("score_").replace("_", " "): v for key, v in event.items() if key.startswith(("loss", "bits_", "score_"))}
    losses = [f"{name} {number(value):.3f}" + _between(event, name) for name, value in shown.items()]
    return (f"{event['task']}: " if "task" in event else f"{_at(event)}held-out ") + ", ".join(losses)


def _between(event: dict[str, Any], name: str) -> str:
    low, high = (number(event.get(f"{end}_{name.replace(' ', '_')}")) for end in ("low", "high"))
    return f" ({low:.3f} to {high:.3f})" if math.isfinite(low) else ""


def _counted(event: dict[str, Any]) -> str:
    counts = event.get("counts")
    pairs = counts.items() if isinstance(counts, dict) else ()
    words = [f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in pairs]
    return f"{event.get('what', 'counted')}: " + ", ".join(words)


def _with_hint(text: str, event: dict[str, Any]) -> str:
    return f"{text}\nhint: {event['hint']}" if event.get("hint") else text


def _sample(event: dict[str, Any]) -> str:
    made = event.get("path") or " ".join(str(event.get("text", "")).split())
    return f"{_at(event)}made {event.get('sense', 'something')}: {made if len(made) <= 100 else made[:99] + '…'}"


_TELL: dict[str, Callable[[dict[str, Any]], str]] = {
    "run_started": lambda e: f"{e.get('kind', 'run')} started",
    "run_resumed": lambda e: f"resuming at step {number(e.get('step')):,.0f}; {number(e.get('lost_s', 0)):.0f} s of work lost",
    "run_finished": lambda e: f"finished{_seconds(e)}",
    "run_failed": lambda e: _with_hint(f"failed: {e.get('error', '')}", e),
    "run_stopped": lambda e: f"{_at(e)}stopped: {e.get('reason', '')}",
    "stage_started": lambda e: f"stage {e.get('stage', '')}",
    "stage_finished": lambda e: f"stage {e.get('stage', '')} done{_seconds(e)}",
    "evaluated": _evaluated,
    "checkpoint_saved": lambda e: f"{_at(e)}checkpoint saved{_seconds(e)}",
    "health": lambda e: f"warning: {_at(e)}{e.get('problem', '')} {e.get('detail', '')}".rstrip() + f"; action: {e.get('action', 'none')}",
    "sample": _sample,
    "counted": _counted,
    "chosen": lambda e: f"chose {e.get('what', '')} = {e.get('value', '')}" + (f" ({e['reason']})" if e.get("reason") else ""),
    "warning": lambda e: _with_hint(f"warning: {e.get('message', '')}", e),
}
