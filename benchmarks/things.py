"""Labelled things for the benchmarks of learning without labels: digits, spoken digits, small photographs, blood cells.

Labels are kept beside the things and never written where a corpus is built from; the test part is never written at all.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from bedplate.core.config import load
from bedplate.core.run import Run
from bedplate.data.build import build
from bedplate.data.build_settings import BuildSettings
from bedplate.data.corpus import Corpus, StoredSegment
from bedplate.modality import audio, image
from bedplate.modality.specs import SenseSpecs
from benchmarks.inputs import SHARED

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Thing:
    """A file with its label."""

    data: bytes
    label: int
    suffix: str
    test: bool


@dataclass(frozen=True)
class Things:
    """A set of labelled files."""

    name: str
    sense: str
    classes: tuple[str, ...]
    things: tuple[Thing, ...]
    specs: dict[str, dict[str, float | int]]

    def part(self, test: bool) -> list[Thing]:
        """The training or the test part."""
        return [thing for thing in self.things if thing.test == test]


def digits() -> Things:
    """MNIST, 10,000 handwritten digits; every fifth is for testing."""
    found = []
    with zipfile.ZipFile(SHARED / "images" / "mnist10k.zip") as archive:
        for label in range(10):
            values = np.array(json.loads(archive.read(f"src/digits/{label}.json"))["data"], np.float32).reshape(-1, 28, 28)
            for number, picture in enumerate(values):
                found.append(Thing(_png((picture * 255).astype(np.uint8)), label, ".png", number % 5 == 0))
    return Things("mnist10k", "image", WORDS, tuple(found), {"image": {"size": 28, "patch": 4, "channels": 1, "mean": 0.13, "std": 0.31}})


def spoken_digits() -> Things:
    """FSDD, 3,000 recordings by six speakers; the first five of each speaker and digit are for testing, as its authors propose."""
    found = []
    with zipfile.ZipFile(SHARED / "audio" / "fsdd.zip") as archive:
        for name in sorted(archive.namelist()):
            digit, _, number = name.removesuffix(".wav").split("_")
            found.append(Thing(archive.read(name), int(digit), ".wav", int(number) < 5))
    return Things("fsdd", "audio", WORDS, tuple(found), spoken_digits_spec())


SPEAKERS_APART = ("theo", "yweweler")
"""The last two of the six by name: for judging alone."""


ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "de", "fr", "nl", "es", "pt-br", "it", "pl")
VOICES = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "Andy", "Annie", "Gene", "Lee", "Mike", "adam", "ed", "linda", "zac")
"""Of espeak-ng."""


def new_speakers() -> Things:
    """FSDD, judged by two of its six speakers, whom neither the base nor a label ever showed."""
    found = []
    with zipfile.ZipFile(SHARED / "audio" / "fsdd.zip") as archive:
        for name in sorted(archive.namelist()):
            digit, speaker, _ = name.removesuffix(".wav").split("_")
            found.append(Thing(archive.read(name), int(digit), ".wav", speaker in SPEAKERS_APART))
    return Things("fsdd", "audio", WORDS, tuple(found), spoken_digits_spec())


def spoken_digits_spec() -> dict[str, dict[str, float | int]]:
    """What a unit of those recordings is."""
    return {"audio": {"sample_rate": 8000, "mels": 40, "frames": 4, "max_s": 1.2, "mean": -4.0, "std": 3.0}}


def photographs() -> Things:
    """CIFAR-10, 10,000 for training and 2,000 for testing."""
    found, classes = [], []
    with zipfile.ZipFile(SHARED / "images" / "cifar10.zip") as archive:
        names = sorted(archive.namelist())
        classes = sorted({name.split("/")[1] for name in names})
        for name in names:
            split, kind, _ = name.split("/")
            found.append(Thing(archive.read(name), classes.index(kind), ".jpg", split == "test"))
    return Things("cifar10", "image", tuple(classes), tuple(found), {"image": {"size": 32, "patch": 4, "channels": 3, "mean": 0.47, "std": 0.25}})


def cells() -> Things:
    """BCCD: the boxes of white cells, red cells and platelets cut out of 364 microscope pictures; pictures, not boxes, are held out."""
    classes = ("WBC", "RBC", "Platelets")
    found = []
    with zipfile.ZipFile(SHARED / "images" / "blood-cells.zip") as archive:
        for number, name in enumerate(sorted(n for n in archive.namelist() if n.endswith(".xml"))):
            tree = ElementTree.fromstring(archive.read(name))
            try:
                picture = Image.open(io.BytesIO(archive.read(name.replace("Annotations", "JPEGImages").replace(".xml", ".jpg")))).convert("RGB")
            except KeyError:
                continue
            for box in tree.iter("object"):
                kind = str(box.findtext("name"))
                edges = [int(str(box.findtext(f"bndbox/{edge}"))) for edge in ("xmin", "ymin", "xmax", "ymax")]
                if kind in classes and edges[2] - edges[0] > 8 and edges[3] - edges[1] > 8:
                    part = picture.crop((edges[0], edges[1], edges[2], edges[3])).resize((32, 32), Image.Resampling.LANCZOS)
                    found.append(Thing(_png(np.asarray(part)), classes.index(kind), ".png", number % 4 == 0))
    return Things("blood_cells", "image", classes, tuple(found), {"image": {"size": 32, "patch": 4, "channels": 3, "mean": 0.7, "std": 0.2}})


def spoken_words(folder: Path, count: int) -> None:
    """Words of spoken prompts by synthetic voices of every kind, as WAV files without their texts.

    Args:
        folder: to be filled.
        count: files; which word, voice and speed each has follows from its number.
    """
    with zipfile.ZipFile(SHARED / "audio" / "prompts.zip") as archive:
        name = next(name for name in archive.namelist() if name.endswith("core-sounds-en.txt.gz"))
        told = gzip.decompress(archive.read(name)).decode()
    words = sorted({word for line in told.splitlines() if ":" in line for word in re.findall("[a-z]{2,}", line.split(":", 1)[1].lower())})
    draws = np.random.default_rng(3)
    asked = [
        {
            "file": f"word-{number:05d}.wav",
            "text": words[draws.integers(len(words))],
            "voice": f"{ACCENTS[draws.integers(len(ACCENTS))]}+{VOICES[draws.integers(len(VOICES))]}",
            "speed": int(draws.integers(110, 210)),
        }
        for number in range(count)
    ]
    command = [sys.executable, "-m", "bedplate.advise.tour.speech", str(folder)]  # a program of its own: docs/decisions/0002
    subprocess.run(command, input=json.dumps(asked), text=True, check=True)


def build_corpus(things: Things, folder: Path, caption: str = "", more: Callable[[Path], None] | None = None) -> Corpus:
    """The training part as a corpus by the product's own build; with a caption such as "digit {}" as pairs, else without any label.

    Args:
        things: what.
        folder: where raw files and corpus go.
        caption: "" or a text with {} for the class's name.
        more: writes further files, which have no label, into the folder of raw files.
    """
    corpus = folder / "corpus"
    if not (corpus / "manifest.json").exists():
        raw = folder / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        part = things.part(test=False)
        order = np.random.default_rng(0).permutation(len(part))  # file names must not tell the class either
        for number, index in enumerate(order):
            thing = part[index]
            (raw / f"{number:05d}{thing.suffix}").write_bytes(thing.data)
            if caption:
                (raw / f"{number:05d}.txt").write_text(caption.format(things.classes[thing.label]))
        if more is not None:
            more(raw)
        overrides = [f"specs.{sense}.{key}={value}" for sense, spec in things.specs.items() for key, value in spec.items()]
        resolved = load(
            BuildSettings,
            overrides=["dedupe.exact=false", "dedupe.near=false", "poison.look=false", *overrides],
            given={"inputs": [str(raw)], "output": str(corpus)},
        )
        with Run.open(folder / "build", "data build", resolved) as run:
            build(resolved.value, run)
    return Corpus.open(corpus)


def documents(things: Things, specs: SenseSpecs, test: bool) -> tuple[list[list[StoredSegment]], np.ndarray]:
    """(segments of each thing, labels), in an order that mixes the classes."""
    part = things.part(test)
    order = np.random.default_rng(1).permutation(len(part))
    decoded = []
    for index in order:
        data = part[index].data
        value = image.decode(data, specs.image) if things.sense == "image" and specs.image else audio.decode(data, specs.audio)  # type: ignore[arg-type]
        decoded.append([StoredSegment(things.sense, value)])  # type: ignore[arg-type]
    return decoded, np.array([part[index].label for index in order])


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
