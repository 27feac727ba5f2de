"""The table of continuous senses: how each is cut into units and put back together. Others loop over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bedplate.modality import audio, image, series, video
from bedplate.modality.specs import ContinuousSense
from bedplate.modality.units import Units


class Handler(NamedTuple):
    """What is done with one sense; each function takes the sense's own spec."""

    cut: Callable[[np.ndarray, Any], Units]
    join: Callable[[np.ndarray, np.ndarray, Any], np.ndarray]


HANDLERS: dict[ContinuousSense, Handler] = {
    "image": Handler(image.cut, image.join),
    "audio": Handler(audio.cut, audio.join),
    "video": Handler(video.cut, video.join),
    "series": Handler(series.cut, series.join),
}


def unit_count(sense: ContinuousSense, shape: tuple[int, ...], spec: Any) -> int:
    """Units that a value of `shape` gives, without looking at it."""
    if sense == "image":
        return int((shape[0] // spec.patch) * (shape[1] // spec.patch))
    if sense == "audio":
        return int(-(-shape[0] // spec.frames))
    if sense == "video":
        return int(-(-shape[0] // spec.frames) * (shape[1] // spec.patch) * (shape[2] // spec.patch))
    return int(-(-shape[0] // spec.points))
