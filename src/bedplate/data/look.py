"""The first look at the sources: how much there is of each kind, and a small fixed sample to choose the specs and train the tokenizer on.

Only names and sizes of everything are seen; a few inputs, those with the least hash of their name, are read. Equal sources give an equal
sample, whatever the order of reading, and its size does not grow with the sources.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bedplate.core.errors import DataError
from bedplate.core.events import EventLog
from bedplate.data.build_settings import BuildSettings
from bedplate.data.clean import repair
from bedplate.data.document import Document, Skipped
from bedplate.data.inputs import Input, read_input
from bedplate.data.privacy import find, mask
from bedplate.data.sources import kind_of, list_inputs, read_bytes
from bedplate.modality import audio, image
from bedplate.modality.senses import HANDLERS
from bedplate.modality.specs import CONTINUOUS, AudioSpec, ContinuousSense, ImageSpec, SenseSpecs, SeriesSpec, VideoSpec

SAMPLE = {"text": 4096, "html": 512, "mail": 512, "table": 64, "image": 96, "audio": 64, "video": 12}
"""Inputs of each kind that may be read for the first look."""

TABLE_BYTES = 24 << 20
"""Tables are sampled up to this much: one may hold thousands of pictures."""

_ANY = SenseSpecs(ImageSpec(size=32, patch=1), AudioSpec(), VideoSpec(), SeriesSpec())
"""Specs to see which senses the sources hold, and in which colours."""


@dataclass
class FirstLook:
    """What there is."""

    inputs: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Kind -> inputs."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Kind -> bytes."""
    samples: dict[str, list[Input]] = field(default_factory=dict)
    """Kind -> some inputs, in the order of their hash."""
    digest: str = ""
    """Of all names, sizes and licences: changes when the sources do."""

    @property
    def text_bytes(self) -> int:
        """Bytes of inputs that hold text."""
        return sum(self.bytes[kind] for kind in ("text", "html", "mail", "table"))


def first_look(settings: BuildSettings) -> FirstLook:
    """List everything once.

    Raises:
        DataError: a source does not exist, or there is nothing to read at all.
    """
    look = FirstLook()
    heaps: dict[str, list[tuple[int, int, Input]]] = {}
    digest = hashlib.sha256()
    refused: Counter[str] = Counter()
    for number, item in enumerate(list_inputs(settings.inputs, settings.sources)):
        if isinstance(item, Skipped):
            refused[item.reason] += 1
            digest.update(repr(item).encode("utf-8", errors="replace"))
            continue
        name = f"{item.source}\0{item.member}\0{item.start}"
        digest.update(f"{name}\0{item.size}\0{item.end}\0{item.sidecar}\0{item.licence}\n".encode("utf-8", errors="replace"))
        kind = kind_of(item.name)
        look.inputs += 1
        look.kinds[kind] += 1
        look.bytes[kind] += item.size
        draw = int.from_bytes(hashlib.sha256(f"{settings.seed}\0{name}".encode("utf-8", errors="replace")).digest()[:8], "big")
        heap = heaps.setdefault(kind, [])
        heapq.heappush(heap, (-draw, -number, item))
        if len(heap) > SAMPLE[kind]:
            heapq.heappop(heap)
    if not look.inputs:
        why = ", ".join(f"{reason} ({count})" for reason, count in refused.most_common()) or "the sources are empty"
        raise DataError(f"there is nothing to read in {', '.join(settings.inputs) or 'no sources'}", why)
    look.samples = {kind: [item for *_, item in sorted(heap, reverse=True)] for kind, heap in heaps.items()}
    left = TABLE_BYTES
    for place, item in enumerate(look.samples.get("table", [])):
        if left < 0:
            del look.samples["table"][place:]
            break
        left -= item.size
    look.digest = digest.hexdigest()
    return look


