"""Examples: rows of a table (JSONL, CSV, TSV, Parquet) or files of a folder or archive, each cell asked for by name.

A row that lacks what a task needs says which row it is and which columns there are. Nothing is guessed. What spreadsheets leave around a table
is taken away: a mark of the encoding, a first line "sep=;", blanks around the names of columns, rows without a single filled cell.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bedplate.core.errors import ConfigError, DataError, did_you_mean
from bedplate.core.generation import Tool, ToolCall
from bedplate.data.archives import is_archive
from bedplate.data.chat import Message
from bedplate.data.document import Segment, Skipped
from bedplate.data.inputs import Input, SourceSettings, list_inputs, read_beside, read_input
from bedplate.data.sources import kind_of
from bedplate.data.tables import payload
from bedplate.modality import audio, image, text, video
from bedplate.modality.specs import CONTINUOUS, SenseSpecs

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
DECODERS: dict[str, Callable[[bytes, Any], np.ndarray]] = {"image": image.decode, "audio": audio.decode, "video": video.decode}
SOURCES = SourceSettings()
T = TypeVar("T")


class MissingCell(DataError):
    """A row lacks what a task needs."""


@dataclass(frozen=True)
class Row:
    """One example as it was given."""

    number: int
    """Counted from 1, the header of a CSV not counted."""
    values: Mapping[str, Any]
    """Our column name -> cell; empty cells are left out."""
    beside: Callable[[str], bytes]
    """Name of a file beside the table -> its bytes."""
    empty: tuple[str, ...] = ()
    """Columns whose cell is empty."""

    def error(self, problem: str, hint: str = "") -> DataError:
        """The error that says which row it is and what it holds."""
        return DataError(f"row {self.number}: {problem}", hint or f"its columns are {', '.join(map(str, self.values)) or 'none'}; data.columns renames them")

    def missing(self, name: str) -> MissingCell:
        """The error that says that a cell is empty, or that there is no such column, and how to name the one that is meant."""
        if name in self.empty:
            return MissingCell(f"row {self.number}: {name!r} is empty", "fill it in, or take the row out")
        alike = [column for column in self.values if column.casefold().strip() == name]
        meant = shlex.quote(alike[0]) if alike else "COLUMN"
        hint = f"its columns are {', '.join(map(str, self.values)) or 'none'}; --set data.columns.{name}={meant} takes another for it"
        return MissingCell(f"row {self.number}: there is no {name!r}", hint)

    def has(self, *names: str) -> bool:
        """Whether all these cells are there."""
        return all(name in self.values for name in names)

    def get(self, name: str, kind: type[T]) -> T:
        """A cell of a type.

        Raises:
            DataError: it is missing or of another type.
        """
        if name not in self.values:
            raise self.missing(name)
        value = self.values[name]
        if not isinstance(value, kind):
            raise self.error(f"{name!r} is of type {type(value).__name__}, not {kind.__name__}")
        return value

    def text(self, name: str) -> str:
        """A cell of text that is not blank."""
        value = self.get(name, str)
        if not value.strip():
            raise self.error(f"{name!r} is blank")
        return value

    def number_of(self, name: str) -> float:
        """A cell that holds a finite number, written as one or as text."""
        value = self.values.get(name)
        try:
            found = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else np.nan
        except ValueError:
            found = np.nan
        if name not in self.values:
            raise self.missing(name)
        if not np.isfinite(found):
            comma = re.fullmatch(r"\s*([-+]?\d+),(\d+)\s*", str(value))
            raise self.error(f"{name!r} = {value!r} is no number", f"write {comma[1]}.{comma[2]}, with a point" if comma else "")
        return found

    def list_of(self, name: str) -> list[Any]:
        """A cell that holds a list, written as one or as JSON text."""
        value = self.values.get(name)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        if name not in self.values:
            raise self.missing(name)
        if not isinstance(value, list):
            raise self.error(f"{name!r} is no list")
        return value

    def messages(self, name: str = "messages") -> tuple[Message, ...]:
        """A conversation as OpenAI's API writes it: a list of {"role": ..., "content": ...}, calls of tools and their answers among them."""
        return tuple(self._turn(turn, name) for turn in self.list_of(name))

    def _turn(self, turn: Any, name: str) -> Message:
        told: Mapping[str, Any] = turn if isinstance(turn, Mapping) else {}
        content, calls = told.get("content"), tuple(self._call(call) for call in told.get("tool_calls") or ())
        if told.get("function_call"):
            raise self.error(f"a turn of {name!r} has a 'function_call'", 'write "tool_calls": [{"function": {"name": "...", "arguments": "{}"}}]')
        if isinstance(content, list):  # parts, as for models that see
            if other := [part for part in content if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str))]:
                raise self.error(f"a turn of {name!r} has a part that is no text: {str(other[0])[:80]}", "give a picture or a sound as a column of its own")
            content = "".join(part["text"] for part in content)
        if content is None and calls:
            content = ""
        if not isinstance(told.get("role"), str) or not isinstance(content, str):
            raise self.error(f"a turn of {name!r} is no pair of role and content", 'write {"role": "user", "content": "..."}')
        return Message(told["role"], content, calls, str(told.get("tool_call_id") or ""))

    def _call(self, call: Any) -> ToolCall:
        told = call.get("function") or call if isinstance(call, Mapping) else {}
        arguments = told.get("arguments")
        if not isinstance(told.get("name"), str) or not isinstance(arguments, (str, Mapping, type(None))):
            raise self.error(f"{str(call)[:80]} is no call of a tool", 'write {"id": "1", "function": {"name": "...", "arguments": "{}"}}')
        written = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        return ToolCall(str(call.get("id") or ""), told["name"], written)

    def tools(self, name: str = "tools") -> tuple[Tool, ...]:
        """Functions that the assistant may call, as OpenAI's API writes them; none where the row has no such cell."""
        found = []
        for one in self.list_of(name) if name in self.values else ():
            told = one.get("function") or one if isinstance(one, Mapping) else {}
            parameters = told.get("parameters") or {}
            if not isinstance(told.get("name"), str) or not isinstance(parameters, Mapping):
                raise self.error(f"{str(one)[:80]} is no tool", 'write {"type": "function", "function": {"name": "...", "parameters": {}}}')
            found.append(Tool(told["name"], str(told.get("description") or ""), parameters))
        return tuple(found)

    def senses(self, specs: SenseSpecs) -> tuple[Segment, ...]:
        """What the row holds of senses other than text, decoded as the base learned them.

        Raises:
            DataError: a file is damaged, or of a sense that the base does not have.
        """
        found = []
        for sense in CONTINUOUS:
            if sense not in self.values:
                continue
            if (spec := specs.present().get(sense)) is None:
                raise self.error(f"there is {sense}, but the base never learned it", f"it knows text{''.join(f', {name}' for name in specs.present())}")
            try:
                if sense == "series":
                    found.append(Segment(sense, np.array([float(value) for value in self.list_of(sense)], np.float32)[-spec.max_points :]))  # type: ignore[union-attr]
                else:
                    found.append(Segment(sense, DECODERS[sense](payload(self.values[sense], self.beside), spec)))
            except (DataError, TypeError, ValueError) as error:
                raise self.error(f"the {sense} cannot be read: {getattr(error, 'message', error)}", getattr(error, "hint", "")) from error
        return tuple(found)

    def inputs(self, specs: SenseSpecs) -> tuple[Segment, ...]:
        """Everything to look at: the text, then the other senses.

        Raises:
            DataError: there is nothing.
        """
        words = (Segment("text", self.text("text")),) if "text" in self.values else ()
        if not (segments := words + self.senses(specs)):
            raise self.error("there is nothing to look at: no 'text', " + ", ".join(repr(s) for s in CONTINUOUS))
        return segments


