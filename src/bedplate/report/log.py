"""RunLog: what a run folder tells, read once: events, settings with their origins, state, and its steps as columns.

A run that was resumed or rolled back wrote some steps twice; here each step is there once, as it was done last.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bedplate.core.config import flatten
from bedplate.core.errors import DataError
from bedplate.core.events import read_events
from bedplate.core.narrate import number
from bedplate.core.run import run_state

Event = dict[str, Any]
Column = NDArray[np.float64]


class Setting(NamedTuple):
    """One resolved setting and where its value came from."""

    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class RunLog:
    """A run as it can be read from its folder.

    `state` is one of run_state's words. `settings` are in the order of run.toml.
    """

    folder: Path
    events: Sequence[Event]
    settings: Sequence[Setting] = ()
    state: str = "finished"
    steps: Sequence[Event] = field(init=False)
    """The `step` events, each step once, ascending."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _kept(self.events))

    @classmethod
    def read(cls, folder: Path) -> RunLog:
        """Read a run folder.

        Raises:
            DataError: there is no run in it.
        """
        if not (folder / "events.jsonl").is_file():
            others = sorted(path.parent.name for path in folder.glob("*/events.jsonl")) if folder.is_dir() else []
            inside = f"it holds runs: {', '.join(others[:8])}" if others else "give the folder that `--to` named when the job began"
            raise DataError(f"{folder} is not a run: it has no events.jsonl", inside)
        return cls(folder, list(read_events(folder / "events.jsonl")), read_settings(folder / "run.toml"), run_state(folder))

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def kind(self) -> str:
        """What kind of job it is."""
        return str(next((e.get("kind", "") for e in self.events if e["event"] == "run_started"), ""))

    @property
    def environment(self) -> dict[str, Any]:
        """What the job ran on, as the last start recorded it."""
        found = [e["environment"] for e in self.events if e["event"] == "run_started" and isinstance(e.get("environment"), dict)]
        return dict(found[-1]) if found else {}

    @property
    def losses(self) -> list[str]:
        """Names of the loss columns: "loss" first, then each sense's."""
        names = {key for e in self.steps for key in e if key.startswith("loss_")}
        return (["loss"] if any("loss" in e for e in self.steps) else []) + sorted(names)

    def named(self, *names: str) -> list[Event]:
        """The events of these names, in order."""
        return [event for event in self.events if event["event"] in names]

    def column(self, name: str) -> Column:
        """One field of every step; NaN where it is missing."""
        return np.array([number(event.get(name)) for event in self.steps], dtype=np.float64)

    def setting(self, key: str) -> Any:
        """The value of a dotted key; None when it is not set."""
        return next((setting.value for setting in self.settings if setting.key == key), None)

    def seconds(self) -> Column:
        """Training time after each step: what was spent in steps, without pauses between runs."""
        spent = self.column("step_s")
        at = self.column("t")
        if len(at) and np.isnan(spent).any():
            gaps = np.diff(at, prepend=at[:1])
            spent = np.where(np.isnan(spent), np.clip(gaps, 0.0, None), spent)
        return np.cumsum(_per_logged_step(spent, self.column("step")))


def read_settings(path: Path) -> list[Setting]:
    """The settings of a run.toml with the origins its comments name; empty when there is none or it is broken."""
    try:
        text = path.read_text(encoding="utf-8")
        values = dict(flatten(tomllib.loads(text)))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
        return []
    origins: dict[str, str] = {}
    table = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"\[([\w.\-]+)\]\s*", line):
            table = heading[1] + "."
        elif entry := re.match(r"([\w\-]+) = .*  # ([^#]*)$", line):
            origins[table + entry[1]] = entry[2].strip()
    return [Setting(key, value, origins.get(key, "")) for key, value in values.items()]


def smooth(values: Column, span: float = 20.0) -> Column:
    """Moving average over about `span` entries (fewer at the start, where a loss falls steeply); NaN entries pass the last average on."""
    out = np.empty_like(values)
    average, seen = np.nan, 0
    for index, value in enumerate(values):
        if np.isfinite(value):
            seen += 1
            average = value if seen == 1 else average + (value - average) / min(span, 1 + seen / 4)
        out[index] = average
    return out


def _kept(events: Sequence[Event]) -> list[Event]:
    """Each step as it was done last: a resume or a rollback throws away the steps after it."""
    kept: dict[int, Event] = {}
    for event in events:
        step = number(event.get("step"))
        if not np.isfinite(step):
            continue
        if event["event"] == "step":
            kept = kept if not kept or step > max(kept) else {n: e for n, e in kept.items() if n < step}
            kept[int(step)] = event
        elif event["event"] == "run_resumed":
            kept = {n: e for n, e in kept.items() if n <= step}
    return [kept[n] for n in sorted(kept)]


def _per_logged_step(spent: Column, step: Column) -> Column:
    """Seconds since the previous logged step, where only every n-th step is logged."""
    between = np.diff(step, prepend=0.0) if len(step) else step
    return spent * np.where(np.isfinite(between) & (between >= 1), between, 1.0)
