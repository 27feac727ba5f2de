"""Gathers real input from what a fresh machine has: ordinary files in one folder, as a user's own would lie there.

    code/     the standard library's sources            text/    docstrings, help topics, licences and descriptions of packages
    digits/   scikit-learn's handwritten digits         photos/  its two photographs, in crops
    speech/   words spoken by espeak-ng, with text      video/   clips of digits that move
    machine/  this machine's own counters while it works

The captions of the digits name zero to four only: five to nine are seen without a name, so that learning them from a few labels later is a
fair test. A part of all digits is never written.
"""

from __future__ import annotations

import ast
import csv
import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bedplate.core.errors import ResourceError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMED = 5
"""Digits below this have captions."""
HELD_OUT = 400
"""Digits that are never written."""
SIDE = 16
"""Pixels of a digit's side, twice the original's."""

WORDS = (*NAMES, "yes", "no", "stop", "go", "open", "close", "alarm", "server", "network", "model")
ROWS_A_TABLE = 100
"""Samples in a file of telemetry: enough for a past and a future, and so few that there are ten files, of which one is held out."""
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-us+f3", "en-gb+f2", "en-us+m3", "en-gb+m7", "en-us+f4")
SPEEDS = (130, 150, 170, 190)

Tell = Callable[[int, int, str], None]
"""(done, of, what)."""


class Digits(NamedTuple):
    """Handwritten digits as pixels."""

    pixels: np.ndarray
    """uint8 [n side side]."""
    labels: np.ndarray


def load_digits() -> tuple[Digits, Digits]:
    """scikit-learn's 1,797 digits: (those that are learned from, those that are held out)."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ResourceError("the tour needs scikit-learn for its pictures", "pip install 'bedplate[tour]'") from error
    from PIL import Image

    data = load()
    small = (data.images / 16 * 255).astype(np.uint8)
    pixels = np.stack([np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in small])
    order = np.random.default_rng(0).permutation(len(pixels))
    kept, held_out = order[HELD_OUT:], order[:HELD_OUT]
    return Digits(pixels[kept], data.target[kept]), Digits(pixels[held_out], data.target[held_out])


def gather(folder: Path, tell: Tell, megabytes: float = 3.0, share: float = 1.0) -> dict[str, int]:
    """Write everything; how many files each part has.

    Args:
        folder: made when missing.
        tell: hears of progress.
        megabytes: of code, and of text.
        share: of pictures, words and clips; below 1 for a small tour.
    """
    counters = Counters(folder / "machine")
    counters.start()
    parts: list[tuple[str, Callable[[Path], int]]] = [
        ("code", lambda to: _code(to, megabytes)),
        ("text", lambda to: _text(to, megabytes)),
        ("digits", lambda to: _digits(to, share)),
        ("photos", lambda to: _photos(to, share)),
        ("speech", lambda to: _speech(to, share)),
        ("video", lambda to: _video(to, share)),
    ]
    counts = {}
    for number, (name, write) in enumerate(parts):
        tell(number, len(parts) + 1, name)
        (folder / name).mkdir(parents=True, exist_ok=True)
        counts[name] = write(folder / name)
    tell(len(parts), len(parts) + 1, "machine")
    counts["machine"] = counters.finish(least_rows=round(1200 * max(share, 0.3)))
    return counts


class Counters:
    """Samples this machine's counters in the background, about fifty times a second."""

    HEADER = ("cpu percent", "memory used MB", "network received kB", "disk written kB", "context switches", "load average")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[list[float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="counters", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self, least_rows: int) -> int:
        """Wait for a last burst where the work was too short, stop, and write the tables; how many."""
        deadline = time.monotonic() + 20
        while len(self.rows) < least_rows and time.monotonic() < deadline:
            time.sleep(0.1)
        self._stop.set()
        self._thread.join()
        self.folder.mkdir(parents=True, exist_ok=True)
        tables = range(0, len(self.rows), ROWS_A_TABLE)
        for number, first in enumerate(tables):
            with (self.folder / f"counters-{number:02d}.csv").open("w", newline="") as handle:
                writer = csv.writer(handle)
                writer.writerow(self.HEADER)
                writer.writerows(self.rows[first : first + ROWS_A_TABLE])
        return len(tables)

    def _sample(self) -> None:
        import psutil

        psutil.cpu_percent()
        before: tuple[float, float, float] | None = None
        while not self._stop.wait(0.02):
            network, disk = psutil.net_io_counters(), psutil.disk_io_counters()
            sums = (
                float(network.bytes_recv) if network else 0.0,
                float(disk.write_bytes) if disk else 0.0,
                float(psutil.cpu_stats().ctx_switches),
            )
            if before is not None:
                received, written, switches = (now - then for now, then in zip(sums, before))
                memory = psutil.virtual_memory().used / 1e6
                self.rows.append([psutil.cpu_percent(), memory, received / 1e3, written / 1e3, switches, psutil.getloadavg()[0]])
            before = sums


def _code(folder: Path, megabytes: float) -> int:
    """Modules of the standard library, evenly chosen until the size is reached."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = ("site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "ensurepip", "pydoc_data")
    paths = [p for p in sorted(root.rglob("*.py")) if not set(p.relative_to(root).parts) & set(skipped) and 500 < p.stat().st_size < 120_000]
    return _copy(paths, folder, root, megabytes)


def _text(folder: Path, megabytes: float) -> int:
    """Docstrings, pydoc's help topics, and the licences and descriptions of installed packages."""
    count = 0
    left = megabytes * 1e6
    root = Path(sysconfig.get_paths()["stdlib"])
    topics = root / "pydoc_data" / "topics.py"
    if topics.exists():
        for name, text in _constants(topics).items():
            (folder / f"topic-{name.replace('/', '-')}.rst").write_text(text, encoding="utf-8")
            left -= len(text)
            count += 1
    for distribution in sorted(importlib.metadata.distributions(), key=lambda d: str(d.metadata["Name"])):
        name = str(distribution.metadata["Name"])
        texts = {"description": str(distribution.metadata.get_payload() or "")}  # type: ignore[attr-defined]
        for file in distribution.files or []:
            if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE")):
                try:
                    texts[file.name] = file.read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
        for kind, text in texts.items():
            if len(text) > 400 and left > megabytes * 0.4e6:
                (folder / f"{name}-{kind}.txt").write_text(text[:60_000], encoding="utf-8")
                left -= min(len(text), 60_000)
                count += 1
    for path in sorted(root.glob("*.py")):
        text = _docstrings(path)
        if len(text) > 800 and left > 0:
            (folder / f"docs-{path.stem}.txt").write_text(text, encoding="utf-8")
            left -= len(text)
            count += 1
    return count


def _digits(folder: Path, share: float) -> int:
    from PIL import Image

    learned, _ = load_digits()
    count = round(len(learned.pixels) * share)
    for number in range(count):
        Image.fromarray(learned.pixels[number]).save(folder / f"{number:04d}.png")
        if learned.labels[number] < NAMED:
            (folder / f"{number:04d}.txt").write_text(f"handwritten digit {NAMES[learned.labels[number]]}")
    return count


def _photos(folder: Path, share: float) -> int:
    from PIL import Image
    from sklearn import datasets

    rng = np.random.default_rng(1)
    count = 0
    for name in ("china.jpg", "flower.jpg"):
        picture = Image.open(Path(datasets.__file__).parent / "images" / name).convert("RGB")
        for _ in range(round(100 * share)):
            side = int(rng.integers(96, 320))
            left, top = int(rng.integers(0, picture.width - side)), int(rng.integers(0, picture.height - side))
            part = picture.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.LANCZOS)
            part.save(folder / f"{name[:-4]}-{count:03d}.jpg", quality=92)
            count += 1
    return count


