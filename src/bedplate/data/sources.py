"""Raw files to documents: one input's bytes are judged by name and content and handed to the sense that reads them.

    for item in list_inputs(["~/documents", "logs.zip"], settings):      # cheap, in a fixed order
        for document in read_bytes(item, settings, specs): ...           # the work; a pure function, made for worker processes

Nothing an input holds stops the reading of the others: what cannot be used comes as Skipped with one of REASONS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_bytes
from bedplate.data import tables
from bedplate.data.document import Document, Origin, Segment, Skipped
from bedplate.data.inputs import AUDIO, IMAGE, VIDEO, Input, SourceSettings, list_inputs, read_beside, read_input
from bedplate.data.licences import declared
from bedplate.modality import audio, image, text, video
from bedplate.modality.specs import SenseSpecs

__all__ = ["REASONS", "Input", "SourceSettings", "Survey", "list_inputs", "read", "read_bytes", "survey"]

REASONS: dict[str, str] = {
    "archive bomb": "a member claims to unpack to far more than it is stored in",
    "archive climbs out": "a member's path leads out of the archive",
    "archive damaged": "the archive cannot be opened or listed",
    "archive in an archive": "only one level is read",
    "archive link": "a member is a link",
    "archive too many members": "the rest of the archive was not looked at",
    "bad row": "a line of a JSONL file is no JSON object",
    "binary": "the file is neither text nor of a known kind",
    "damaged file": "a picture, sound or clip cannot be decoded",
    "damaged table": "a Parquet or CSV file cannot be read",
    "empty": "there is nothing in it",
    "link leaves the folder": "a symbolic link points out of the source",
    "no numeric channel": "a table without a varying column of numbers",
    "no text": "nothing that this corpus learns from",
    "not a file": "a pipe, socket or device",
    "too large": "above sources.max_file_bytes",
    "unreadable": "the system refused to open it",
}
"""Why an input gave no document: stable words that are counted."""

MAIL = (".eml", ".mbox_message", ".msg.txt")


@dataclass
class Survey:
    """A cheap first look, to choose specs by: how much there is of each kind."""

    files: Counter[str] = field(default_factory=Counter)
    """Kind -> inputs."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Kind -> bytes."""
    picture_sides: list[int] = field(default_factory=list)
    """Longest sides of some pictures, in pixels."""
    grey: list[bool] = field(default_factory=list)
    """Whether those pictures are grey."""
    sound_rates: list[int] = field(default_factory=list)
    """Sample rates of some sounds."""
    sound_s: list[float] = field(default_factory=list)
    """Their lengths."""


