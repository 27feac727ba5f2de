"""Comparison of runs: the settings that differ, and the loss at equal steps, equal tokens and equal time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bedplate.core.errors import DataError
from bedplate.report.log import Column, RunLog, smooth

POINTS = 6
"""Places along the shortest run at which losses are set side by side."""


class Difference(NamedTuple):
    """One setting that differs; a value is None where a run does not have it."""

    key: str
    values: tuple[Any, ...]


class Part(NamedTuple):
    """Losses along one axis: "steps", "tokens" or "time" (seconds). `rows`: place, each run's smoothed loss there; `curves`: (x, loss)."""

    axis: str
    rows: tuple[tuple[float, tuple[float, ...]], ...]
    curves: tuple[tuple[Column, Column], ...]


@dataclass(frozen=True)
class Comparison:
    """Two or more runs side by side."""

    logs: Sequence[RunLog]
    names: Sequence[str]
    differences: Sequence[Difference]
    parts: Sequence[Part]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        named = zip(self.names, self.logs, strict=True)
        return {
            "runs": [{"name": name, "folder": str(log.folder), "state": log.state} for name, log in named],
            "settings": {d.key: self._by_name(d.values) for d in self.differences},
            "losses": {p.axis: [{"at": at, "losses": self._by_name(losses)} for at, losses in p.rows] for p in self.parts},
        }

    def _by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.names, values, strict=True))


def compare(logs: Sequence[RunLog], loss: str = "loss") -> Comparison:
    """Set runs side by side.

    Args:
        logs: two or more runs.
        loss: which loss: "loss" or "loss_<sense>".
    Raises:
        DataError: fewer than two runs, or a run without that loss.
    """
    if len(logs) < 2:
        raise DataError("a comparison needs two runs", "give the folders of two or more runs")
    for log in logs:
        if not np.isfinite(log.column(loss)).any():
            known = ", ".join(log.losses) or "none: it has logged no step yet"
            raise DataError(f"run {log.name} has no {loss!r}", f"its losses: {known}")
    parts = [part for axis in ("steps", "tokens", "time") if (part := _part(logs, loss, axis))]
    return Comparison(logs, _names(logs), differences(logs), parts)


def differences(logs: Sequence[RunLog]) -> list[Difference]:
    """Settings whose values are not the same in all runs, by key."""
    tables = [{setting.key: setting.value for setting in log.settings} for log in logs]
    keys = sorted({key for table in tables for key in table})
    rows = [Difference(key, tuple(table.get(key) for table in tables)) for key in keys]
    return [row for row in rows if any(value != row.values[0] for value in row.values[1:])]


def _part(logs: Sequence[RunLog], loss: str, axis: str) -> Part | None:
    curves = []
    for log in logs:
        x = log.seconds() if axis == "time" else log.column("step" if axis == "steps" else axis)
        y = log.column(loss)
        good = np.isfinite(x) & np.isfinite(y)
        curves.append((x[good], y[good]))
    if any(len(x) < 2 for x, _ in curves):
        return None
    start, end = max(float(x[0]) for x, _ in curves), min(float(x[-1]) for x, _ in curves)
    if end <= start:
        return None
    places = np.linspace(start, end, POINTS + 1)[1:]
    places = np.unique(np.round(places)) if axis != "time" else places
    even = [np.interp(places, x, smooth(y, max(8.0, len(y) / 40))) for x, y in curves]
    rows = tuple((float(at), tuple(float(values[i]) for values in even)) for i, at in enumerate(places))
    return Part(axis, rows, tuple(curves))


def _names(logs: Sequence[RunLog]) -> list[str]:
    """Each folder's name, with the parent's before it where two would be called the same."""
    short = [log.name for log in logs]
    if len(set(short)) == len(short):
        return short
    long = ["/".join(log.folder.resolve().parts[-2:]) for log in logs]
    return long if len(set(long)) == len(long) else [f"{name} ({index})" for index, name in enumerate(long, 1)]
