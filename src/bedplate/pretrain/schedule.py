"""Schedules: what the step number alone decides. Pure functions, so that a resumed run cannot differ from an uninterrupted one.

    lr factor      warm-up ___stable___ linear tail \\  (warm-up, stable, decay: the stable part can be continued or branched)
    momentum       Muon's rises over the first steps
    context        short rows first: attention is cheap and text is learned from short context early on
    average        an exponential average of the weights over the last part of the run

Source: WSD (MiniCPM, section 4); the long linear tail and momentum warm-up as in modded-nanogpt's measured records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from bedplate.core.errors import ConfigError


@dataclass(frozen=True)
class ScheduleSettings:
    """When the learning rate, momentum, context and weight average change."""

    warmup_share: float = 0.02
    """Share of the steps over which the learning rate rises linearly from zero."""
    tail_share: float = 0.65
    """Share of the steps, at the end, over which the learning rate falls linearly to `floor`."""
    floor: float = 0.0
    """Learning rate at the last step, as a share of the peak."""
    momentum_start: float = 0.85
    """Muon's momentum at the first step; it rises linearly to `momentum`."""
    momentum: float = 0.95
    """Muon's momentum after its warm-up."""
    momentum_warmup_share: float = 0.1
    """Share of the steps over which Muon's momentum rises (at most 300 steps)."""
    context_stages: tuple[tuple[float, int], ...] = ()
    """Sequence-length warm-up: pairs (share of the steps at which the stage ends, context in tokens); then the full context."""
    average_share: float = 0.05
    """Share of the steps, at the end, over which weights are averaged; the average is the final model. 0 turns it off."""

    def __post_init__(self) -> None:
        for name in ("warmup_share", "tail_share", "floor", "momentum_start", "momentum", "momentum_warmup_share", "average_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"schedule.{name} = {getattr(self, name)} is not within 0..1", "give it a share such as 0.1")
        if self.warmup_share + self.tail_share > 1:
            raise ConfigError("schedule.warmup_share and tail_share overlap", f"set schedule.tail_share={1 - self.warmup_share:g} or less")
        ends = [end for end, _ in self.context_stages]
        if ends != sorted(ends) or any(not 0 < end <= 1 or context < 1 for end, context in self.context_stages):
            raise ConfigError("schedule.context_stages must end at rising shares within 0..1", "for example [[0.3, 128], [0.6, 256]]")


class StepRows(NamedTuple):
    """The rows a step reads."""

    first_row: int
    rows: int
    context: int
    """Positions in a row."""


@dataclass(frozen=True)
class Schedule:
    """The settings with the length of the run. Steps count from 0 to steps - 1."""

    settings: ScheduleSettings
    steps: int
    rows_per_step: int
    context: int

    def lr_factor(self, step: int) -> float:
        """Learning rate of a step as a share of the peak: never zero before the end, so that no step is wasted."""
        warmup = round(self.settings.warmup_share * self.steps)
        tail = round(self.settings.tail_share * self.steps)
        rising = (step + 1) / (warmup + 1)
        falling = self.settings.floor + (1 - self.settings.floor) * (self.steps - step) / (tail + 1)
        return min(1.0, rising, max(falling, self.settings.floor))

    def momentum(self, step: int) -> float:
        """Muon's momentum at a step."""
        warmup = min(300, round(self.settings.momentum_warmup_share * self.steps))
        share = min(1.0, step / warmup) if warmup else 1.0
        return self.settings.momentum_start + share * (self.settings.momentum - self.settings.momentum_start)

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """(first step after the stage, context) of every stage; the last one ends at `steps`."""
        short = [(round(end * self.steps), min(context, self.context)) for end, context in self.settings.context_stages]
        return (*short, (self.steps, self.context))

    def rows(self, step: int, skipped_positions: int = 0) -> StepRows:
        """The rows a step reads. Positions per step stay constant: a shorter context means more rows.

        Args:
            step: 0 to steps - 1.
            skipped_positions: positions that roll-backs jumped over.
        """
        before, start = skipped_positions, 0
        for end, context in self.stages:
            rows = self._rows_at(context)
            if step < end or end == self.steps:
                before += (step - start) * rows * context
                return StepRows(math.ceil(before / context), rows, context)
            before += max(0, end - start) * rows * context
            start = max(start, end)
        raise AssertionError

    def positions(self, step: int) -> int:
        """Positions read by all steps before `step`."""
        total, start = 0, 0
        for end, context in self.stages:
            last = step if end == self.steps else min(step, end)
            total += max(0, last - start) * self._rows_at(context) * context
            start = max(start, end)
        return total

    def average_weight(self, step: int) -> float:
        """How much of the step's weights goes into the average: 0 before the tail's last part, 1 at its first step.

        The average forgets with a time constant of a quarter of its span, and starts as a plain mean.
        """
        span = round(self.settings.average_share * self.steps)
        counted = step - (self.steps - span)
        if span < 2 or counted < 0:
            return 0.0
        return max(1 / (counted + 1), min(1.0, 4 / span))

    def _rows_at(self, context: int) -> int:
        return max(1, self.rows_per_step * self.context // context)