def kind_of(name: str) -> str:
    """"image", "audio", "video", "table", "mail", "html" or "text" by a file's name."""
    lower = name.lower()
    for kind, endings in (("image", IMAGE), ("audio", AUDIO), ("video", VIDEO), ("table", (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson"))):
        if lower.endswith(endings):
            return kind
    if lower.endswith(MAIL):
        return "mail"
    return "html" if lower.endswith((".html", ".htm", ".xhtml")) else "text"


def read(sources: Sequence[str], settings: SourceSettings, specs: SenseSpecs) -> Iterator[Document | Skipped]:
    """All documents of some sources, in order, in this process.

    Raises:
        DataError: a source does not exist.
    """
    for item in list_inputs(sources, settings):
        if isinstance(item, Skipped):
            yield item
        else:
            yield from read_bytes(item, settings, specs)


def read_bytes(item: Input, settings: SourceSettings, specs: SenseSpecs) -> list[Document | Skipped]:
    """The documents of one input. Raises nothing that an input can cause."""
    origin = Origin(item.source, _place(item), bytes=item.size, licence=item.licence)
    try:
        data = read_input(item, settings)
    except DataError as error:
        return [Skipped(origin, "too large" if "bytes" in error.message else "unreadable", error.message)]
    origin = Origin(origin.source, origin.member, sha256_bytes(data), len(data), origin.licence)
    try:
        return list(_read(item, data, origin, settings, specs))
    except DataError as error:
        return [Skipped(origin, "damaged file", error.message)]


def survey(sources: Sequence[str], settings: SourceSettings, samples: int = 64) -> Survey:
    """Counts by kind, and a closer look at a few evenly spread pictures and sounds."""
    result = Survey()
    looked: dict[str, list[Input]] = {"image": [], "audio": []}
    for item in list_inputs(sources, settings):
        if isinstance(item, Input):
            kind = kind_of(item.name)
            result.files[kind] += 1
            result.bytes[kind] += item.size
            if kind in looked:
                looked[kind].append(item)
    for item in _spread(looked["image"], samples):
        try:
            picture = image.open_picture(read_input(item, settings))
        except DataError:
            continue
        result.picture_sides.append(max(picture.size))
        colours = np.asarray(picture.convert("RGB").resize((8, 8)), np.int16)
        result.grey.append(bool((colours.max(-1) - colours.min(-1)).max() < 12))
    for item in _spread(looked["audio"], samples):
        try:
            rate, seconds = audio.rate_and_length(read_input(item, settings))
        except DataError:
            continue
        result.sound_rates.append(rate)
        result.sound_s.append(seconds)
    return result


def _read(item: Input, data: bytes, origin: Origin, settings: SourceSettings, specs: SenseSpecs) -> Iterator[Document | Skipped]:
    kind = kind_of(item.name)

    def beside(name: str) -> bytes:
        folder = item.member.rpartition("/")[0]
        return read_beside(item, f"{folder}/{name}" if folder else name, settings)

    if kind in ("image", "audio", "video"):
        yield from _read_signal(kind, item, data, origin, settings, specs)
    elif kind == "table":
        if item.name.lower().endswith(".parquet"):
            yield from tables.read_parquet(data, origin, specs, beside)
        elif item.name.lower().endswith((".csv", ".tsv")):
            yield from tables.read_csv(text.decode(data)[0], origin, specs, beside)
        else:
            yield from tables.read_jsonl(data, origin, specs, beside)
    elif not data:
        if not item.end:  # a range may hold no line of its own
            yield Skipped(origin, "empty")
    elif text.is_binary(data):
        yield Skipped(origin, "binary", item.name)
    else:
        yield from _read_text(kind, item, data, origin, settings)


def _read_signal(kind: str, item: Input, data: bytes, origin: Origin, settings: SourceSettings, specs: SenseSpecs) -> Iterator[Document | Skipped]:
    caption: tuple[Segment, ...] = ()
    if item.sidecar:
        try:
            described = text.decode(read_beside(item, item.sidecar, settings))[0].strip()
        except DataError:
            described = ""
        caption = (Segment("text", described),) if described else ()
    if kind == "image" and specs.image is not None:
        yield Document("image", (*caption, Segment("image", image.decode(data, specs.image))), origin)
    elif kind == "audio" and specs.audio is not None:
        pieces = audio.decode_pieces(data, specs.audio)
        for number, piece in enumerate(pieces):
            # A transcript describes the whole sound: pieces of one stand without it.
            yield Document("audio", (*(caption if len(pieces) == 1 else ()), Segment("audio", piece)), _piece(origin, number, len(pieces)))
    elif kind == "video" and specs.video is not None:
        clips = video.decode_pieces(data, specs.video)
        for number, clip in enumerate(clips):
            yield Document("video", (*caption, Segment("video", clip)), _piece(origin, number, len(clips)))
    else:
        yield Skipped(origin, "no text", f"{kind} is not part of this corpus")


def _read_text(kind: str, item: Input, data: bytes, origin: Origin, settings: SourceSettings) -> Iterator[Document | Skipped]:
    notes: tuple[str, ...] = ()
    if kind == "mail" or (data.startswith((b"From ", b"Return-Path:", b"Received:", b"Delivered-To:")) and b"\nSubject:" in data[:20_000]):
        content = text.from_mail(data)
    else:
        content, notes = text.decode(data)
        if kind == "html" or content[:200].lstrip().lower().startswith(("<!doctype html", "<html")):
            content = text.from_html(content)
        elif item.name.lower().endswith((".md", ".markdown")):
            content = text.from_markdown(content)
    if not content.strip():
        yield Skipped(origin, "empty", "no text in it")
        return
    language = text.language_of(item.name, content)
    licence = origin.licence or declared(content)
    origin = Origin(origin.source, origin.member, origin.sha256, origin.bytes, licence)
    parts = list(_parts(content, settings.max_text_bytes))
    for number, part in enumerate(parts):
        yield Document("code" if language else "text", (Segment("text", part),), _piece(origin, number, len(parts)), language, notes)


def _parts(content: str, most: int) -> Iterator[str]:
    """Pieces of at most `most` characters, cut at the last line end (or anywhere, where there is none)."""
    start = 0
    while start < len(content):
        end = min(len(content), start + most)
        if end < len(content):
            end = max(content.rfind("\n", start + most // 2, end) + 1, 0) or end
        yield content[start:end]
        start = end


def _piece(origin: Origin, number: int, count: int) -> Origin:
    if count == 1:
        return origin
    return Origin(origin.source, f"{origin.member}#piece {number}".lstrip(), origin.sha256, origin.bytes, origin.licence)


def _place(item: Input) -> str:
    return f"{item.member}bytes {item.start}-{item.end}" if item.end else item.member


def _spread(items: list[Input], most: int) -> list[Input]:
    step = max(1, len(items) // most)
    return items[::step][:most]
