"""A forecast: what the sampled paths of a series have in common, and the table that tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

COLUMNS = ("median", "low", "high")


class Forecast(NamedTuple):
    """What may follow a series, in its own unit."""

    median: Float[np.ndarray, "t"]
    low: Float[np.ndarray, "t"]
    """A tenth of the sampled paths lie below."""
    high: Float[np.ndarray, "t"]
    """A tenth lie above."""


def of_paths(paths: Sequence[Float[np.ndarray, "t"]]) -> Forecast:
    """What some paths have in common."""
    low, median, high = np.quantile(np.stack(paths), [0.1, 0.5, 0.9], axis=0)
    return Forecast(median, low, high)


def encode(forecast: Forecast) -> bytes:
    """A CSV table with a column for each of COLUMNS; nine digits, so that nothing of a number of four bytes is lost."""
    lines = [",".join(COLUMNS), *(",".join(f"{value:.9g}" for value in row) for row in zip(*forecast))]
    return ("\n".join(lines) + "\n").encode()


def decode(data: bytes) -> Forecast:
    """The inverse of `encode`."""
    rows = np.array([[float(cell) for cell in line.split(",")] for line in data.decode().splitlines()[1:]])
    return Forecast(*rows.T)
