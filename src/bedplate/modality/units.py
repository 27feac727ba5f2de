"""What cutting a value gives: flat units and where each stood. Shared by every continuous sense."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8


class Units(NamedTuple):
    """Units of one segment in reading order."""

    values: Float[np.ndarray, "n p"]
    """Normalised by the spec's affine."""
    grid: Int[np.ndarray, "n 3"]
    """(frame, row, column)."""


def grid_of(frames: int, rows: int, columns: int) -> Int[np.ndarray, "n 3"]:
    """Places of a whole grid in reading order."""
    return _grid_of(frames, rows, columns).copy()


@functools.lru_cache(maxsize=256)  # a corpus has few sizes, and making a grid costs more than cutting a small picture
def _grid_of(frames: int, rows: int, columns: int) -> Int[np.ndarray, "n 3"]:
    return np.stack(np.meshgrid(np.arange(frames), np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 3).astype(np.int16)


def cut_pixels(pixels: UInt8[np.ndarray, "f h w c"], frames: int, patch: int, mean: float, std: float) -> Units:
    """Tubelets of frames x patch x patch pixels. What does not fill one at the end of a side is left out; the last tubelet repeats its last frame."""
    if missing := -len(pixels) % frames:
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, 0)])
    f, h, w, c = pixels.shape
    count = (f // frames, h // patch, w // patch)
    whole = pixels[:, : count[1] * patch, : count[2] * patch]
    parts = whole.reshape(count[0], frames, count[1], patch, count[2], patch, c).transpose(0, 2, 4, 1, 3, 5, 6)  # [F R C f p p c]
    values = parts.reshape(-1, frames * patch * patch * c).astype(np.float32) / 255.0
    return Units((values - mean) / std, grid_of(*count))


def join_pixels(
    values: Float[np.ndarray, "n p"], grid: Int[np.ndarray, "n 3"], frames: int, patch: int, channels: int, mean: float, std: float
) -> UInt8[np.ndarray, "f h w c"]:
    """Pixels from tubelets, the inverse of `cut_pixels`; places without a unit stay black."""
    count = grid.max(0).astype(int) + 1
    whole = np.zeros((*count, frames, patch, patch, channels), np.uint8)
    pixels = np.clip(np.rint((values * std + mean) * 255.0), 0, 255).astype(np.uint8)
    whole[tuple(grid.T.astype(int))] = pixels.reshape(-1, frames, patch, patch, channels)
    return whole.transpose(0, 3, 1, 4, 2, 5, 6).reshape(count[0] * frames, count[1] * patch, count[2] * patch, channels)
