"""Inputs: what there is to read, listed cheaply and in a fixed order, before anything is decoded.

A source is a folder, a glob, a file, or an archive. Large plain files become several inputs, each a range of bytes that ends at a line, so
that memory stays flat and several processes share one file.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bedplate.core.errors import ConfigError, DataError, did_you_mean
from bedplate.data.archives import is_archive, members, read_member
from bedplate.data.document import Origin, Skipped
from bedplate.data.licences import FILE_NAMES, recognise

IMAGE = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".dcm")
AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aac", ".opus", ".aiff", ".aif", ".au")
VIDEO = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".mpg", ".mpeg", ".m4v")
PLAIN = (".txt", ".md", ".rst", ".log", ".jsonl", ".ndjson", ".text")
"""Kinds that may be cut into ranges of bytes."""

SKIPPED_FOLDERS = frozenset(("__pycache__", "node_modules", ".git", ".hg", ".svn", ".venv", "site-packages.dist-info"))


@dataclass(frozen=True)
class SourceSettings:
    """What is read and within which limits."""

    hidden: bool = False
    """Read files and folders whose names begin with a dot."""
    licence: str = ""
    """Licence of everything read, where the user knows better than the files."""
    max_file_bytes: int = 512 << 20
    """A single file or archive member that is larger is skipped (plain text and JSONL are cut instead)."""
    max_text_bytes: int = 1 << 20
    """A longer text becomes several documents, cut at line ends."""
    range_bytes: int = 8 << 20
    """Plain files are read in ranges of this size."""
    max_members: int = 1_000_000
    """Members of an archive that are looked at."""
    max_ratio: float = 200.0
    """An archive member that claims to unpack to more than this many times its stored size is a bomb."""

    def __post_init__(self) -> None:
        for name in ("max_file_bytes", "max_text_bytes", "range_bytes", "max_members", "max_ratio"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sources.{name} = {getattr(self, name)} lets nothing in", f"set sources.{name} to 1 or more")


@dataclass(frozen=True)
class Input:
    """One thing to read: a file, a range of one, or an archive's member."""

    path: Path
    source: str
    """The path as it is told in the corpus."""
    member: str = ""
    size: int = 0
    start: int = 0
    """First byte of the range; only with `end`."""
    end: int = 0
    """0: the whole."""
    sidecar: str = ""
    """Name of the text beside it that describes it: a path, or a member of the same archive."""
    licence: str = ""

    @property
    def name(self) -> str:
        """The name that tells the kind."""
        return self.member or self.path.name


@dataclass
class _Folder:
    """What one folder (or archive folder) holds: decides sidecars and licence."""

    names: list[tuple[str, int]] = field(default_factory=list)
    licence: str = ""


def list_inputs(sources: Sequence[str], settings: SourceSettings) -> Iterator[Input | Skipped]:
    """Everything to read, in the order of the sources and sorted within each; what is refused comes as Skipped.

    Raises:
        DataError: a source does not exist or matches nothing.
    """
    for source in sources:
        for path in _expand(source):
            if path.is_dir():
                yield from _list_folder(path, path, "", settings)
            else:
                yield from _list_file(path, str(path), settings.licence, "", settings)


def read_input(item: Input, settings: SourceSettings) -> bytes:
    """The bytes of an input.

    Raises:
        DataError: it cannot be read or is too large.
    """
    if item.member:
        return read_member(item.path, item.member, settings.max_file_bytes)
    try:
        if item.end:
            return _read_range(item.path, item.start, item.end)
        if item.size > settings.max_file_bytes:
            raise DataError(f"{item.source} has {item.size} bytes", f"set sources.max_file_bytes={item.size} to read it")
        return item.path.read_bytes()
    except OSError as error:
        raise DataError(f"{item.source} cannot be read: {error.strerror}", "check its permissions") from error


def read_beside(item: Input, name: str, settings: SourceSettings) -> bytes:
    """The bytes of another file beside an input (a sidecar, or a path that a table names); never outside of its folder or archive."""
    if item.member:
        return read_member(item.path, name, settings.max_file_bytes)
    path = (item.path.parent / name).resolve()
    if not path.is_relative_to(item.path.parent.resolve()):
        raise DataError(f"{name} lies outside of {item.path.parent}", "paths in a table must stay inside its folder")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}", "the table names a file that is not there") from error


