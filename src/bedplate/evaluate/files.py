"""Where the examples of tasks come from: files that the user has, in a folder or a zip, never fetched from anywhere.

A task's files are looked for in FOLDER/TASK, FOLDER/TASK.zip and FOLDER, by the end of their path. What was read is named by digest.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_bytes
from bedplate.data.archives import is_archive, members, read_member

MOST_BYTES = 1 << 30
"""Of one file."""


class Files:
    """The files of one task."""

    def __init__(self, folder: Path, task: str) -> None:
        """Nothing is read yet.

        Args:
            folder: as given by the user; or one file.
            task: its name, and so that of its folder or zip.
        """
        self.folder, self.task = folder, task
        self.digests: dict[str, str] = {}
        """Name of each file that was read -> sha256."""

    def has(self, end: str) -> bool:
        """Whether there is a file whose path ends so."""
        return bool(self._found(end))

    def read(self, *ends: str) -> bytes:
        """The bytes of the file whose path ends with the first of `ends` that there is; .gz is unpacked.

        Raises:
            DataError: there is none, or several.
        """
        for end in ends:
            found = self._found(end)
            if len(found) > 1:
                raise DataError(f"{self.task}: {len(found)} files end in {end}: {found[0][1]}, {found[1][1]}", f"keep one of them below {self.folder}")
            if found:
                path, name = found[0]
                data = read_member(path, name, MOST_BYTES) if is_archive(path.name) else path.read_bytes()
                self.digests[name] = sha256_bytes(data)
                return _unpacked(data, name) if name.endswith(".gz") else data
        raise DataError(f"{self.task} needs a file {' or '.join(ends)}", f"put it below {self.folder / self.task}, or into {self.folder / self.task}.zip")

    def text(self, *ends: str) -> str:
        """A file as text.

        Raises:
            DataError: it is no UTF-8.
        """
        try:
            return self.read(*ends).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.task}: {ends[0]} is no UTF-8: {error.reason} at byte {error.start}", "convert it to UTF-8") from error

    def rows(self, *ends: str) -> list[Mapping[str, Any]]:
        """A JSONL file as objects.

        Raises:
            DataError: a line is no JSON object.
        """
        found: list[Mapping[str, Any]] = []
        for number, line in enumerate(self.text(*ends).split("\n"), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{self.task}: line {number} of {ends[0]} is no JSON: {error}", "write one JSON object a line") from error
                if not isinstance(row, dict):
                    raise DataError(f"{self.task}: line {number} of {ends[0]} is no JSON object", "write one JSON object a line")
                found.append(row)
        return found

    def _found(self, end: str) -> list[tuple[Path, str]]:
        """(file, its name) or (archive, member) of what ends so, in the first place that has any."""
        if self.folder.is_file() and not is_archive(self.folder.name):
            return [(self.folder, self.folder.name)] if _ends(self.folder.name, end) else []
        for place in (self.folder / self.task, self.folder / f"{self.task}.zip", self.folder):
            if (place / end).is_file():
                found = [(place / end, end)]  # what lies where it was looked for first stands before what lies deeper, such as an earlier report
            elif place.is_dir():
                names = sorted(path for path in place.rglob("*") if path.is_file() and _ends(path.relative_to(place).as_posix(), end))
                found = [(path, path.relative_to(place).as_posix()) for path in names]
            elif place.is_file() and is_archive(place.name):
                found = [(place, member.name) for member in members(place, 10_000, MOST_BYTES, 1000) if not member.refused and _ends(member.name, end)]
            else:
                continue
            if found:
                return found
        return []


def _ends(name: str, end: str) -> bool:
    """Whether a path ends in whole parts of `end`, or in a suffix such as `*.txt`."""
    return name.endswith(end[1:]) if end.startswith("*") else f"/{name}".endswith(f"/{end}")


def _unpacked(data: bytes, name: str) -> bytes:
    try:
        with gzip.open(io.BytesIO(data)) as handle:
            unpacked = handle.read(MOST_BYTES + 1)
    except (OSError, EOFError) as error:
        raise DataError(f"{name} cannot be unpacked: {error}", "it is damaged; take it from its source again") from error
    if len(unpacked) > MOST_BYTES:
        raise DataError(f"{name} unpacks to more than {MOST_BYTES >> 20} MiB", "no task of ours is as large; is it the right file?")
    return unpacked
