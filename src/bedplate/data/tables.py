"""Tables: JSONL, Parquet and CSV rows to documents. Columns may hold text, pictures, sounds, chats, or numbers over time."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_bytes
from bedplate.data.document import Document, Origin, Segment, Skipped
from bedplate.modality import audio, image
from bedplate.modality.specs import SenseSpecs, SeriesSpec

TEXT_COLUMNS = ("text", "content", "body", "document", "code", "markdown", "caption", "transcript")
LICENCE_COLUMNS = ("licence", "license")

Beside = Callable[[str], bytes]
"""Name of a file beside the table -> its bytes."""


def read_jsonl(data: bytes, origin: Origin, specs: SenseSpecs, beside: Beside) -> Iterator[Document | Skipped]:
    """A document a line; lines of numbers (a JSON log) become series where they hold no text."""
    numeric: list[dict[str, Any]] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Skipped(_at(origin, number, line), "bad row", f"row {number}: {error}")
            continue
        if not isinstance(row, dict):
            yield Skipped(_at(origin, number, line), "bad row", f"row {number} is a {type(row).__name__}, not an object")
        elif has_content(row):
            yield from read_row(row, _at(origin, number, line), specs, beside)
        else:
            numeric.append(row)
    yield from _numeric_rows(numeric, origin, specs)


def read_parquet(data: bytes, origin: Origin, specs: SenseSpecs, beside: Beside) -> Iterator[Document | Skipped]:
    """A document a row; a table of numbers alone becomes series."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = set(file.schema_arrow.names)
        if has_content(dict.fromkeys(names, "")):
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    found = sha256_bytes(json.dumps(row, sort_keys=True, default=repr).encode())
                    yield from read_row(row, Origin(origin.source, _member(origin, number), found, 0, origin.licence), specs, beside)
            return
        columns = {name: _floats(file.read(columns=[name]).column(0).to_pylist()) for name in file.schema_arrow.names}
    except Exception as error:  # pyarrow raises many kinds on hostile files
        yield Skipped(origin, "damaged table", str(error)[:300])
        return
    yield from series_documents(columns, origin, specs.series)