def _expand(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.exists():
        return [path]
    if any(c in source for c in "*?["):
        found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - the pattern may be absolute
        if found:
            return found
        raise DataError(f"{source} matches no file", "check the pattern; ** reaches into folders")
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise DataError(f"there is no {source}", did_you_mean(path.name, siblings[:1000]) if siblings else f"there is no folder {path.parent} either")


def _list_folder(root: Path, folder: Path, licence: str, settings: SourceSettings) -> Iterator[Input | Skipped]:
    files: list[os.DirEntry[str]] = []
    folders: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root.resolve()):
                    yield Skipped(Origin(entry.path), "link leaves the folder")
                elif not settings.hidden and entry.name.startswith("."):
                    continue
                elif entry.is_dir():
                    if entry.is_symlink() or entry.name in SKIPPED_FOLDERS:
                        continue
                    folders.append(entry)
                elif entry.is_file():
                    files.append(entry)
                else:
                    yield Skipped(Origin(entry.path), "not a file")
    except OSError as error:
        yield Skipped(Origin(str(folder)), "unreadable", str(error.strerror))
        return
    licence = settings.licence or _licence_in(folder, [f.name for f in files]) or licence
    names = {f.name for f in files}
    sidecars = sidecar_table(names)
    for entry in files:
        if entry.name in sidecars.values() or (entry.is_symlink() and not Path(entry.path).exists()):
            continue
        yield from _list_file(Path(entry.path), entry.path, licence, sidecars.get(entry.name, ""), settings)
    for entry in folders:
        yield from _list_folder(root, Path(entry.path), licence, settings)


def sidecar_table(names: set[str]) -> dict[str, str]:
    """Picture, sound or clip -> the `.txt` of the same stem beside it."""
    return {n: f"{n.rpartition('.')[0]}.txt" for n in names if n.lower().endswith(IMAGE + AUDIO + VIDEO) and f"{n.rpartition('.')[0]}.txt" in names}


def _licence_in(folder: Path, names: list[str]) -> str:
    for name in names:
        if FILE_NAMES.match(name):
            try:
                found = recognise((folder / name).read_bytes()[:50_000].decode("utf-8", errors="replace"))
            except OSError:
                continue
            if found:
                return found
    return ""


def _list_file(path: Path, source: str, licence: str, sidecar: str, settings: SourceSettings) -> Iterator[Input | Skipped]:
    try:
        size = path.stat().st_size
    except OSError as error:
        yield Skipped(Origin(source), "unreadable", str(error.strerror))
        return
    if is_archive(path.name):
        yield from _list_archive(path, source, licence, settings)
    elif size == 0:
        yield Skipped(Origin(source), "empty")
    elif size > settings.range_bytes and path.name.lower().endswith(PLAIN):
        for start in range(0, size, settings.range_bytes):
            end = min(size, start + settings.range_bytes)
            yield Input(path, source, size=end - start, start=start, end=end, licence=licence)
    elif size > settings.max_file_bytes:
        yield Skipped(Origin(source, bytes=size), "too large", f"{size} bytes")
    else:
        yield Input(path, source, size=size, sidecar=sidecar, licence=licence)


def _list_archive(path: Path, source: str, licence: str, settings: SourceSettings) -> Iterator[Input | Skipped]:
    try:
        listed = list(members(path, settings.max_members, settings.max_file_bytes, settings.max_ratio))
    except DataError as error:
        yield Skipped(Origin(source), "archive damaged", error.message)
        return
    licences = {}
    for member in listed:
        folder, _, name = member.name.rpartition("/")
        if not member.refused and FILE_NAMES.match(name) and member.size < 200_000:
            try:
                licences[folder] = recognise(read_member(path, member.name, settings.max_file_bytes)[:50_000].decode("utf-8", errors="replace"))
            except DataError:
                continue
    sidecars = sidecar_table({member.name for member in listed})
    told = set(sidecars.values())
    for member in sorted(listed, key=lambda m: m.name):
        origin = Origin(source, member.name, bytes=member.size)
        if member.refused:
            yield Skipped(origin, member.refused, f"{member.size} bytes")
        elif member.name in told or (not settings.hidden and any(part.startswith(".") for part in member.name.split("/"))):
            continue
        elif member.size == 0:
            yield Skipped(origin, "empty")
        elif is_archive(member.name):
            yield Skipped(origin, "archive in an archive", "unpack the outer one first")
        else:
            above = member.name.split("/")[:-1]
            nearest = next((licences["/".join(above[:n])] for n in range(len(above), -1, -1) if licences.get("/".join(above[:n]))), "")
            yield Input(path, source, member.name, member.size, sidecar=sidecars.get(member.name, ""), licence=settings.licence or nearest or licence)


def _read_range(path: Path, start: int, end: int) -> bytes:
    """Bytes of the lines that begin in start..end; a line that never ends is cut at a character."""
    longest_line = 16 << 20 if path.name.lower().endswith((".jsonl", ".ndjson")) else 64 << 10
    with path.open("rb") as handle:

        def boundary(at: int) -> int:
            """The start of the first line at or behind `at`."""
            if at == 0:
                return 0
            handle.seek(at - 1)
            window = handle.read(longest_line + 1)
            newline = window.find(b"\n")
            if newline >= 0:
                return at + newline
            if len(window) <= longest_line:  # the last line, which has no end: it belongs to the range it began in
                return at - 1 + len(window)
            inside = next((n for n, byte in enumerate(window[1:5]) if byte & 0xC0 != 0x80), 0)
            return at + inside  # never in the middle of a UTF-8 character

        first, last = boundary(start), boundary(end)
        handle.seek(first)
        return handle.read(max(0, last - first))
