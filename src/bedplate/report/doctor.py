"""Doctor: from a run's events to its probable troubles, each with a confidence, the evidence, and the change to make.

Every check is a pure function of a RunLog (and, where a running job is judged, of the time). CHECKS is the whole table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bedplate.core.narrate import number
from bedplate.core.units import format_bytes, format_seconds
from bedplate.report.log import Column, RunLog, smooth

LOADER_SHARE = 0.2
"""A run that waits for data longer than this share of its time is loader-bound."""
NEAR_LIMIT = 0.9
"""Share of the memory from which on a job is in danger."""
FALL_AT_EPOCH = 5.0
"""Robust standard deviations by which a loss falls at the start of an epoch when the model has learned its data by heart."""


@dataclass(frozen=True)
class Diagnosis:
    """A probable trouble.

    confidence: 0 to 1. evidence: facts from the log, with steps and numbers. change: what to do, with the value to use.
    """

    name: str
    confidence: float
    evidence: tuple[str, ...]
    change: str


def diagnose(log: RunLog, now: float | None = None) -> list[Diagnosis]:
    """Everything that looks wrong with a run, the surest first; empty for a healthy one.

    Args:
        log: the run.
        now: seconds since the epoch, to judge whether a running job hangs; None leaves that out.
    """
    found = [diagnosis for check in CHECKS if (diagnosis := check(log)) is not None]
    if now is not None and (silent := hanging(log, now)) is not None:
        found.append(silent)
    return sorted(found, key=lambda diagnosis: -diagnosis.confidence)


def failed(log: RunLog) -> Diagnosis | None:
    """The job ended with an error, which says itself what to do."""
    if log.state != "failed":
        return None
    event = next(reversed(log.named("run_failed")), {})
    hint = str(event.get("hint") or "see trace.txt in the run folder")
    return Diagnosis("failed", 1.0, (f"error: {event.get('error', 'unknown')}",), hint)


def died(log: RunLog) -> Diagnosis | None:
    """The process ended without a last word: killed from outside, out of memory, or the power went."""
    if log.state != "interrupted" or not log.events:
        return None
    last, saved = log.events[-1], log.named("checkpoint_saved")
    at = f" at step {number(log.steps[-1]['step']):,.0f}" if log.steps else ""
    evidence = [f"the last event is {last['event']!r}{at}; nobody holds the run's lock"]
    use, limit = _memory(log)
    if limit and use.size and use.max() > NEAR_LIMIT * limit:
        evidence.append(f"memory was at {format_bytes(use.max())} of {format_bytes(limit)}: the system probably ended it")
        change = f"halve the rows in memory: --set {_fewer_rows(log)}, then run it again"
        return Diagnosis("died without a word", 0.95, tuple(evidence), change)
    where = f"from step {number(saved[-1].get('step')):,.0f}" if saved else "from the start, since no checkpoint was saved yet"
    return Diagnosis("died without a word", 0.95, tuple(evidence), f"run the same command again: it continues {where}")


def diverged(log: RunLog) -> Diagnosis | None:
    """The loss left where it had been and did not come back, or is no number any more."""
    loss, step = log.column("loss"), log.column("step")
    nan = [e for e in log.named("health") if e.get("problem") == "nan"]
    tail = loss[-min(len(loss), 5) :]
    if len(tail) and not np.isfinite(tail).any():
        first = int(step[np.flatnonzero(np.isfinite(loss))[-1]]) if np.isfinite(loss).any() else 0
        evidence = [f"the loss is no finite number after step {first:,}", *_health_lines(nan)]
        return Diagnosis("diverged", 0.99, tuple(evidence), _gentler(log))
    if len(loss) < 40:
        return None
    even = smooth(loss, max(10.0, len(loss) / 50))
    best = int(np.nanargmin(even))
    after = len(even) - best
    rise = float(even[-1] - even[best])
    noise = _noise(loss)
    if after < max(20, len(loss) // 50) or rise < max(0.15 * abs(even[best]), 6 * noise):
        return None
    norm = log.column("gradient_norm")
    evidence = [f"the smoothed loss was {even[best]:.3f} at step {step[best]:,.0f} and is {even[-1]:.3f} at step {step[-1]:,.0f}"]
    if np.isfinite(norm).any():
        evidence.append(f"gradient norm: median {np.nanmedian(norm[: best + 1]):.3g} until then, {np.nanmedian(norm[best:]):.3g} since")
    return Diagnosis("diverged", 0.9, (*evidence, *_health_lines(nan)), _gentler(log))


def spike(log: RunLog) -> Diagnosis | None:
    """Single steps far above their neighbours, after which the loss came back."""
    loss, step = log.column("loss"), log.column("step")
    told = [e for e in log.named("health") if e.get("problem") == "spike"]
    seen = [(int(step[i]), float(loss[i]), float(usual)) for i, usual in _spikes(loss)]
    if not told and not seen:
        return None
    evidence = [f"step {at:,}: loss {value:.3f} where {usual:.3f} was usual" for at, value, usual in seen[:4]]
    at = seen[0][0] if seen else number(told[0].get("step"))
    change = f"look at what it read: `bedplate data trace {log.folder} --step {at:.0f}`; if the data is sound, {_gentler(log)}"
    return Diagnosis("spike", 0.9 if told and seen else 0.75, (*evidence, *_health_lines(told)), change)


def stalled(log: RunLog) -> Diagnosis | None:
    """The loss does not fall: from the start, or for half of the run although the learning rate is still high."""
    loss, step, rate = log.column("loss"), log.column("step"), log.column("lr")
    told = [e for e in log.named("health") if e.get("problem") == "stall"]
    evidence = tuple(_health_lines(told))
    if len(loss) >= 60 and np.isfinite(loss).mean() > 0.9:
        start, end = _level(loss[: max(3, len(loss) // 50)]), _level(loss[-max(10, len(loss) // 10) :])
        noise = _noise(loss)
        if end > 0.97 * start and end > start - 4 * noise and diverged(log) is None:
            lines = (f"loss {start:.3f} in the first steps, {end:.3f} in the last", *evidence)
            return Diagnosis("stalled", 0.95, lines, _bolder(log))
        half = loss[len(loss) // 2 :]
        early, late = half[: len(half) // 2], half[len(half) // 2 :]
        error = noise * np.sqrt(2 / len(late)) * 1.25
        fell = _level(early) - _level(late)
        high = not np.isfinite(rate).any() or _level(rate[-len(late) :]) > 0.5 * np.nanmax(rate)
        if len(half) >= 100 and high and fell < max(2 * error, 0.002 * abs(_level(late))) and diverged(log) is None:
            lines = (f"loss {_level(early):.3f} before step {step[-len(late)]:,.0f} and {_level(late):.3f} since", *evidence)
            change = "let the learning rate decay now, or take a larger model: --set model.size=<next larger>"
            return Diagnosis("stalled", 0.6, lines, change)
    if told:
        return Diagnosis("stalled", 0.7, evidence, _bolder(log))
    return None


def hanging(log: RunLog, now: float) -> Diagnosis | None:
    """A process that is alive but has said nothing for far longer than a step takes."""
    if log.state != "running" or not log.events:
        return None
    silence = now - number(log.events[-1].get("t"))
    usual = float(np.nanmedian(log.column("step_s"))) if np.isfinite(log.column("step_s")).any() else 60.0
    if not silence > max(120.0, 30 * usual):
        return None
    evidence = (f"the last event is {format_seconds(silence)} old; a step takes {format_seconds(usual)}",)
    return Diagnosis("stalled", 0.8, evidence, "stop the process and run the same command again: it continues from the last checkpoint")


def loader_bound(log: RunLog) -> Diagnosis | None:
    """The model waits for data."""
    wait, whole = log.column("loader_s"), log.column("step_s")
    good = np.isfinite(wait) & np.isfinite(whole)
    good[: min(3, len(good) // 2)] = False  # the first steps fill caches
    if good.sum() < 5:
        return None
    share = float(wait[good].sum() / max(whole[good].sum(), 1e-9))
    if share < LOADER_SHARE:
        return None
    gain = 1 / max(1 - share, 0.05)
    medians = f"{np.median(wait[good]):.3g} of {np.median(whole[good]):.3g} s a step"
    evidence = (f"{share:.0%} of the time of {good.sum():,} steps went into waiting for data: {medians}",)
    workers = log.setting("loader.workers")
    more = f"--set loader.workers={max(2, 2 * workers)}" if isinstance(workers, int) else "give the loader more workers or a faster disk"
    return Diagnosis("loader-bound", min(0.99, 0.5 + share), evidence, f"{more}; steps could be up to {gain:.1f}x as fast")


def duplicated(log: RunLog) -> Diagnosis | None:
    """The model knows its training data by heart: far better there than on held-out data, or better at once when an epoch begins."""
    evidence = [*_gap(log), *_epoch_falls(log)]
    if not evidence:
        return None
    change = "read the data less often (fewer steps, more data), and build the corpus with near-duplicates removed: `bedplate data inspect`"
    return Diagnosis("duplicated data", 0.85 if len(evidence) > 1 else 0.65, tuple(evidence), change)


def exhausted(log: RunLog) -> Diagnosis | None:
    """The data was read more often than allowed."""
    told = [e for e in log.named("health") if e.get("problem") == "exhausted"]
    if not told:
        return None
    change = "add data, stop earlier, or take a smaller model that needs fewer tokens"
    return Diagnosis("data exhausted", 0.9, tuple(_health_lines(told)), change)


def memory_near_limit(log: RunLog) -> Diagnosis | None:
    """Memory is nearly used up, or grows towards the limit."""
    use, limit = _memory(log)
    if not limit or not use.size:
        return None
    peak = float(use.max())
    change = f"--set {_fewer_rows(log)}; the result stays the same, since gradients of the parts add up"
    if peak > NEAR_LIMIT * limit:
        evidence = (f"{format_bytes(peak)} of {format_bytes(limit)} used ({peak / limit:.0%})",)
        return Diagnosis("memory near limit", min(0.99, peak / limit), evidence, change)
    half = use[len(use) // 2 :]
    steps = number(log.steps[-1].get("steps")) if log.steps else np.nan
    if len(half) < 50 or not np.isfinite(steps):
        return None
    growth = (half[-5:].mean() - half[:5].mean()) / len(half)  # bytes a logged step, after the first half has filled its caches
    ahead = growth * (steps - number(log.steps[-1]["step"])) / max(1.0, float(np.median(np.diff(log.column("step")))))
    if peak + ahead < limit or growth * len(half) < 0.05 * limit:
        return None
    grown = f"memory grew by {format_bytes(growth * len(half))} over the last {len(half):,} steps"
    return Diagnosis("memory near limit", 0.6, (f"{grown} and would reach {format_bytes(limit)} before the end",), change)


CHECKS: tuple[Callable[[RunLog], Diagnosis | None], ...] = (
    failed, died, diverged, spike, stalled, loader_bound, duplicated, exhausted, memory_near_limit,
)  # fmt: skip
"""Every check, each at most one diagnosis."""


LEAST_GAP = 0.01
"""A gap to the held-out loss that is a smaller share of the loss at the start says nothing."""


def _gap(log: RunLog) -> list[str]:
    """Held-out loss far above the training loss at the same step, and no longer falling."""
    step = log.column("step")
    out = []
    for name in log.losses:
        held_out = [(number(e.get("step")), number(e.get(name))) for e in log.named("evaluated")]
        held_out = [(at, value) for at, value in held_out if np.isfinite(at) and np.isfinite(value)]
        if len(held_out) < 2 or not len(step):
            continue
        train = smooth(log.column(name), 30)
        at, value = held_out[-1]
        there = float(train[min(int(np.searchsorted(step, at)), len(train) - 1)])
        best = min(v for _, v in held_out)
        learned = value - there < LEAST_GAP * float(train[np.isfinite(train)][0])  # both are next to nothing
        if there > 0 and value > 1.25 * there and value > 1.02 * best and not learned:
            out.append(f"{name} at step {at:,.0f}: {there:.3f} in training, {value:.3f} on held-out data, which was {best:.3f} before")
    return out


def _epoch_falls(log: RunLog) -> list[str]:
    """Sudden falls of the training loss where an epoch begins: at the steps whose `epoch` field says so."""
    loss, step, epoch = log.column("loss"), log.column("step"), np.floor(log.column("epoch"))
    if not np.isfinite(epoch).any():
        return []
    out = []
    for start in np.flatnonzero(np.diff(epoch) >= 1) + 1:
        before, after = loss[max(0, start - 30) : start], loss[start : start + 30]
        if min(np.isfinite(before).sum(), np.isfinite(after).sum()) < 10:
            continue
        slope = _slope(before)  # what ordinary learning would have given
        fall = _level(before) - _level(after) + slope * (len(before) + len(after)) / 2
        error = _noise(np.concatenate([before, after])) * np.sqrt(1 / len(before) + 1 / len(after)) * 1.25
        if fall > max(FALL_AT_EPOCH * error, 0.02 * abs(_level(before))):
            fell = f"the loss fell from {_level(before):.3f} to {_level(after):.3f} at step {step[start]:,.0f}"
            out.append(f"{fell}, where epoch {epoch[start]:.0f} begins")
    return out


def _spikes(loss: Column, window: int = 25) -> list[tuple[int, float]]:
    """(index, usual loss) of entries far above those before and after them."""
    out = []
    for index in range(window, len(loss) - 5):
        around = np.concatenate([loss[index - window : index], loss[index + 3 : index + window]])
        around = around[np.isfinite(around)]
        if len(around) < window or not np.isfinite(loss[index]):
            continue
        usual = float(np.median(around))
        deviation = 1.4826 * float(np.median(np.abs(around - usual)))
        if loss[index] - usual > max(8 * deviation, 0.1 * abs(usual)):
            out.append((index, usual))
    return out


def _memory(log: RunLog) -> tuple[Column, float]:
    """Bytes in use at each step that says so, and the limit: the step's own (a GPU's), else the machine's."""
    use = log.column("memory_bytes")
    limits = log.column("memory_limit_bytes")
    limit = float(np.nanmax(limits)) if np.isfinite(limits).any() else number(log.environment.get("memory_bytes"))
    return use[np.isfinite(use)], limit if np.isfinite(limit) else 0.0


