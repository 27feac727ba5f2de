"""What is to be made of a sense, as requests to the engine; and what the units come to, as a picture, a clip, log-mel frames or numbers.

    wanted = Picture("handwritten digit seven", side=(28, 28))
    plan = planned(base, wanted)          # plan.request(seed) goes to the engine, whose listener hears units
    pixels = plan.value(units)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from bedplate.adapt.base import Base
from bedplate.core.errors import ConfigError, DataError
from bedplate.core.generation import Sampling
from bedplate.infer.maker import FEWEST_UNITS
from bedplate.infer.request import Making, Request
from bedplate.modality import series
from bedplate.modality.senses import HANDLERS
from bedplate.modality.sequence import Sequence as Positions
from bedplate.modality.specs import CONTINUOUS, SENSES, AudioSpec, ContinuousSense, SeriesSpec
from bedplate.modality.units import grid_of

LEAST_SPREAD = 1e-6
"""Of a series' past, as a share of its mean: what does not move has no spread to be measured in."""


@dataclass(frozen=True)
class Picture:
    """A picture from a caption, or the rest of one."""

    caption: str = ""
    """Empty: any picture."""
    side: tuple[int, int] | None = None
    """(height, width) in pixels; None: the size that the model learned."""
    known: UInt8[np.ndarray, "h w c"] | None = None
    """A picture whose first patches are kept."""
    known_share: float = 0.5
    """Share of its patches that are kept."""
    guidance: float = 2.0
    """1 follows the caption, 1.5 to 3 insists on it."""
    steps: int = 20
    """Euler steps a patch."""


@dataclass(frozen=True)
class Clip:
    """A clip from a caption."""

    caption: str = ""
    frames: int = 8
    guidance: float = 2.0
    steps: int = 20


@dataclass(frozen=True)
class Sound:
    """A sound from a caption; it ends where the model ends it."""

    caption: str = ""
    most_s: float = 3.0
    guidance: float = 1.5
    steps: int = 20


@dataclass(frozen=True)
class Future:
    """What may follow a series."""

    past: Float[np.ndarray, "t"]
    """In its own unit, at least one unit's points."""
    points: int
    name: str = ""
    """Of the channel, as in training."""
    steps: int = 20


Wanted = Picture | Clip | Sound | Future
SENSE_OF: dict[type[Any], ContinuousSense] = {Picture: "image", Clip: "video", Sound: "audio", Future: "series"}


@dataclass(frozen=True)
class Plan:
    """One thing to be made; every seed makes another."""

    sense: ContinuousSense
    positions: Positions
    """What stands before: the caption, and the units that are known."""
    making: Making
    spec: Any
    grid: Int[np.ndarray, "n 3"]
    """Places of all units, the known ones first."""
    known: Float[np.ndarray, "k p"]
    scale: series.Normalisation | None = None
    """Of a series."""
    past: int = 0
    """Points of a series that are known."""
    points: int = 0

    def request(self, seed: int) -> Request:
        """To the engine."""
        return Request(self.positions, Sampling(max_tokens=len(self.making.grid), seed=seed), making=replace(self.making, seed=seed))

    def value(self, units: Sequence[Float[np.ndarray, "p"]]) -> np.ndarray:
        """Pixels [h w c], frames [f h w c], log-mel frames [f m], or a series' points.

        Args:
            units: as the listener heard them; fewer than wanted where a sound has ended.
        """
        whole = np.concatenate([self.known, np.stack(units)]) if units else self.known
        grid = self.grid[: len(whole)]
        if self.scale is not None:
            return series.join(whole, grid, self.spec, self.scale)[self.past : self.past + self.points]
        return HANDLERS[self.sense].join(whole, grid, self.spec)


