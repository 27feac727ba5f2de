"""Pictures: any file Pillow (or, for DICOM, pydicom) reads -> upright pixels of the spec's size -> patches, and back to PNG."""

from __future__ import annotations

import io
import warnings

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps

from bedplate.core.errors import DataError
from bedplate.modality.specs import ImageSpec
from bedplate.modality.units import Units, cut_pixels, join_pixels

MOST_PIXELS = 100_000_000
"""A picture that claims more is a bomb or a mistake."""

Pixels = UInt8[np.ndarray, "h w c"]


def decode(data: bytes, spec: ImageSpec) -> Pixels:
    """Upright pixels, the longest side at most `spec.size`, sides multiples of the patch.

    Raises:
        DataError: it is no picture, is truncated, or is too large.
    """
    return fit(open_picture(data), spec)


def open_picture(data: bytes) -> Image.Image:
    """The first frame, turned upright, transparency laid on white, in RGB or L."""
    if data[128:132] == b"DICM":
        return Image.fromarray(_dicom(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture: Image.Image = Image.open(io.BytesIO(data))
            if picture.width * picture.height > MOST_PIXELS:
                raise DataError(f"the picture claims {picture.width} x {picture.height} pixels", f"at most {MOST_PIXELS:,} are read")
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith(("I", "F")):
                values = np.asarray(picture, np.float64)
                low, high = float(values.min()), float(values.max())
                return Image.fromarray(((values - low) / max(high - low, 1e-9) * 255).astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
                picture = Image.alpha_composite(ground, picture)
            return picture if picture.mode == "L" else picture.convert("L" if picture.mode == "1" else "RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on hostile input
        raise DataError(f"not a readable picture: {error}", "the file is damaged or of a kind Pillow does not know") from error


def fit(picture: Image.Image, spec: ImageSpec) -> Pixels:
    """Scaled so that the longest side is at most `spec.size` (small pictures grow to it only from below half), sides rounded to patches."""
    longest = max(picture.size)
    scale = spec.size / longest if longest > spec.size or longest * 2 < spec.size else 1.0
    sides = [min(spec.size // spec.patch, max(1, round(side * scale / spec.patch))) * spec.patch for side in picture.size]
    picture = picture.convert("L" if spec.channels == 1 else "RGB")
    if tuple(sides) != picture.size:
        picture = picture.resize((sides[0], sides[1]), Image.Resampling.BICUBIC if scale >= 1 else Image.Resampling.LANCZOS)
    pixels = np.asarray(picture, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def cut(pixels: Pixels, spec: ImageSpec) -> Units:
    """Patches in reading order."""
    return cut_pixels(pixels[None], 1, spec.patch, spec.mean, spec.std)


def join(values: Float[np.ndarray, "n p"], grid: Int[np.ndarray, "n 3"], spec: ImageSpec) -> Pixels:
    """The inverse of `cut`."""
    pixels: Pixels = join_pixels(values, grid, 1, spec.patch, spec.channels, spec.mean, spec.std)[0]
    return pixels


def encode(pixels: Pixels) -> bytes:
    """PNG bytes."""
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(out, "PNG")
    return out.getvalue()


def _dicom(data: bytes) -> UInt8[np.ndarray, "h w"]:
    try:
        import pydicom
    except ImportError as error:
        raise DataError("DICOM needs pydicom", "pip install 'bedplate[medical]'") from error
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        values = np.asarray(dataset.pixel_array, np.float64)
        values = values[0] if values.ndim > 2 and int(getattr(dataset, "SamplesPerPixel", 1)) == 1 else values
        values = values.mean(-1) if values.ndim == 3 else values
        values = values * float(getattr(dataset, "RescaleSlope", 1)) + float(getattr(dataset, "RescaleIntercept", 0))
        centre, width = getattr(dataset, "WindowCenter", None), getattr(dataset, "WindowWidth", None)
        if centre is not None and width is not None:
            centre, width = (float(np.atleast_1d(v)[0]) for v in (centre, width))
            low, high = centre - width / 2, centre + width / 2
        else:
            low, high = float(values.min()), float(values.max())
        grey = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255
        return (255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey).astype(np.uint8)
    except Exception as error:  # pydicom raises many kinds on hostile input
        raise DataError(f"not a readable DICOM picture: {error}", "the file is damaged or its transfer syntax needs another decoder") from error
