"""Watching a run while it runs: its new events as they come, and one terminal view of where it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bedplate.core.narrate import Pace, describe, number
from bedplate.core.units import format_bytes, format_count, format_seconds
from bedplate.report.doctor import diagnose
from bedplate.report.log import Column, Event, RunLog

BARS = " ▁▂▃▄▅▆▇█"
STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "interrupted": "red"}


class Tail:
    """The complete lines that a growing events.jsonl got since the last look; half a line is left for the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[Event]:
        """Events since the last call, in order; none while there is no file."""
        try:
            with self._path.open("rb") as handle:
                handle.seek(self._offset)
                data = handle.read()
        except FileNotFoundError:
            return
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                yield event


def view(log: RunLog, now: float, width: int = 60) -> RenderableType:
    """Where a run stands, for a terminal.

    Args:
        log: the run as read now.
        now: seconds since the epoch, for the age of the last event.
        width: characters of the loss line.
    """
    state = (log.state, STYLES.get(log.state, ""))
    head = Text.assemble((log.name, "bold"), "  ", state, (f"  {log.kind}{_age(log, now)}", "dim"))
    parts: list[RenderableType] = [head, Text(_pace(log), style="bold")]
    if log.losses:
        parts.append(_losses(log, width))
    if facts := _facts(log):
        parts.append(Text(facts, style="dim"))
    recent = [text for e in log.events if e["event"] not in ("step", "progress") and (text := describe(e))]
    parts += [Text(f"· {text}", style="dim", no_wrap=True, overflow="ellipsis") for text in recent[-6:]]
    for diagnosis in diagnose(log, now):
        parts.append(Text.assemble((f"{diagnosis.name} ({diagnosis.confidence:.0%}) ", "bold yellow"), diagnosis.change))
    return Panel(Group(*parts), box=box.ROUNDED, padding=(0, 1))


def sparkline(values: Column, width: int = 60) -> str:
    """A column as one line of bars, at most `width` of them; what is not finite is a gap."""
    if not np.isfinite(values).any() or width < 1:
        return ""
    edges = np.linspace(0, len(values), min(width, len(values)) + 1).astype(int)
    pieces = [values[start:end][np.isfinite(values[start:end])] for start, end in pairwise(edges)]
    means = np.array([piece.mean() if len(piece) else np.nan for piece in pieces])
    low, high = np.nanmin(means), np.nanmax(means)
    scaled = 1 + np.round((len(BARS) - 2) * (means - low) / (high - low if high > low else 1.0))
    return "".join(BARS[int(value)] if np.isfinite(value) else BARS[0] for value in scaled)


def _losses(log: RunLog, width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    for name in log.losses:
        values = log.column(name)
        finite = values[np.isfinite(values)]
        last = f"{finite[-min(20, len(finite)) :].mean():.3f}" if len(finite) else "-"
        table.add_row(Text(name.replace("_", " ")), Text(last, justify="right"), Text(sparkline(values, width), style="cyan"))
    return table


def _pace(log: RunLog) -> str:
    pace = Pace()
    for event in log.events[-200:]:
        if event["event"] in ("step", "progress"):
            pace.after(event)
    return pace.line() or "no step yet"


def _facts(log: RunLog) -> str:
    if not log.steps:
        return ""
    last = log.steps[-1]
    tell = {"tokens": ("positions", format_count), "memory_bytes": ("memory", format_bytes), "lr": ("learning rate", "{:.2e}".format)}
    parts = [f"{title} {show(value)}" for key, (title, show) in tell.items() if np.isfinite(value := number(last.get(key)))]
    return "   ".join(parts)


def _age(log: RunLog, now: float) -> str:
    age = now - number(log.events[-1].get("t")) if log.events else np.nan
    return f"  last event {format_seconds(max(age, 0.0))} ago" if np.isfinite(age) else ""