def sample_texts(look: FirstLook, settings: BuildSettings) -> Iterator[str]:
    """Mended (and, if wanted, masked) texts of the sample, at most `tokenizer.sample_bytes` altogether."""
    left = settings.tokenizer.sample_bytes
    inputs = [item for kind in ("text", "html", "mail", "table") for item in look.samples.get(kind, [])]
    share = max(64 << 10, left // max(1, len(inputs)))
    captions = [item for kind in ("image", "audio", "video") for item in look.samples.get(kind, []) if item.sidecar]
    for item in inputs + captions:
        from_this = share
        for document in read_bytes(item, settings.sources, _ANY):
            for segment in document.segments if isinstance(document, Document) else ():
                if not isinstance(segment.value, str) or from_this <= 0 or left <= 0 or isinstance(document, Skipped):
                    continue
                text = repair(segment.value[:from_this], document.component, settings.clean)[0]
                if settings.privacy.mode == "mask":
                    text = mask(text, find(text, settings.privacy.without)).replace("\ufdd0", "\n")
                from_this -= len(text)
                left -= len(text)
                yield text
        if left <= 0:
            return


def choose_specs(look: FirstLook, settings: BuildSettings, events: EventLog) -> SenseSpecs:
    """Specs of the senses that are there: sizes by what the sample shows, settings before that, and the affine of each sense measured."""
    values = _sample_values(look, settings)
    wanted = CONTINUOUS if settings.senses == "auto" else settings.senses
    chosen: dict[str, Any] = {}
    for sense in CONTINUOUS:
        if sense not in wanted or (settings.senses == "auto" and not values[sense]):
            continue
        spec, reason = _CHOOSE[sense](values[sense], look, settings)
        given = settings.specs.get(sense, {})
        spec = replace(spec, **_typed(spec, given))
        if given:
            reason += "; set: " + ", ".join(given)
        chosen[sense] = spec
        events.emit("chosen", what=f"specs.{sense}", value=_short(spec), reason=reason)
    specs = SenseSpecs(**chosen)
    return _measured(specs, look, settings)


def _sample_values(look: FirstLook, settings: BuildSettings) -> dict[ContinuousSense, list[np.ndarray]]:
    """Values of each sense in the sample, as they are."""
    values: dict[ContinuousSense, list[np.ndarray]] = {sense: [] for sense in CONTINUOUS}
    for document in _sample_documents(look, settings, _ANY):
        for segment in document.segments:
            if segment.sense != "text" and not isinstance(segment.value, str) and len(values[segment.sense]) < 256:
                values[segment.sense].append(segment.value)
    return values


def _sample_documents(look: FirstLook, settings: BuildSettings, specs: SenseSpecs) -> Iterator[Document]:
    for kind in ("image", "audio", "video", "table"):
        for item in look.samples.get(kind, []):
            for document in read_bytes(item, settings.sources, specs)[:64]:
                if isinstance(document, Document):
                    yield document


def _choose_image(values: list[np.ndarray], look: FirstLook, settings: BuildSettings) -> tuple[ImageSpec, str]:
    sides = sorted(_picture_sides(look, settings))
    if not sides:
        return ImageSpec(), "no picture in the sample"
    middle, large = sides[len(sides) // 2], sides[int(len(sides) * 0.95)]
    patch, most = next((p, m) for p, m, limit in ((4, 32, 32), (8, 128, 128), (16, 256, math.inf)) if middle <= limit)
    size = min(most, max(patch, -(-(large if most < 256 else middle) // patch) * patch))
    grey = all(_is_grey(value) for value in values)
    colours = "all grey" if grey else "some in colour"
    return ImageSpec(size, patch, 1 if grey else 3), f"{len(sides)} pictures of about {middle} pixels, {colours}"


def _picture_sides(look: FirstLook, settings: BuildSettings) -> list[int]:
    """Longest sides of the pictures in the sample."""
    sides = []
    for item in look.samples.get("image", []):
        try:
            sides.append(max(image.open_picture(read_input(item, settings.sources)).size))
        except DataError:
            continue
    for item in look.samples.get("table", [])[:8]:
        # Only the reader of tables knows where their pictures are, and it gives them in a size: one below that size is as it was.
        for size in (32, 64, 128, 256):
            found = _pictures(item, settings, size)
            sides += [side for side in found if side < size or size == 256]
            if all(side < size for side in found):
                break
    return sides


def _pictures(item: Input, settings: BuildSettings, size: int) -> list[int]:
    documents = read_bytes(item, settings.sources, SenseSpecs(image=ImageSpec(size=size, patch=1)))[:32]
    segments = [segment for document in documents if isinstance(document, Document) for segment in document.segments]
    return [max(s.value.shape[:2]) for s in segments if s.sense == "image" and not isinstance(s.value, str)]


def _choose_audio(values: list[np.ndarray], look: FirstLook, settings: BuildSettings) -> tuple[AudioSpec, str]:
    rates, seconds = [], []
    for item in look.samples.get("audio", []):
        try:
            rate, length = audio.rate_and_length(read_input(item, settings.sources))
        except DataError:
            continue
        rates.append(rate)
        seconds.append(length)
    if not rates:
        return AudioSpec(), "no sound file in the sample"
    rate = 16_000 if sorted(rates)[len(rates) // 2] >= 12_000 else 8_000
    longest = sorted(seconds)[int(len(seconds) * 0.95)]
    # At 8 kHz a window of 25 ms has 129 frequencies: 80 bands would leave low ones empty.
    spec = AudioSpec(sample_rate=rate, mels=80 if rate == 16_000 else 40, max_s=float(min(10.0, max(1.0, round(longest + 0.05, 1)))))
    return spec, f"{len(rates)} sounds of about {sorted(rates)[len(rates) // 2]} Hz, most shorter than {longest:.1f} s"


def _choose_video(values: list[np.ndarray], look: FirstLook, settings: BuildSettings) -> tuple[VideoSpec, str]:
    grey = bool(values) and all(_is_grey(value[0]) for value in values)
    return VideoSpec(channels=1 if grey else 3), f"{len(values)} clips, {'all grey' if grey else 'some in colour'}"


def _choose_series(values: list[np.ndarray], look: FirstLook, settings: BuildSettings) -> tuple[SeriesSpec, str]:
    return SeriesSpec(), f"{len(values)} numeric channels in the sample"


_CHOOSE: dict[ContinuousSense, Any] = {"image": _choose_image, "audio": _choose_audio, "video": _choose_video, "series": _choose_series}


def _measured(specs: SenseSpecs, look: FirstLook, settings: BuildSettings) -> SenseSpecs:
    """The specs with mean and standard deviation of the sample's values, where the settings do not give them.

    Series keep 0 and 1: each piece is normalised by itself.
    """
    totals: dict[str, list[float]] = {}
    for document in _sample_documents(look, settings, specs):
        for segment in document.segments:
            if segment.sense == "text" or segment.sense == "series" or isinstance(segment.value, str):  # noqa: PLR1714 - mypy narrows this
                continue
            spec = replace(getattr(specs, segment.sense), mean=0.0, std=1.0)
            values = HANDLERS[segment.sense].cut(segment.value, spec).values.astype(np.float64)
            total = totals.setdefault(segment.sense, [0.0, 0.0, 0.0])
            for place, amount in enumerate((values.size, values.sum(), np.square(values).sum())):
                total[place] += float(amount)
    changed: dict[str, Any] = {}
    for sense, (count, plain, squares) in totals.items():
        if count:
            mean = plain / count
            std = max(math.sqrt(max(squares / count - mean * mean, 0.0)), 1e-3)
            free = {"mean": round(mean, 5), "std": round(std, 5)}
            changed[sense] = replace(getattr(specs, sense), **{k: v for k, v in free.items() if k not in settings.specs.get(sense, {})})
    return replace(specs, **changed)


def _typed(spec: Any, given: Mapping[str, float | int]) -> dict[str, float | int]:
    """Settings in the type of the field: `max_s = 3` is 3.0."""
    return {name: type(getattr(spec, name))(value) for name, value in given.items()}


def _is_grey(pixels: np.ndarray) -> bool:
    if pixels.shape[-1] == 1:
        return True
    part = pixels[:: max(1, pixels.shape[0] // 32), :: max(1, pixels.shape[1] // 32)].astype(np.int16)
    return bool((part.max(-1) - part.min(-1)).max(initial=0) < 12)


def _short(spec: Any) -> str:
    return ", ".join(f"{name} {getattr(spec, name):g}" for name in spec.__dataclass_fields__ if name not in ("mean", "std"))
