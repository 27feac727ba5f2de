"""What a model made, ready for a page: text, and files embedded as data: URIs.

A path in a log is input from elsewhere: only files inside the run folder are read, only known kinds, only up to a size.
"""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bedplate.core.narrate import number
from bedplate.core.units import format_bytes
from bedplate.report import figures
from bedplate.report.log import Event, RunLog

MIME = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".csv": "text/csv",
}
LARGEST_BYTES = 4 << 20
"""Of one embedded file."""
LARGEST_PAGE_BYTES = 48 << 20
"""Of all embedded files of one page."""


@dataclass(frozen=True)
class Sample:
    """One thing that the model made. `kind` is "text", "image", "audio", "video", "series" or "missing"."""

    sense: str
    step: int | None
    kind: str
    caption: str = ""
    text: str = ""
    uri: str = ""
    picture: str = ""
    """SVG of a series, or data: URI of a sound's spectrogram."""


def collect(log: RunLog) -> list[Sample]:
    """The samples of a run, newest first; for what could not be embedded, why."""
    left = LARGEST_PAGE_BYTES
    out = []
    for event in reversed(log.named("sample")):
        sample = _sample(event, log.folder, left)
        left -= len(sample.uri) + len(sample.picture)
        out.append(sample)
    return out


def inside(folder: Path, written: str) -> Path | None:
    """The file that a log means by a path, if it lies in the run folder; the folder may have been moved since."""
    root = folder.resolve()
    path = Path(written)
    parts = path.parts
    moved = [root.joinpath(*parts[n + 1 :]) for n, part in enumerate(parts) if part == root.name]
    for candidate in (root / path, path, *moved):
        try:
            resolved = candidate.resolve()
            if resolved.is_relative_to(root) and resolved.is_file():
                return resolved
        except (OSError, ValueError, RuntimeError):  # a name the file system refuses, a circle of links
            continue
    return None


def data_uri(data: bytes, mime: str) -> str:
    """Bytes as a data: URI."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _sample(event: Event, folder: Path, left: int) -> Sample:
    sense = str(event.get("sense", ""))
    at = number(event.get("step"))
    step = int(at) if np.isfinite(at) else None
    caption = str(event.get("prompt") or event.get("label") or "")
    if not event.get("path"):
        return Sample(sense, step, "text", caption, text=str(event.get("text", ""))[:4000])
    written = str(event["path"])
    path = inside(folder, written)
    mime = MIME.get(Path(written).suffix.lower())
    problem = "the file is not in the run folder" if path is None else "files of this kind are not shown" if mime is None else ""
    if path is not None and not problem and (size := path.stat().st_size) > min(LARGEST_BYTES, left):
        problem = f"{format_bytes(size)} are too much for one page"
    if path is None or mime is None or problem:
        return Sample(sense, step, "missing", caption, text=f"{Path(written).name}: {problem}")
    return _embedded(Sample(sense, step, mime.partition("/")[0], caption or str(event.get("text", ""))[:200]), path, mime)


def _embedded(sample: Sample, path: Path, mime: str) -> Sample:
    data = path.read_bytes()
    try:
        if mime == "text/csv":
            return replace(sample, kind="series", picture=figures.series(read_series(data)))
        picture = data_uri(_spectrogram(data), "image/png") if sample.kind == "audio" else ""
    except (ValueError, OSError, RuntimeError) as error:  # a broken file is a finding, not a reason to have no report
        return replace(sample, kind="missing", text=f"{path.name} cannot be read: {error}")
    return replace(sample, uri=data_uri(data, mime), picture=picture)


def read_series(data: bytes) -> np.ndarray:
    """The last numeric column of a CSV.

    Raises:
        ValueError: it holds no numbers.
    """
    rows = list(csv.reader(io.StringIO(data.decode("utf-8", errors="replace"))))
    values = np.array([number(row[-1]) for row in rows if row], dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError("no numbers in it")
    return values


def _spectrogram(data: bytes) -> bytes:
    import soundfile

    with soundfile.SoundFile(io.BytesIO(data)) as handle:
        sound = handle.read(frames=min(handle.frames, 60 * handle.samplerate), dtype="float32", always_2d=True)
        return figures.spectrogram(sound.mean(axis=1), handle.samplerate)
