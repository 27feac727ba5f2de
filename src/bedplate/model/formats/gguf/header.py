"""The head of a GGUF file: metadata, and where each tensor lies. Everything a hostile file says is checked before it is believed.

The `gguf` package has a reader too; ours refuses counts and lengths that the file cannot hold, where that one loops over them, and reads
long lists of tokens ten times faster. Types and quantisation are the package's.

Source: the GGUF specification of the ggml project, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bedplate.core.errors import DataError, IntegrityError

MOST_DIMENSIONS = 4
LONGEST_NAME = 65_535
SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
"""GGUF value type -> struct format."""
STRING, ARRAY = 8, 9
_AGAIN = "fetch the file again"


class Placed(NamedTuple):
    """A tensor of the file."""

    kind: int
    """ggml type number."""
    shape: tuple[int, ...]
    """Outermost first, as torch writes it; the file has it the other way round."""
    start: int
    """Bytes from the beginning of the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Header:
    """What the file says about itself."""

    metadata: Mapping[str, Any]
    """Key -> number, truth, text, list of texts, or numpy array of numbers."""
    tensors: Mapping[str, Placed]


def read_header(path: Path, block: Callable[[int], tuple[int, int]]) -> Header:
    """The head of a GGUF file.

    Args:
        path: the file.
        block: ggml type number -> (numbers, bytes) of a block; KeyError or ValueError for types that it does not know.
    Raises:
        DataError: it is no GGUF file, of another version, or cut into several.
        IntegrityError: it is damaged or truncated.
    """
    try:
        with path.open("rb") as handle:
            if path.stat().st_size < 24:
                raise DataError(f"{path} is no GGUF file: {path.stat().st_size} bytes", _AGAIN)
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, data, block)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "give the path of a GGUF file") from error


def _parse(path: Path, data: mmap.mmap, block: Callable[[int], tuple[int, int]]) -> Header:
    if data[:4] != b"GGUF":
        raise DataError(f"{path} is no GGUF file", "it must begin with GGUF; weights in other forms come as a Hugging Face folder")
    version = int(struct.unpack_from("<I", data, 4)[0])
    if version not in (2, 3):
        raise DataError(f"{path} is GGUF of version {version}", "versions 2 and 3 in little-endian are read; convert it again with llama.cpp")
    cursor = _Cursor(path, data)
    tensors, pairs = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(cursor.bounded(pairs, 13, "metadata keys")):
        key = cursor.text(LONGEST_NAME)
        if key in metadata:
            raise cursor.damaged(f"{key} stands there twice")
        metadata[key] = cursor.value(cursor.number("<I"))
    if isinstance(pieces := metadata.get("split.count"), int) and pieces > 1:
        raise DataError(f"{path} is one of {pieces} files", "join them first: llama-gguf-split --merge FIRST WHOLE")
    described = [_describe(cursor, block) for _ in range(cursor.bounded(tensors, 24, "tensors"))]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged(f"an alignment of {alignment!r}")
    base = -(-cursor.at // alignment) * alignment
    placed: dict[str, Placed] = {}
    for name, tensor in described:
        if name in placed:
            raise cursor.damaged(f"the tensor {name} stands there twice")
        placed[name] = tensor._replace(start=base + tensor.start)
        if (end := placed[name].start + tensor.size) > len(data):
            raise IntegrityError(f"{path} is truncated: {name} ends at byte {end:,} of {len(data):,}", _AGAIN)
    return Header(metadata, placed)


def _describe(cursor: _Cursor, block: Callable[[int], tuple[int, int]]) -> tuple[str, Placed]:
    name = cursor.text(LONGEST_NAME)
    dimensions = cursor.number("<I")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise cursor.damaged(f"{name} has {dimensions} dimensions")
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))[::-1]
    kind, start = cursor.number("<I"), cursor.number("<Q")
    try:
        numbers, size = block(kind)
    except (KeyError, ValueError) as error:
        raise cursor.damaged(f"{name} is of unknown type {kind}") from error
    if shape[-1] % numbers or min(shape) < 1:
        raise cursor.damaged(f"{name} of shape {list(shape)} in blocks of {numbers}")
    return name, Placed(kind, shape, start, math.prod(shape) // numbers * size)


class _Cursor:
    """A place in the file that moves on with everything read, and never beyond the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 8

    def damaged(self, what: str) -> IntegrityError:
        """The error to raise."""
        return IntegrityError(f"{self.path} is damaged near byte {self.at:,}: {what}", _AGAIN)

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if size > len(self.data) - self.at:
            raise IntegrityError(f"{self.path} is truncated or damaged: {size:,} bytes wanted at {self.at:,} of {len(self.data):,}", _AGAIN)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> Any:
        """The next number or truth."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, longest: int | None = None) -> str:
        """The next text."""
        size = self.number("<Q")
        if longest is not None and size > longest:
            raise self.damaged(f"a name of {size:,} bytes")
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("a text that is not UTF-8") from error

    def bounded(self, count: int, least: int, what: str) -> int:
        """A count of things of `least` bytes each, if the rest of the file can hold so many."""
        if count * least > len(self.data) - self.at:
            raise self.damaged(f"{count:,} {what}")
        return count

    def value(self, kind: int) -> Any:
        """The next metadata value of a type."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise self.damaged(f"a value of unknown type {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if inner == STRING:
            return [self.text() for _ in range(self.bounded(count, 8, "texts"))]
        if inner not in SCALARS:
            raise self.damaged(f"a list of type {inner}")
        form = np.dtype("u1" if SCALARS[inner] == "?" else SCALARS[inner])
        return np.frombuffer(self.take(count * form.itemsize), form)
