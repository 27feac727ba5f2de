"""Charts: curves over steps as shapes that a template draws. Coordinates are from 0 to SIDE in both directions, whatever the size on the screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bedplate.core.units import format_count
from bedplate.report.log import Column

SIDE = 1000
MOST_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """What is to be drawn."""

    name: str
    x: Column
    y: Column
    """NaN where nothing is known."""
    style: str = "line"
    """line, faint (behind the others, and the axis does not follow it) or dots."""
    colour: int = 0
    """Number of a colour in the style sheet."""


@dataclass(frozen=True)
class Drawn:
    """A curve in coordinates."""

    name: str
    style: str
    colour: int
    points: tuple[tuple[float, float], ...]
    last: str
    """Its last value, in words."""


@dataclass(frozen=True)
class Tick:
    """A line of the grid."""

    at: float
    """0 to SIDE; upwards is towards 0."""
    label: str


@dataclass(frozen=True)
class Chart:
    """What a template draws."""

    title: str
    curves: tuple[Drawn, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    @property
    def legend(self) -> list[Drawn]:
        """What is named beside it: the lines, and what is dotted where no line has its name."""
        named = [curve.name for curve in self.curves if curve.style == "line"]
        return [curve for curve in self.curves if curve.style == "line" or (curve.style == "dots" and curve.name not in named)]

    @property
    def summary(self) -> str:
        """For those who do not see it."""
        named = [f"{curve.name} {curve.last}" for curve in self.legend]
        return f"{self.title}, steps {format_count(self.x_range[0])} to {format_count(self.x_range[1])}; last values: {', '.join(named)}"


def chart(title: str, curves: Sequence[Curve], x_range: tuple[float, float] | None = None, from_zero: bool = False) -> Chart | None:
    """Curves with their axes; None where there is nothing to draw.

    Args:
        title: of the chart.
        curves: those behind first.
        x_range: of the axis of steps; None: as far as the curves reach.
        from_zero: whether the axis of values begins at 0.
    """
    thinned = [(curve, *_finite(curve)) for curve in curves]
    thinned = [(curve, x, y) for curve, x, y in thinned if len(x)]
    leading = [(x, y) for curve, x, y in thinned if curve.style != "faint"] or [(x, y) for _, x, y in thinned]
    if not leading:
        return None
    reach = (min(float(x.min()) for x, _ in leading), max(float(x.max()) for x, _ in leading))
    x_low, x_high = _apart(*(x_range or reach))
    low, high = min(float(y.min()) for _, y in leading), max(float(y.max()) for _, y in leading)
    steps = ticks(*_apart(min(low, 0.0) if from_zero else low, high), 5)
    y_low, y_high = min(steps[0], low), max(steps[-1], high)
    drawn = []
    for curve, x, y in thinned:
        across, down = SIDE * (x - x_low) / (x_high - x_low), SIDE * (1 - (y - y_low) / (y_high - y_low))
        seen = (across >= 0) & (across <= SIDE)
        points = tuple((round(float(a), 1), round(float(d), 1)) for a, d in zip(across[seen], np.clip(down[seen], 0, SIDE)))
        if points:
            drawn.append(Drawn(curve.name, curve.style, curve.colour, points, _short(float(y[-1]))))
    x_ticks = tuple(Tick(round(SIDE * (at - x_low) / (x_high - x_low), 1), format_count(at)) for at in ticks(x_low, x_high, 5) if x_low <= at <= x_high)
    y_ticks = tuple(Tick(round(SIDE * (1 - (at - y_low) / (y_high - y_low)), 1), _value(at, steps)) for at in steps)
    return Chart(title, tuple(drawn), x_ticks, y_ticks, (x_low, x_high), (y_low, y_high))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that reach from below `low` to above `high`, about so many."""
    rough = (high - low) / max(1, about - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _finite(curve: Curve) -> tuple[Column, Column]:
    """What is known of a curve, in at most MOST_POINTS points: the means of stretches, but the last value as it is."""
    kept = np.isfinite(curve.x) & np.isfinite(curve.y)
    x, y = curve.x[kept], curve.y[kept]
    if len(x) <= MOST_POINTS:
        return x, y
    edges = np.linspace(0, len(x) - 1, MOST_POINTS).astype(int)
    counts = np.diff(np.append(edges, len(x)))
    thin_x, thin_y = np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts
    thin_x[-1], thin_y[-1] = x[-1], y[-1]
    return thin_x, thin_y


def _apart(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        return low, high
    return low - max(abs(low), 1.0) / 2, high + max(abs(high), 1.0) / 2


def _short(value: float) -> str:
    return format_count(value) if abs(value) >= 10_000 else f"{value:.4g}"


def _value(value: float, steps: Sequence[float]) -> str:
    """A tick's label with as many digits as tell it from its neighbours."""
    step = steps[1] - steps[0]
    value = 0.0 if abs(value) < step / 1e6 else value
    if max(map(abs, steps)) >= 10_000:
        return format_count(value)
    if step < 1e-4:
        return f"{value:.1e}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9)) + (step / 10 ** math.floor(math.log10(step) + 1e-9) == 2.5)}f}"
