"""Health: is this run still learning? Pure judgements over the recent past, each with the action that the settings chose.

    nan        loss or gradient is not finite
    spike      loss or gradient norm far outside the recent range
    stall      the loss does not fall: still at its start level, or no better than long ago
    exhausted  the data was read more often than allowed

The recent past is part of the checkpoint, so a resumed run judges exactly as an uninterrupted one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bedplate.core.errors import ConfigError

Action = Literal["none", "skip", "roll_back", "stop"]
Problem = Literal["nan", "spike", "stall", "exhausted"]

MAD_TO_SIGMA = 1.4826
"""The median absolute deviation of a normal distribution, turned into its standard deviation."""


@dataclass(frozen=True)
class HealthSettings:
    """What counts as ill, and what is done about it: none (only told), skip (drop the update), roll_back (go back to the last
    checkpoint and past the data that followed it), stop."""

    on_nan: Action = "skip"
    """Action when the loss or a gradient is not finite. An update that is not finite is never applied, whatever is chosen."""
    on_spike: Action = "none"
    """Action at a spike."""
    on_stall: Literal["none", "stop"] = "none"
    """Action when the run does not learn."""
    on_exhausted: Literal["none", "stop"] = "none"
    """Action when the data was read `max_epochs` times."""
    window: int = 64
    """Steps that the spike check compares with."""
    spike_sigma: float = 12.0
    """A loss or gradient norm this many robust standard deviations above the median of the window is a spike."""
    stall_steps: int = 400
    """Steps without progress that count as a stall."""
    stall_progress: float = 0.002
    """The least relative fall of the median loss within `stall_steps` that counts as progress."""
    max_epochs: float = 8.0
    """Times the data may be read before it counts as exhausted."""
    max_roll_backs: int = 3
    """Roll-backs after which the run stops instead."""
    max_skips: int = 20
    """Skipped updates within the window after which the run stops instead."""

    def __post_init__(self) -> None:
        if self.window < 16:
            raise ConfigError(f"health.window = {self.window} is too short to judge by", "set health.window to 16 or more")
        if self.stall_steps < 20:
            raise ConfigError(f"health.stall_steps = {self.stall_steps} is too short to judge by", "set health.stall_steps to 20 or more")

    @property
    def memory(self) -> int:
        """Steps of the past that the checks need."""
        return max(self.window, self.stall_steps)


class Finding(NamedTuple):
    """One problem."""

    problem: Problem
    action: Action
    detail: str


def find_nan(loss: float, gradient_norm: float, settings: HealthSettings) -> Finding | None:
    """A loss or gradient that is not finite."""
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return None
    action = "skip" if settings.on_nan == "none" else settings.on_nan
    return Finding("nan", action, f"loss {loss:.4g}, gradient norm {gradient_norm:.4g}")


def find_spike(
    losses: Sequence[float], norms: Sequence[float], loss: float, gradient_norm: float, settings: HealthSettings
) -> Finding | None:
    """A loss or gradient norm far above what the window had.

    Args:
        losses: recent losses, oldest first, without this step's.
        norms: recent gradient norms.
        loss: this step's.
        gradient_norm: this step's.
    """
    for name, past, value in (("loss", losses, loss), ("gradient norm", norms, gradient_norm)):
        recent = past[-settings.window :]
        if len(recent) < settings.window:
            continue
        median = statistics.median(recent)
        sigma = MAD_TO_SIGMA * statistics.median(abs(v - median) for v in recent)
        distance = (value - median) / max(sigma, 1e-3 * abs(median), 1e-12)
        if distance > settings.spike_sigma:
            detail = f"{name} {value:.4g} is {distance:.0f} robust sigma above the median {median:.4g} of {len(recent)} steps"
            return Finding("spike", settings.on_spike, detail)
    return None


def find_stall(losses: Sequence[float], start_loss: float, settings: HealthSettings) -> Finding | None:
    """A loss that does not fall.

    Args:
        losses: recent losses, oldest first.
        start_loss: median loss of the first steps.
    """
    if len(losses) < settings.stall_steps:
        return None
    part = max(5, settings.stall_steps // 5)
    window = losses[-settings.stall_steps :]
    before, now = statistics.median(window[:part]), statistics.median(window[-part:])
    if now >= start_loss * (1 - settings.stall_progress):
        return Finding("stall", settings.on_stall, f"loss {now:.4g} has not left its start level {start_loss:.4g}")
    if now > before * (1 - settings.stall_progress):
        return Finding("stall", settings.on_stall, f"loss {now:.4g} is no better than {before:.4g}, {settings.stall_steps} steps ago")
    return None


def find_exhausted(epochs: float, settings: HealthSettings) -> Finding | None:
    """Data read more often than allowed.

    Args:
        epochs: how often the most repeated component was read.
    """
    if epochs <= settings.max_epochs:
        return None
    detail = f"the data was read {epochs:.1f} times, more than health.max_epochs = {settings.max_epochs:g}"
    return Finding("exhausted", settings.on_exhausted, detail)
