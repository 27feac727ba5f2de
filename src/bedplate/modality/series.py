"""Telemetry: one channel of numbers -> units of consecutive points, normalised by what comes first, and back to CSV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bedplate.modality.specs import SeriesSpec
from bedplate.modality.units import Units, grid_of

MOST_SPREADS = 1000.0
"""Values further out than this many spreads are clipped."""


class Normalisation(NamedTuple):
    """Mean and spread of the part of a channel that counts as known."""

    mean: float
    std: float


def normalisation(values: Float[np.ndarray, "t"]) -> Normalisation:
    """Statistics of the first half: a forecast must not be scaled by its own future."""
    known = np.asarray(values[: max(1, len(values) // 2)], np.float64)
    mean, std = float(known.mean()), float(known.std())
    return Normalisation(mean, std if std > 1e-9 * max(1.0, abs(mean)) else max(1.0, abs(mean)))


def cut(values: Float[np.ndarray, "t"], spec: SeriesSpec, scale: Normalisation | None = None) -> Units:
    """Units of `spec.points` values; a last unit that is not full repeats its last value.

    Args:
        values: one channel in its own unit.
        spec: what a unit is.
        scale: other statistics than the first half's (a forecast uses those of its whole history).
    """
    scale = scale or normalisation(values)
    padded = np.pad(np.asarray(values, np.float64), (0, -len(values) % spec.points), mode="edge")
    # asinh: a spread near the mean stays a spread, but a burst counts as its logarithm, so that one outlier does not own the loss.
    normal = np.arcsinh(np.clip((padded - scale.mean) / scale.std, -MOST_SPREADS, MOST_SPREADS))
    units = ((normal.reshape(-1, spec.points) - spec.mean) / spec.std).astype(np.float32)
    return Units(units, grid_of(len(units), 1, 1))


def join(units: Float[np.ndarray, "n p"], grid: Int[np.ndarray, "n 3"], spec: SeriesSpec, scale: Normalisation | None = None) -> Float[np.ndarray, "t"]:
    """Values from units, in the channel's own unit when `scale` is given."""
    ordered = units[np.argsort(grid[:, 0], kind="stable")].reshape(-1) * spec.std + spec.mean
    scale = scale or Normalisation(0.0, 1.0)
    ordered = np.sinh(np.clip(ordered, -np.arcsinh(MOST_SPREADS), np.arcsinh(MOST_SPREADS)).astype(np.float64))
    return (ordered * scale.std + scale.mean).astype(np.float32)


def encode(channels: Mapping[str, Float[np.ndarray, "t"]]) -> bytes:
    """CSV bytes: a column a channel."""
    names = list(channels)
    lines = [",".join(names)]
    lines += [",".join("" if np.isnan(v) else f"{v:.6g}" for v in row) for row in zip(*(channels[name] for name in names), strict=True)]
    return ("\n".join(lines) + "\n").encode()