def planned(base: Base, wanted: Wanted, context: int) -> Plan:
    """How a thing is made.

    Args:
        base: the model with its tokenizer.
        wanted: the thing.
        context: longest sequence, in positions.
    Raises:
        ConfigError: the model never learned the sense, or what is wanted makes nothing or is too long; the hint says what would fit.
        DataError: a series has too short a past.
    """
    sense = SENSE_OF[type(wanted)]
    spec = spec_of(base, sense)
    at_least(steps=wanted.steps)
    scale, past, points = None, 0, 0
    known = np.zeros((0, spec.unit_width), np.float32)
    if isinstance(wanted, Future):
        at_least(points=wanted.points)
        kept, scale = _past(wanted.past, spec)
        known, past, points = series.cut(kept, spec, scale).values, len(kept), wanted.points
        caption, guidance, counts = wanted.name, 1.0, (len(known) + -(-points // spec.points), 1, 1)
    elif isinstance(wanted, Sound):
        if not 0 < wanted.most_s < float("inf"):
            raise ConfigError(f"{wanted.most_s} s of sound cannot be made", "3 s are usual")
        caption, guidance, counts = wanted.caption, wanted.guidance, (max(FEWEST_UNITS, round(wanted.most_s * 1000 / spec.hop_ms / spec.frames)), 1, 1)
    elif isinstance(wanted, Clip):
        caption, guidance, side = wanted.caption, wanted.guidance, spec.size // spec.patch
        counts = (-(-wanted.frames // spec.frames), side, side)
    else:
        caption, guidance = wanted.caption, wanted.guidance
        if wanted.side is not None and any(one % spec.patch for one in wanted.side):
            near = " x ".join(str(max(1, one // spec.patch) * spec.patch) for one in wanted.side)
            raise ConfigError(f"sides of {wanted.side[0]} x {wanted.side[1]} are no multiples of the {spec.patch} pixels of a patch", f"{near} would do")
        side_of = wanted.known.shape[:2] if wanted.known is not None else wanted.side or (spec.size, spec.size)
        counts = (1, side_of[0] // spec.patch, side_of[1] // spec.patch)
        if wanted.known is not None:
            values = HANDLERS["image"].cut(wanted.known, spec).values
            known = values[: max(1, min(len(values) - 1, round(wanted.known_share * len(values))))]
    words = base.encoder.encode(caption).tolist() if caption else []
    grid = _grid(spec, len(words) + 2, context, *counts)
    start, mark = base.model.config.special_ids["<|endoftext|>"], base.model.config.special_ids[f"<|{sense}|>"]
    both_ways = sense in ("image", "video")
    positions = _begun(base, [start, *words, mark], sense, known, grid, both_ways)
    without = _begun(base, [start, mark], sense, known, grid, both_ways) if words and guidance != 1.0 else None
    making = Making(sense, grid[len(known) :], 0, wanted.steps, guidance, without, may_end=sense == "audio")
    return Plan(sense, positions, making, spec, grid, known, scale, past, points)


def spec_of(base: Base, sense: ContinuousSense) -> Any:
    """What a unit of a sense is.

    Raises:
        ConfigError: the model never learned it.
    """
    present = base.model.config.senses.present()
    if (spec := present.get(sense)) is None:
        raise ConfigError(f"the model never learned {sense}", f"it knows text{''.join(f', {name}' for name in CONTINUOUS if name in present)}")
    return spec


def at_least(**asked: int) -> None:
    """Refuse what makes nothing.

    Raises:
        ConfigError: one of them is below 1.
    """
    for name, number in asked.items():
        if number < 1:
            raise ConfigError(f"{name} = {number} makes nothing", "give 1 or more")


def _past(values: Float[np.ndarray, "t"], spec: SeriesSpec) -> tuple[Float[np.ndarray, "t"], series.Normalisation]:
    """What of a series is looked at, whole units of it, and the statistics that it is measured with."""
    if len(values) < spec.points:
        raise DataError(f"{len(values)} points are too few to forecast from", f"give at least {spec.points}")
    past = np.asarray(values, np.float64)[len(values) % spec.points :][-spec.max_points // 2 :]
    if not np.isfinite(past).all():
        raise DataError("the past holds what is no number", "leave such points out, or fill them in")
    mean = float(past.mean())
    return past, series.Normalisation(mean, max(float(past.std()), LEAST_SPREAD * max(1.0, abs(mean))))


def _grid(spec: Any, before: int, longest: int, frames: int, rows: int, columns: int) -> Int[np.ndarray, "n 3"]:
    """Places of what is to be made; refuses what is longer than anything the model was made for, and says what would fit."""
    at_least(frames=frames, rows=rows, columns=columns)
    count = frames * rows * columns
    if before + count <= longest:
        return grid_of(frames, rows, columns)
    room = max(0, longest - before)
    fits = f"{room} patches"
    if isinstance(spec, AudioSpec):
        fits = f"{room * spec.frames * spec.hop_ms / 1000:.1f} s of sound"
    elif isinstance(spec, SeriesSpec):
        fits = f"{room * spec.points} points, past and forecast together,"
    raise ConfigError(f"{before} tokens and {count} units are more than the model's {longest} positions", f"{fits} would fit behind this prompt")


def _begun(base: Base, ids: Sequence[int], sense: ContinuousSense, known: np.ndarray, grid: np.ndarray, both_ways: bool) -> Positions:
    """Tokens, and behind them the known units; those of a picture see each other both ways."""
    words, kept = len(ids), len(known)
    number = np.zeros(words + kept, np.int8)
    number[words:] = SENSES.index(sense)
    block = np.zeros(words + kept, np.int32)
    block[words:] = int(both_ways)
    tokens = np.array([*ids, *[base.pad_id] * kept], np.int32)
    made = Positions(tokens, number, block, np.zeros(words + kept, bool))
    if kept:
        made.units, made.grid, made.unit_loss = {sense: known}, {sense: grid[:kept]}, {sense: np.zeros(kept, bool)}
    return made