def _speech(folder: Path, share: float) -> int:
    words: list[dict[str, object]] = []
    for voice in VOICES[: max(1, round(len(VOICES) * share))]:
        for speed in SPEEDS:
            for text in WORDS:
                words.append({"file": f"{len(words):04d}.wav", "text": text, "voice": voice, "speed": speed})
    done = subprocess.run(
        [sys.executable, "-m", "bedplate.advise.tour.speech", str(folder)], input=json.dumps(words), text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise ResourceError(f"the speech synthesiser failed: {done.stderr.strip().splitlines()[-1:]}", "pip install 'bedplate[tour]'")
    for word in words:
        (folder / str(word["file"])).with_suffix(".txt").write_text(f"the word {word['text']}")
    return len(words)


def _video(folder: Path, share: float) -> int:
    """A digit that crosses the picture, bouncing at its edges."""
    import av

    learned, _ = load_digits()
    rng = np.random.default_rng(2)
    count = round(60 * share)
    side, frames = 32, 16
    for number in range(count):
        digit = learned.pixels[rng.integers(len(learned.pixels))]
        place, speed = rng.uniform(0, side - SIDE, 2), rng.uniform(-2.5, 2.5, 2)
        with av.open(str(folder / f"{number:03d}.mp4"), "w") as container:
            stream: Any = container.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = side, side, "yuv420p", 400_000
            for _ in range(frames):
                place += speed
                for axis in range(2):
                    if not 0 <= place[axis] <= side - SIDE:
                        speed[axis] *= -1
                        place[axis] = np.clip(place[axis], 0, side - SIDE)
                row, column = place.round().astype(int)
                picture = np.zeros((side, side, 3), np.uint8)
                picture[row : row + SIDE, column : column + SIDE] = digit[..., None]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return count


def _copy(paths: list[Path], folder: Path, root: Path, megabytes: float) -> int:
    order = np.random.default_rng(3).permutation(len(paths))
    left, count = megabytes * 1e6, 0
    for index in order:
        path = paths[int(index)]
        if left <= 0:
            break
        data = path.read_bytes()
        (folder / "-".join(path.relative_to(root).parts)).write_bytes(data)
        left -= len(data)
        count += 1
    return count


def _constants(path: Path) -> dict[str, str]:
    """The strings of a dictionary literal in a module, parsed, never run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str) and len(value.value) > 400:
                    found[str(key.value)] = value.value
    return found


def _docstrings(path: Path) -> str:
    """All docstrings of a module with the names they belong to."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return ""
    parts = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (text := ast.get_docstring(node)):
            name = getattr(node, "name", path.stem)
            parts.append(f"{name}\n{'-' * len(name)}\n{text}\n")
    return "\n".join(parts)
