"""Moving pictures: PyAV -> frames at the spec's rate and size -> tubelets, and back to an animated GIF."""

from __future__ import annotations

import io

import av
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from bedplate.core.errors import DataError
from bedplate.modality.image import MOST_PIXELS, fit
from bedplate.modality.specs import ImageSpec, VideoSpec
from bedplate.modality.units import Units, cut_pixels, join_pixels

Frames = UInt8[np.ndarray, "f h w c"]


def decode(data: bytes, spec: VideoSpec) -> Frames:
    """The first `spec.max_frames` frames at `spec.frames_per_s`. `decode_pieces` gives the whole.

    Raises:
        DataError: there is no readable video in it.
    """
    return decode_pieces(data, spec, most_pieces=1)[0]


def decode_pieces(data: bytes, spec: VideoSpec, most_pieces: int = 64) -> list[Frames]:
    """A clip in pieces of at most `spec.max_frames` frames; a damaged end is left out."""
    size = ImageSpec(size=spec.size, patch=spec.patch, channels=spec.channels)
    frames: list[np.ndarray] = []
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:
                raise DataError("there is no video in the file", "it holds other streams only")
            stream = container.streams.video[0]
            if stream.width * stream.height > MOST_PIXELS:
                raise DataError(f"frames claim {stream.width} x {stream.height} pixels", f"at most {MOST_PIXELS:,} are read")
            due = 0.0
            for index, frame in enumerate(container.decode(stream)):
                at = float(frame.time) if frame.time is not None else index / spec.frames_per_s
                if at + 0.25 / spec.frames_per_s < due:  # clocks of files are rounded
                    continue
                due = max(due + 1 / spec.frames_per_s, at)
                frames.append(fit(frame.to_image(), size))
                if len(frames) >= spec.max_frames * most_pieces:
                    break
    except DataError:
        raise
    except Exception as error:  # FFmpeg's errors are many, and a damaged end still leaves a good beginning
        if not frames:
            raise DataError(f"not a readable video: {error}", "the file is damaged or its codec is unknown") from error
    if not frames:
        raise DataError("the video has no frames", "the file is damaged")
    return [np.stack(frames[start : start + spec.max_frames]) for start in range(0, len(frames), spec.max_frames)]


def cut(frames: Frames, spec: VideoSpec) -> Units:
    """Tubelets, frame after frame in reading order."""
    return cut_pixels(frames, spec.frames, spec.patch, spec.mean, spec.std)


def join(values: Float[np.ndarray, "n p"], grid: Int[np.ndarray, "n 3"], spec: VideoSpec) -> Frames:
    """The inverse of `cut`."""
    return join_pixels(values, grid, spec.frames, spec.patch, spec.channels, spec.mean, spec.std)


def encode(frames: Frames, frames_per_s: float = 8.0) -> bytes:
    """Animated GIF bytes."""
    pictures = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]
    out = io.BytesIO()
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / frames_per_s), loop=0)
    return out.getvalue()