def _fewer_rows(log: RunLog) -> str:
    rows = log.setting("run.rows_per_micro")
    for event in log.named("chosen"):
        if event.get("what") in ("run.rows_per_micro", "rows_per_micro"):
            rows = event.get("value")
    return f"run.rows_per_micro={max(1, int(rows) // 2)}" if isinstance(rows, int) else "run.rows_per_micro=<half of now>"


def _rates(log: RunLog) -> list[tuple[str, float]]:
    named = [s for s in log.settings if "lr" in s.key.rpartition(".")[2].split("_")]
    return [(s.key, float(s.value)) for s in named if isinstance(s.value, (int, float))][:2]


def _gentler(log: RunLog) -> str:
    rates = _rates(log)
    if not rates:
        return "halve the learning rate and continue from the last checkpoint"
    return "halve the learning rate: " + " ".join(f"--set {key}={value / 2:.3g}" for key, value in rates)


def _bolder(log: RunLog) -> str:
    rates = _rates(log)
    if not rates:
        return "raise the learning rate threefold, and look at the data with `bedplate data inspect`"
    raised = " ".join(f"--set {key}={value * 3:.3g}" for key, value in rates)
    return f"raise the learning rate: {raised}; look at the data with `bedplate data inspect`"


def _health_lines(events: Sequence[dict[str, object]]) -> list[str]:
    first = [(number(e.get("step")), e.get("problem"), e.get("detail", ""), e.get("action", "none")) for e in events[:3]]
    lines = [f"step {step:,.0f}: {problem}, {detail} (action: {action})" for step, problem, detail, action in first]
    return lines + ([f"and {len(events) - 3:,} more of the kind"] if len(events) > 3 else [])


def _level(values: Column) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else np.nan


def _noise(values: Column) -> float:
    """Standard deviation of a column around its own slow course, robust: from differences of neighbours."""
    steps = np.diff(values[np.isfinite(values)])
    return float(1.4826 * np.median(np.abs(steps)) / np.sqrt(2)) if len(steps) else 0.0


def _slope(values: Column) -> float:
    good = np.isfinite(values)
    return float(np.polyfit(np.flatnonzero(good), values[good], 1)[0]) if good.sum() > 2 else 0.0
