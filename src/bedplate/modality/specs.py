"""What one unit of each continuous sense is. Chosen when a corpus is built, inherited by every model trained on it.

A unit is a small patch of numbers, flattened to `unit_width` values. Units are scaled by one affine per sense, `(x - mean) / std`,
stored here, so that generation can invert it. Source of the sizes: notes on next-patch prediction (AIM, MAR, JiT, Sundial).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ContinuousSense = Literal["image", "audio", "video", "series"]
Sense = Literal["text", "image", "audio", "video", "series"]

SENSES: tuple[Sense, ...] = ("text", "image", "audio", "video", "series")
"""Every sense; a sense's number in stored data and in `Batch.sense` is its index here (text = 0)."""

CONTINUOUS: tuple[ContinuousSense, ...] = ("image", "audio", "video", "series")


@dataclass(frozen=True)
class ImageSpec:
    """Pictures: patches of `patch` x `patch` pixels in `channels` colours, longest side at most `size`, sides multiples of `patch`."""

    size: int = 32
    patch: int = 4
    channels: int = 3
    mean: float = 0.5
    std: float = 0.5

    @property
    def unit_width(self) -> int:
        """Values in one unit."""
        return self.patch * self.patch * self.channels


@dataclass(frozen=True)
class AudioSpec:
    """Sound: `frames` consecutive log-mel frames of `mels` bands at `sample_rate`."""

    sample_rate: int = 16_000
    mels: int = 80
    window_ms: float = 25.0
    hop_ms: float = 10.0
    frames: int = 4
    max_s: float = 10.0
    mean: float = 0.0
    std: float = 1.0

    @property
    def unit_width(self) -> int:
        """Values in one unit."""
        return self.mels * self.frames


@dataclass(frozen=True)
class VideoSpec:
    """Moving pictures: tubelets of `frames` x `patch` x `patch` pixels, longest side at most `size`, sampled at `frames_per_s`."""

    size: int = 32
    patch: int = 8
    frames: int = 2
    channels: int = 3
    frames_per_s: float = 8.0
    max_frames: int = 32
    mean: float = 0.5
    std: float = 0.5

    @property
    def unit_width(self) -> int:
        """Values in one unit."""
        return self.frames * self.patch * self.patch * self.channels


@dataclass(frozen=True)
class SeriesSpec:
    """Telemetry: `points` consecutive values of one channel, normalised by the mean and std of the piece's first half."""

    points: int = 16
    max_points: int = 1024
    mean: float = 0.0
    std: float = 1.0

    @property
    def unit_width(self) -> int:
        """Values in one unit."""
        return self.points


@dataclass(frozen=True)
class SenseSpecs:
    """The specs of a corpus or a model; a sense that is None is absent."""

    image: ImageSpec | None = None
    audio: AudioSpec | None = None
    video: VideoSpec | None = None
    series: SeriesSpec | None = None

    def present(self) -> dict[ContinuousSense, ImageSpec | AudioSpec | VideoSpec | SeriesSpec]:
        """Name -> spec of the senses that are there, in the order of CONTINUOUS."""
        return {name: getattr(self, name) for name in CONTINUOUS if getattr(self, name) is not None}
