"""Files that are absent, old or complete: atomic writes and digests."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_writer(path: Path, mode: str = "wb", private: bool = False) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success it is synced and renamed over it, on any error it vanishes.

    Args:
        path: the file to write; its folder is made when missing.
        mode: "wb" or "w".
        private: only its owner may read and write it, at no moment anybody else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        text = "b" not in mode
        with os.fdopen(descriptor, mode, encoding="utf-8" if text else None, newline="\n" if text else None) as handle:
            yield handle
        publish(Path(temporary), path, private)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path, private: bool = False) -> None:
    """Sync a file that is complete and rename it over `path`, in the same folder."""
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o600 if private else 0o666 & ~umask)  # temporary files are made 0600; a result should be as readable as any other file
    temporary.replace(path)
    fsync_folder(path.parent)


def write_bytes(path: Path, data: bytes, private: bool = False) -> None:
    """Write a whole file atomically."""
    with atomic_writer(path, private=private) as handle:
        handle.write(data)


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Write a whole UTF-8 file atomically."""
    write_bytes(path, text.encode("utf-8"), private)


def add_line(path: Path, line: str) -> int:
    """Add a line to the end of a text file, which is made when missing; its number, counted from 1. A last line that was left open is closed first.

    Args:
        path: the file; what it holds stays.
        line: without a newline.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as handle:
        handle.seek(0)
        held = handle.read()
        handle.write((b"" if not held or held.endswith(b"\n") else b"\n") + line.encode("utf-8") + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
    return held.count(b"\n") + (1 if not held or held.endswith(b"\n") else 2)


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """Write indented JSON atomically. NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", private)


def read_json(path: Path) -> Any:
    """Read a JSON file; duplicate keys are refused, since two readers could see two different documents."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(keys) != len(set(keys)):
            raise ValueError(f"duplicate key in {path}")
        return dict(pairs)

    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=no_duplicates)


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