def each(rows: Sequence[Row], read: Callable[[Row], T]) -> list[T]:
    """What `read` makes of every row.

    Raises:
        DataError: that of the first row that cannot be read, with the number of those that cannot.
    """
    made, errors = [], list[tuple[int, DataError]]()
    for row in rows:
        try:
            made.append(read(row))
        except DataError as error:
            errors.append((row.number, error))
    if not errors:
        return made
    first = errors[0][1]
    if len(errors) > 1:
        others = ", ".join(f"{number:,}" for number, _ in errors[1:6]) + (", ..." if len(errors) > 6 else "")
        some = f"{len(errors):,} of {len(rows):,} rows cannot be used (also {others})"
        first.message += f"; {some if len(errors) < len(rows) else f'none of the {len(rows):,} rows can be used'}"
    raise first


def read_rows(path: Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """All examples of a file, folder or archive.

    Args:
        path: a table; or a folder or archive of files, whose label is the folder that each lies in.
        columns: our name -> the file's name.
    Raises:
        DataError: it is missing, damaged or empty.
        ConfigError: `columns` names a column that is not there.
    """
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"there is no {path}", did_you_mean(path.name, siblings))
    rows = list(_table_rows(path) if path.is_file() and path.name.lower().endswith(TABLES) else _file_rows(path))
    if not rows:
        raise DataError(f"{path} holds no examples", "write each example as a row")
    known = {name for row in rows for name in row.values}
    for ours, theirs in (columns or {}).items():
        if theirs not in known:
            raise ConfigError(f"data.columns names {theirs!r} for {ours!r}, which {path} does not have", did_you_mean(theirs, map(str, known)))
    return [_renamed(row, columns) for row in rows] if columns else rows


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    kept = {name: value for name, value in row.values.items() if name not in columns}
    found = {ours: row.values[theirs] for ours, theirs in columns.items() if theirs in row.values}
    empty = (*(name for name in row.empty if name not in columns), *(ours for ours, theirs in columns.items() if theirs in row.empty))
    return Row(row.number, kept | found, row.beside, empty)


