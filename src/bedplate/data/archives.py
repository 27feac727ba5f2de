"""Archives read in place: zip and tar members listed with their limits checked, and read one at a time. Nothing is ever unpacked to disk."""

from __future__ import annotations

import functools
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from bedplate.core.errors import DataError

ZIP = (".zip",)
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


class Member(NamedTuple):
    """A file inside an archive, or the reason why it is not read."""

    name: str
    size: int
    refused: str = ""


def is_archive(name: str) -> bool:
    """Whether a name is that of an archive."""
    return name.lower().endswith(ZIP + TAR)


def climbs(name: str) -> bool:
    """Whether a member's name points out of its archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or name[1:2] == ":" or "\x00" in name


def members(path: Path, most_members: int, most_bytes: int, most_ratio: float) -> Iterator[Member]:
    """The files of an archive in their order, each judged before anything of it is read.

    Args:
        path: a zip or tar.
        most_members: files looked at; the rest is one refused member.
        most_bytes: claimed size of one member.
        most_ratio: claimed size over stored size (zip only; a tar stores no such number, so reading is bounded instead).
    Raises:
        DataError: it is not a readable archive.
    """
    for count, (member, links, ratio) in enumerate(_raw_members(path)):
        if count >= most_members:
            yield Member("", 0, "archive too many members")
            return
        if climbs(member.name):
            yield member._replace(refused="archive climbs out")
        elif links:
            yield member._replace(refused="archive link")
        elif member.size > most_bytes:
            yield member._replace(refused="too large")
        elif ratio > most_ratio and member.size > 1 << 20:
            yield member._replace(refused="archive bomb")
        else:
            yield member


def read_member(path: Path, name: str, most_bytes: int) -> bytes:
    """The bytes of one member, never more than `most_bytes` whatever its header claims.

    Raises:
        DataError: it is missing, damaged, encrypted or larger.
    """
    try:
        if path.name.lower().endswith(ZIP):
            with _zip(str(path), path.stat().st_mtime_ns).open(name) as handle:
                data = handle.read(most_bytes + 1)
        else:
            opened = _tar(str(path), path.stat().st_mtime_ns).extractfile(name)
            if opened is None:
                raise DataError(f"{name} in {path.name} is not a file", "only plain members are read")
            data = opened.read(most_bytes + 1)
    except DataError:
        raise
    except Exception as error:  # zlib, lzma, bz2, struct, encryption: hostile archives raise many kinds
        raise DataError(f"{name} in {path.name} cannot be read: {error}", "the archive is damaged or encrypted") from error
    if len(data) > most_bytes:
        raise DataError(f"{name} in {path.name} is larger than it claims", f"at most {most_bytes} bytes are read")
    return data


def _raw_members(path: Path) -> Iterator[tuple[Member, bool, float]]:
    try:
        if path.name.lower().endswith(ZIP):
            for info in _zip(str(path), path.stat().st_mtime_ns).infolist():
                if not info.is_dir():
                    links = (info.external_attr >> 28) == 0xA
                    yield Member(info.filename, info.file_size), links, info.file_size / max(info.compress_size, 1)
        else:
            for entry in _tar(str(path), path.stat().st_mtime_ns):
                if not entry.isdir():
                    yield Member(entry.name, entry.size), not entry.isfile(), 1.0
    except Exception as error:  # as above
        raise DataError(f"{path} is not a readable archive: {error}", "it is damaged, or its name claims another format") from error


@functools.lru_cache(maxsize=4)
def _zip(path: str, changed_ns: int) -> zipfile.ZipFile:
    data: io.BufferedReader = Path(path).open("rb")  # noqa: SIM115 - lives as long as the cached archive
    return zipfile.ZipFile(data)


@functools.lru_cache(maxsize=4)
def _tar(path: str, changed_ns: int) -> tarfile.TarFile:
    return tarfile.open(path, "r:*")
