"""Tiny real corpora for tests: a few synthesised documents of every sense, written by the real writer in under a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.data.corpus import Corpus, CorpusWriter, StoredSegment
from bedplate.data.document import COMPONENTS, Component, Origin
from bedplate.modality.sequence import SPECIAL_TOKENS
from bedplate.modality.specs import AudioSpec, ImageSpec, SenseSpecs, SeriesSpec, VideoSpec

WORDS = (
    "the", "quiet", "river", "carries", "small", "boats", "past", "stone", "bridges", "while",
    "children", "count", "lamps", "and", "birds", "return", "before", "winter", "rain",
)
"""What tiny texts are made of."""

Value = np.ndarray
Part = str | tuple[str, Value]
"""Text, or (sense, value)."""


def tiny_specs(channels: int = 1) -> SenseSpecs:
    """Specs whose units are few: 28-pixel pictures, one-second sounds, short clips."""
    return SenseSpecs(
        image=ImageSpec(size=28, patch=4, channels=channels),
        audio=AudioSpec(sample_rate=8000, mels=40, frames=4, max_s=1.0, mean=-4.0, std=3.0),
        video=VideoSpec(size=16, patch=8, frames=2, channels=channels, max_frames=8),
        series=SeriesSpec(points=16, max_points=128),
    )


def tiny_tokenizer(vocabulary: int = 320) -> Any:
    """A byte-level BPE tokenizer trained on `tiny_text`, with the special tokens first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([tiny_text(np.random.default_rng(number), 60) for number in range(20)], trainer)
    return tokenizer


def tiny_text(rng: np.random.Generator, words: int) -> str:
    """Sentences of common words."""
    return " ".join(rng.choice(WORDS, words)) + ".\n"


def tiny_corpus(
    folder: Path,
    components: Sequence[Component] = COMPONENTS,
    documents: int = 24,
    *,
    channels: int = 1,
    vocabulary: int = 320,
    validation_share: float = 0.1,
    seed: int = 0,
) -> Corpus:
    """Write a small corpus and open it.

    Args:
        folder: an empty or missing folder.
        components: which parts; every picture, sound and clip has its caption before it.
        documents: documents in each component.
        channels: 1 grey or 3 colours, of pictures and clips.
        vocabulary: tokens, at least 272 (bytes and special tokens).
        validation_share: share held out.
        seed: of the content.
    """
    tokenizer = tiny_tokenizer(vocabulary)
    everything = tiny_specs(channels)
    specs = replace(everything, **{name: None for name in everything.present() if name not in components})
    writer = CorpusWriter(folder, specs=specs, tokenizer=tokenizer, validation_share=validation_share, seed=seed)
    for component in components:
        for number in range(documents):
            rng = np.random.default_rng([seed, COMPONENTS.index(component), number])
            parts = _MAKERS[component](rng, channels)
            text_bytes = sum(len(part.encode()) for part in parts if isinstance(part, str))
            segments = [_stored(part, tokenizer) for part in parts]
            origin = Origin(f"{component}/{number}", sha256=f"{number:064x}", licence="CC0-1.0")
            writer.add(component, segments, origin, text_bytes=text_bytes, language="python" if component == "code" else "")
    writer.seal(settings={"seed": seed})
    return Corpus.open(folder)


def _stored(part: Part, tokenizer: Any) -> StoredSegment:
    if isinstance(part, str):
        return StoredSegment("text", np.array(tokenizer.encode(part).ids, np.uint32))
    return StoredSegment(part[0], part[1])  # type: ignore[arg-type]


def _text(rng: np.random.Generator, channels: int) -> list[Part]:
    return [tiny_text(rng, int(rng.integers(10, 80)))]


def _code(rng: np.random.Generator, channels: int) -> list[Part]:
    a, b, c = rng.choice(WORDS, 3, replace=False)
    lines = [f"def {a}({b}):", f'    """{tiny_text(rng, 6).strip()}"""', f"    {c} = {b} + {rng.integers(100)}", f"    return {c}"]
    return ["\n".join(lines) + "\n"]


def _drawing(rng: np.random.Generator, size: int, channels: int) -> tuple[str, Value, Value, Value]:
    """A disc or a bar: its name, and the picture as a function of its centre in [0, 1]."""
    row, column = np.mgrid[0:size, 0:size] / size
    return ("disc" if rng.random() < 0.5 else "bar"), row, column, rng.integers(128, 256, channels)


def _paint(name: str, row: Value, column: Value, colour: Value, y: float, x: float) -> Value:
    inside = (row - y) ** 2 + (column - x) ** 2 < 0.06 if name == "disc" else abs(column - x) < 0.12
    return np.asarray(inside[:, :, None] * colour, np.uint8)


def _image(rng: np.random.Generator, channels: int) -> list[Part]:
    name, row, column, colour = _drawing(rng, 28, channels)
    return [f"a {name}", ("image", _paint(name, row, column, colour, *rng.uniform(0.3, 0.7, 2)))]


def _audio(rng: np.random.Generator, channels: int) -> list[Part]:
    high = int(rng.integers(2))
    frames = int(rng.integers(40, 98))
    band = np.arange(40)[None, :]
    centre = (25 if high else 8) + 3 * np.sin(np.arange(frames)[:, None] / 9)
    mel = -8 + 6 * np.exp(-(((band - centre) / 3) ** 2)) + rng.normal(0, 0.3, (frames, 40))
    return ["high" if high else "low", ("audio", mel.astype(np.float16))]


def _video(rng: np.random.Generator, channels: int) -> list[Part]:
    name, row, column, colour = _drawing(rng, 16, channels)
    frames = 2 * int(rng.integers(2, 5))
    path = np.linspace(0.25, 0.75, frames)
    return [f"a moving {name}", ("video", np.stack([_paint(name, row, column, colour, 0.5, x) for x in path]))]


def _series(rng: np.random.Generator, channels: int) -> list[Part]:
    points = 16 * int(rng.integers(3, 9))
    wave = 50 + 20 * np.sin(np.arange(points) * rng.uniform(0.1, 0.5)) + rng.normal(0, 2, points)
    return ["load", ("series", wave.astype(np.float32))]


_MAKERS: dict[str, Callable[[np.random.Generator, int], list[Part]]] = {
    "text": _text,
    "code": _code,
    "image": _image,
    "audio": _audio,
    "video": _video,
    "series": _series,
}
