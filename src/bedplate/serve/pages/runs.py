"""Runs: jobs whose folders the settings name, with live curves. Only what a run wrote to its events.jsonl is read."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from starlette.responses import Response

from bedplate.core.errors import BedplateError
from bedplate.core.narrate import describe, number
from bedplate.core.run import run_state
from bedplate.core.units import format_bytes, format_count, format_seconds
from bedplate.report.doctor import Diagnosis, diagnose
from bedplate.report.log import RunLog, smooth
from bedplate.serve.errors import Refusal
from bedplate.serve.pages.chart import Chart, Curve, chart
from bedplate.serve.pages.page import off_the_loop, page
from bedplate.serve.route import Call, Route

MOST_RUNS = 200
KEPT_LOGS = 16
MOMENTS = 12

_kept: OrderedDict[Path, tuple[tuple[int, int], RunLog]] = OrderedDict()
_turn = Lock()


@dataclass(frozen=True)
class Summary:
    """A run in the list."""

    name: str
    kind: str
    state: str
    step: str
    loss: str
    silent_s: float
    """Since its last event."""


@dataclass(frozen=True)
class RunNow:
    """A run as its page shows it."""

    name: str
    log: RunLog
    facts: list[tuple[str, str]]
    diagnoses: Sequence[Diagnosis]
    charts: list[Chart]
    moments: list[tuple[str, str]]


async def runs(call: Call) -> Response:
    """The page of runs."""
    return page(call, "runs.html", **await _listed(call))


async def runs_now(call: Call) -> Response:
    """The part of that page that changes."""
    return page(call, "runs_now.html", **await _listed(call))


async def run(call: Call) -> Response:
    """The page of one run, with its curves."""
    return page(call, "run.html", run=await _found(call))


async def run_now(call: Call) -> Response:
    """The part of that page that changes."""
    return page(call, "run_now.html", run=await _found(call))


def folders(named: Sequence[Path]) -> dict[str, Path]:
    """Name -> folder of every run in these folders, or up to two below; the one that wrote last first.

    A request says a name, never a path. Of two runs with the same name, both have the folder above before it.
    """
    found: dict[Path, float] = {}
    for folder in named:
        for pattern in ("events.jsonl", "*/events.jsonl", "*/*/events.jsonl"):
            for events in folder.glob(pattern):
                try:
                    found[events.parent.resolve()] = events.stat().st_mtime
                except OSError:  # removed meanwhile
                    continue
    newest = sorted(found, key=found.__getitem__, reverse=True)[:MOST_RUNS]
    plain = [path.name for path in newest]
    return {path.name if plain.count(path.name) == 1 else f"{path.parent.name}~{path.name}": path for path in newest}


def read(folder: Path) -> RunLog:
    """A run's log; read again only where it has changed.

    Raises:
        DataError: it is gone.
    """
    try:
        stat = (folder / "events.jsonl").stat()
        mark = (stat.st_mtime_ns, stat.st_size)
    except OSError:
        mark = (0, 0)
    with _turn:
        mark_before, log = _kept.get(folder, ((-1, -1), None))
    if log is not None and mark == mark_before:
        return replace(log, state=run_state(folder)) if log.state == "running" else log  # its process may have died without a word
    log = RunLog.read(folder)
    with _turn:
        _kept[folder] = (mark, log)
        _kept.move_to_end(folder)
        while len(_kept) > KEPT_LOGS:
            _kept.popitem(last=False)
    return log


def told(name: str, log: RunLog, now_s: float) -> RunNow:
    """What a page shows of a run."""
    start = number(log.events[0].get("t")) if log.events else math.nan
    moments = [(number(e.get("t")) - start, describe(e)) for e in log.events if e["event"] not in ("step", "progress", "sample", "chosen", "counted")]
    lines = [(f"+{format_seconds(at)}" if math.isfinite(at) else "", text) for at, text in moments if text][-MOMENTS:]
    return RunNow(name, log, _facts(log), diagnose(log, now_s if log.state == "running" else None), _charts(log), lines[::-1])


def _facts(log: RunLog) -> list[tuple[str, str]]:
    if not log.steps:
        return []
    last = log.steps[-1]
    step, steps = number(last.get("step")), number(last.get("steps"))
    facts = [("step", f"{step:,.0f}" + (f" of {steps:,.0f}" if math.isfinite(steps) else ""))]
    if "loss" in log.losses:
        facts.append(("loss", f"{_smooth(log, 'loss')[-1]:.3f}"))
    held_out = [number(e.get("bits_per_byte")) for e in log.named("evaluated") if "bits_per_byte" in e]
    if held_out:
        facts.append(("bits per byte, held-out", f"{held_out[-1]:.3f}"))
    speed = log.column("units_per_s")
    if np.isfinite(speed).any():
        facts.append(("positions/s", format_count(float(np.nanmedian(speed[-50:])))))
    if math.isfinite(tokens := number(last.get("tokens"))):
        facts.append(("positions seen", format_count(tokens)))
    spent = log.seconds()
    if len(spent) and math.isfinite(spent[-1]):
        facts.append(("training time", format_seconds(float(spent[-1]))))
        if log.state == "running" and math.isfinite(steps) and step > 0:
            facts.append(("left, about", format_seconds(float(spent[-1]) * max(0.0, steps - step) / step)))
    memory = log.column("memory_bytes")
    if np.isfinite(memory).any():
        facts.append(("memory, peak", format_bytes(float(np.nanmax(memory)))))
    return facts


def _charts(log: RunLog) -> list[Chart]:
    x = log.column("step")
    steps = (float(np.nanmin(x)), float(np.nanmax(x))) if len(x) else None
    evaluated = log.named("evaluated")
    held_x = np.array([number(e.get("step")) for e in evaluated], dtype=np.float64)
    made = []
    for title, names in (("Loss", [name for name in log.losses if name == "loss"]), ("Loss by sense", [name for name in log.losses if name != "loss"])):
        curves: list[Curve] = []
        for colour, name in enumerate(names):
            word = name.removeprefix("loss_").replace("_", " ") if name != "loss" else "training"
            held_y = np.array([number(e.get(name)) for e in evaluated], dtype=np.float64)
            if name == "loss":
                curves.append(Curve("each step", x, log.column(name), "faint", colour))
            curves.append(Curve(word, x, _smooth(log, name), "line", colour))
            curves.append(Curve("held-out" if name == "loss" else f"{word}, held-out", held_x, held_y, "dots", colour))
        made.append(chart(title, curves, steps))
    scores = sorted({key for e in evaluated for key in e if key.startswith("score_") or key == "bits_per_byte"})
    for name in scores:
        values = np.array([number(e.get(name)) for e in evaluated], dtype=np.float64)
        title = name.removeprefix("score_").replace("_", " ").capitalize() + ", held-out"
        made.append(chart(title, [Curve("held-out", held_x, values, "line"), Curve("held-out", held_x, values, "dots")], steps))
    for title, name, zero in (("Positions a second", "units_per_s", True), ("Gradient norm", "gradient_norm", True), ("Learning rate", "lr", True)):
        made.append(chart(title, [Curve(title.lower(), x, log.column(name))], steps, from_zero=zero))
    return [one for one in made if one is not None]


def _smooth(log: RunLog, name: str) -> Any:
    values = log.column(name)
    return smooth(values, max(8.0, len(values) / 40))


def _summary(name: str, folder: Path, now_s: float) -> Summary | None:
    try:
        log = read(folder)
    except (BedplateError, OSError):  # removed meanwhile
        return None
    step = number(log.steps[-1].get("step")) if log.steps else math.nan
    steps = number(log.steps[-1].get("steps")) if log.steps else math.nan
    words = f"{step:,.0f}" + (f" of {steps:,.0f}" if math.isfinite(steps) else "") if math.isfinite(step) else "-"
    loss = float(_smooth(log, "loss")[-1]) if "loss" in log.losses else math.nan
    silent_s = now_s - number(log.events[-1].get("t")) if log.events else math.nan
    return Summary(name, log.kind, log.state, words, f"{loss:.3f}" if math.isfinite(loss) else "-", max(0.0, silent_s))


async def _listed(call: Call) -> dict[str, Any]:
    named = call.gateway.settings.runs

    def listed() -> list[Summary]:
        now_s = time.time()
        return [one for name, folder in folders(named).items() if (one := _summary(name, folder, now_s)) is not None]

    return {"runs": await off_the_loop(listed), "named": [str(folder) for folder in named]}


async def _found(call: Call) -> RunNow:
    named, name = call.gateway.settings.runs, call.path["name"]

    def find() -> RunNow | None:
        folder = folders(named).get(name)
        return None if folder is None else told(name, read(folder), time.time())

    found = await off_the_loop(find)
    if found is None:
        raise Refusal(404, f"there is no run {name[:100]!r} in the folders that the gateway's settings name under runs", code="not_found")
    return found


ROUTES = (
    Route("GET", "/pages/runs", runs, "admin"),
    Route("GET", "/pages/runs/now", runs_now, "admin"),
    Route("GET", "/pages/runs/{name}", run, "admin"),
    Route("GET", "/pages/runs/{name}/now", run_now, "admin"),
)