def _table_rows(path: Path) -> Iterator[Row]:
    beside = Input(path, str(path))
    raw = read_input(Input(path, str(path), size=path.stat().st_size), SOURCES)
    reader = _parquet if path.suffix.lower() == ".parquet" else _delimited if path.suffix.lower() in (".csv", ".tsv") else _json_lines
    for number, values in reader(raw, path):
        kept = {str(name): value for name, value in values.items() if not _is_empty(value)}
        yield Row(number, kept, lambda name: read_beside(beside, name, SOURCES), tuple(str(name) for name in values if str(name) not in kept))


def _is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: as tables of numbers write it, too."""
    return value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and math.isnan(value))


def _json_lines(raw: bytes, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    content = text.decode(raw)[0]
    if content.lstrip().startswith("["):  # one list of all rows
        try:
            listed = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: {error}", "a JSON file of examples is one list of objects") from error
    else:
        listed = []
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                try:
                    listed.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}, line {number}: {error}", "a JSONL file holds one JSON object a line") from error
    for number, values in enumerate(listed, 1):
        if not isinstance(values, dict):
            raise DataError(f"{path}, row {number} is a {type(values).__name__}, not an object", 'write {"column": value, ...}')
        yield number, values


def _delimited(raw: bytes, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    content = text.decode(raw)[0].lstrip("\n")
    first, _, rest = content.partition("\n")
    if told := re.fullmatch('"?sep=(.)"?', first):  # a spreadsheet's own way to say it
        delimiter, content = told[1], rest
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else next((mark for mark in ",;\t|" if mark in first), ",")
    csv.field_size_limit(1 << 27)
    try:
        lines = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next((line for line in lines if any(line)), [])]
        if twice := [name for name, count in Counter(header).items() if name and count > 1]:
            raise DataError(f"{path}: the header names {twice[0]!r} twice", "give every column its own name")
        for number, cells in enumerate((line for line in lines if line), 1):
            if len(cells) != len(header):
                problem = f"{path}, row {number} has {len(cells)} cells, the header {len(header)} columns"
                raise DataError(problem, "put cells that hold the delimiter in quotes")
            if any(cells):
                yield number, dict(zip(header, cells))
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: {error}", "save it as CSV with quoted cells") from error


def _parquet(raw: bytes, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        listed = pq.read_table(pa.BufferReader(raw)).to_pylist()
    except Exception as error:  # pyarrow raises many kinds on hostile files
        raise DataError(f"{path} cannot be read: {str(error)[:200]}", "it should be a Parquet table") from error
    yield from enumerate(listed, 1)


def _file_rows(path: Path) -> Iterator[Row]:
    """A row a file; what cannot be listed (links, bombs) is an error, as a missing example would go unnoticed."""
    if not path.is_dir() and not is_archive(path.name):
        raise DataError(f"{path} is no kind of table", f"known: {', '.join(TABLES)}, a folder, an archive")
    for number, item in enumerate(list_inputs([str(path)], SOURCES), 1):
        if isinstance(item, Skipped):
            raise DataError(f"{item.origin.source} {item.origin.member}: {item.reason}", item.detail or "take it out")
        sense = kind_of(item.name)
        place = Path(item.member or str(item.path))
        if sense in DECODERS:
            values: dict[str, Any] = {sense: read_input(item, SOURCES)}
        else:
            raw = read_input(item, SOURCES)
            values = {"text": text.from_mail(raw) if sense == "mail" else text.from_html(text.decode(raw)[0]) if sense == "html" else text.decode(raw)[0]}
        yield Row(number, {**values, "label": place.parent.name, "file": str(place)}, lambda name, item=item: read_beside(item, name, SOURCES))  # type: ignore[misc]