def read_csv(text: str, origin: Origin, specs: SenseSpecs, beside: Beside) -> Iterator[Document | Skipped]:
    """A table with a text column gives a document a row; one of numbers gives series."""
    try:
        dialect: Any = csv.Sniffer().sniff(text[:4096], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    try:
        rows = list(csv.reader(io.StringIO(text), dialect))
    except csv.Error as error:
        yield Skipped(origin, "damaged table", str(error))
        return
    if len(rows) < 2:
        yield Skipped(origin, "empty", "a table without rows")
        return
    header = [name.strip() for name in rows[0]]
    if has_content(dict.fromkeys(header, "")):
        for number, row in enumerate(rows[1:], 1):
            raw = json.dumps(row).encode()
            yield from read_row(dict(zip(header, row)), _at(origin, number, raw), specs, beside)
        return
    columns = {name: _floats([row[i] if i < len(row) else None for row in rows[1:]]) for i, name in enumerate(header)}
    yield from series_documents(columns, origin, specs.series)


def has_content(row: Mapping[str, Any]) -> bool:
    """Whether a row holds text, a picture, a sound or a chat."""
    return any(name in row for name in (*TEXT_COLUMNS, "image", "audio", "messages", "prompt"))


def read_row(row: Mapping[str, Any], origin: Origin, specs: SenseSpecs, beside: Beside) -> Iterator[Document | Skipped]:
    """The document of one row: text first, then its picture or sound."""
    licence = origin.licence or next((str(row[name]) for name in LICENCE_COLUMNS if row.get(name)), "")
    origin = Origin(origin.source, origin.member, origin.sha256, origin.bytes, licence)
    text = next((str(row[name]) for name in TEXT_COLUMNS if isinstance(row.get(name), str)), "")
    if isinstance(row.get("messages"), list):
        text = chat_text(row["messages"])
    elif not text and isinstance(row.get("prompt"), str):
        text = f"{row['prompt']}{row.get('completion') or row.get('response') or ''}"
    segments = [Segment("text", text)] if text.strip() else []
    component: Any = "text"
    try:
        if row.get("image") is not None and specs.image is not None:
            segments.append(Segment("image", image.decode(payload(row["image"], beside), specs.image)))
            component = "image"
        elif row.get("audio") is not None and specs.audio is not None:
            segments.append(Segment("audio", audio.decode(payload(row["audio"], beside), specs.audio)))
            component = "audio"
    except DataError as error:
        yield Skipped(origin, "damaged file", error.message)
        return
    if segments:
        yield Document(component, tuple(segments), origin)
    else:
        yield Skipped(origin, "empty", "a row without content")


def chat_text(messages: list[Any]) -> str:
    """A conversation as plain ChatML text; the marks stay text, the tokenizer never turns raw input into control tokens."""
    turns = [m for m in messages if isinstance(m, dict) and isinstance(m.get("content"), str)]
    return "".join(f"<|im_start|>{turn.get('role', 'user')}\n{turn['content']}<|im_end|>\n" for turn in turns)


def series_documents(columns: Mapping[str, np.ndarray], origin: Origin, spec: SeriesSpec | None) -> Iterator[Document | Skipped]:
    """One document a piece of at most `max_points`: each numeric channel's name as text, then its values. Gaps are interpolated with a note."""
    if spec is None:
        yield Skipped(origin, "no text", "series are not part of this corpus")
        return
    kept = {}
    notes: list[str] = []
    for name, values in columns.items():
        known = np.isfinite(values)
        if known.sum() < max(spec.points, 0.5 * len(values)):
            continue  # a column of words or times, or mostly gaps
        if not known.all():
            values = np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])
            notes.append(f"{name}: {int((~known).sum())} gaps interpolated")
        if values.max() > values.min():  # a constant teaches nothing
            kept[name] = values.astype(np.float32)
    if not kept:
        yield Skipped(origin, "no numeric channel")
        return
    length = max(map(len, kept.values()))
    for piece, start in enumerate(range(0, length, spec.max_points)):
        segments: list[Segment] = []
        for name, values in kept.items():
            part = values[start : start + spec.max_points]
            if len(part) >= spec.points:
                segments += [Segment("text", name), Segment("series", part)]
        if segments:
            member = f"{origin.member}#piece {piece}" if length > spec.max_points else origin.member
            yield Document("series", tuple(segments), Origin(origin.source, member, origin.sha256, origin.bytes, origin.licence), notes=tuple(notes))


def _numeric_rows(rows: list[dict[str, Any]], origin: Origin, specs: SenseSpecs) -> Iterator[Document | Skipped]:
    if not rows:
        return
    names = sorted({name for row in rows[:1000] for name, value in row.items() if isinstance(value, (int, float)) and not isinstance(value, bool)})
    columns = {name: _floats([row.get(name) for row in rows]) for name in names}
    if specs.series is not None and len(rows) >= specs.series.points and names:
        yield from series_documents(columns, origin, specs.series)
    else:  # a JSON log without a message column: its lines are text
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        yield Document("text", (Segment("text", text),), origin)


def payload(value: Any, beside: Beside) -> bytes:
    """Bytes of a cell: bytes, {"bytes": ...} as data sets write, base64, or a path beside the table."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise DataError(f"a cell of type {type(value).__name__} holds no file", "give bytes, base64 or a path")
    if len(value) < 1024 and "." in value[-6:]:
        return beside(value)
    try:
        return base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("a cell is neither a path nor base64", "give bytes, base64 or a path") from error


def _floats(values: list[Any]) -> np.ndarray:
    def number(value: Any) -> float:
        try:
            found = float(value)
        except (TypeError, ValueError, OverflowError):
            return math.nan
        return found if math.isfinite(found) and abs(found) < 1e30 else math.nan

    return np.array([number(value) for value in values], np.float64)


def _member(origin: Origin, number: int) -> str:
    return f"{origin.member} row {number}".strip()


def _at(origin: Origin, number: int, raw: bytes) -> Origin:
    return Origin(origin.source, _member(origin, number), sha256_bytes(raw), len(raw), origin.licence)
