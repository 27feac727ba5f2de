"""The audit's folder: names, the head that says how far it was signed, and where it ends."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bedplate.core.errors import DataError, IntegrityError
from bedplate.serve.audit_chain import CHECKPOINT, START, Entry, Record, checkpoint_holds
from bedplate.serve.signing import PublicKey

HEAD = "head.json"
PUBLIC = "audit.pub.pem"
SLICE_BYTES = 1_048_576
"""Searched at once: under a millisecond."""
_NAME = re.compile(r"audit-(\d{12})\.jsonl")


def file_name(first: int) -> str:
    """Name of the file that begins with a record."""
    return f"audit-{first:012d}.jsonl"


def first_of(path: Path) -> int:
    """Number of the record with which a file says that it begins."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def files(folder: Path) -> list[Path]:
    """The files of a log, in order."""
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else []


def head_bytes(record: Record) -> bytes:
    """What `head.json` holds: the newest checkpoint, as it stands in the log."""
    return record.line


def read_head(folder: Path, key: PublicKey) -> Entry:
    """The newest checkpoint that was signed.

    Raises:
        IntegrityError: it is missing, damaged or signed by somebody else.
    """
    try:
        data = (folder / HEAD).read_bytes()
    except OSError as error:
        raise IntegrityError(f"{HEAD} of the audit in {folder} is missing", "without it nobody can say how long the log was; restore it from a copy") from error
    try:
        record = Record.parse(data.removesuffix(b"\n"))
        if not data.endswith(b"\n"):
            raise ValueError("its end is missing")
    except ValueError as error:
        raise IntegrityError(f"{HEAD} of the audit in {folder} is damaged: {error}", "restore it from a copy") from error
    if record.kind != CHECKPOINT or not checkpoint_holds(record, key):
        raise IntegrityError(f"{HEAD} of the audit in {folder} was not signed by the key {key.id}", "give the public key of the gateway that wrote this log")
    return record.entry


class End(NamedTuple):
    """Where a log ends."""

    entry: Entry
    torn: bytes
    """Bytes behind the last complete line."""


def read_end(folder: Path, head: Entry, key: PublicKey) -> End:
    """Where a log ends. It must hang together from the file on that holds the newest checkpoint: what is added will be signed, and all before with it.

    Args:
        folder: the audit's.
        head: the newest checkpoint that was signed.
        key: the gateway's.
    Raises:
        IntegrityError: a complete line does not hold, or the checkpoint is not in it.
    """
    present = files(folder)
    begin = max((place for place, path in enumerate(present) if first_of(path) <= head.n), default=0)
    torn, before, n = b"", Entry(0, START) if begin == 0 and first_of(present[0]) == 1 else None, first_of(present[begin])
    for path in present[begin:]:
        if first_of(path) != n or torn:
            raise _broken(f"{path.name} does not follow the file before it")
        for line in lines(path):
            if not line.endswith(b"\n"):
                torn = line
                break
            try:
                record = Record.parse(line[:-1])
            except ValueError as error:
                raise _broken(f"{path.name}, record {n}: {error}") from error
            if record.n != n or (before is not None and record.previous != before.hash):
                raise _broken(f"{path.name}: record {n} does not follow the one before")
            if (n == head.n and record.hash != head.hash) or (record.kind == CHECKPOINT and not checkpoint_holds(record, key)):
                raise _broken(f"{path.name}: record {n} is another than the one that was signed")
            before, n = record.entry, n + 1
    if before is None or before.n < head.n:
        raise _broken(f"the audit in {folder} ends at record {n - 1}, but record {head.n} was signed")
    return End(before, torn)


def _broken(what: str) -> IntegrityError:
    return IntegrityError(what, "see `bedplate serve audit verify`; begin a new log in another folder")


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends; the last may have none."""
    with path.open("rb") as handle:
        yield from handle


def find(folder: Path, identity: str) -> Record | None:
    """The newest record whose body has this `id`; None: there is none. Reads files as bytes: about a gigabyte a second.

    Raises:
        DataError: that cannot be an id.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", identity):
        raise DataError(f"{identity[:60]!r} is no id of an answer", "it stands in the answer, and in x-bedplate-receipt")
    needle = f'"id":"{identity}"'.encode()
    for path in reversed(files(folder)):
        if path.stat().st_size == 0:
            continue
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = _last(data, needle, len(data))
            while at >= 0:
                start, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
                record = _whole(data[start:end]) if end >= 0 else None
                if record is not None and record.body.get("id") == identity:
                    return record
                at = _last(data, needle, at)
    return None


def _last(data: mmap.mmap, needle: bytes, end: int) -> int:
    """Where it stands last before a place; -1: nowhere. A slice at a time: while one is searched, no other thread of the process goes on."""
    while end >= len(needle):
        start = max(0, end - SLICE_BYTES - len(needle))
        if (at := data.rfind(needle, start, end)) >= 0:
            return at
        end = start + len(needle) - 1 if start else 0
    return -1


def newest(folder: Path, kind: str, most: int, wanted: Callable[[Mapping[str, Any]], bool] = lambda body: True, most_bytes: int = 262_144) -> list[Record]:
    """The last records of a kind, newest first, as far as they stand in the last bytes of the log: for a look, not for proof.

    Args:
        folder: the audit's.
        kind: of the records.
        most: how many.
        wanted: body -> whether to take it.
        most_bytes: how far back to look.
    """
    found: list[Record] = []
    mark = f'"kind":"{kind}"'.encode()
    for path in reversed(files(folder)):
        size = path.stat().st_size
        with path.open("rb") as handle:
            handle.seek(max(0, size - most_bytes))
            parts = handle.read(size).split(b"\n")
        for line in reversed(parts[1:] if size > most_bytes else parts):  # the first may be half a line
            record = _whole(line) if mark in line else None
            if record is not None and record.kind == kind and wanted(record.body):
                found.append(record)
                if len(found) == most:
                    return found
        most_bytes -= size
        if most_bytes <= 0:
            break
    return found


def _whole(line: bytes) -> Record | None:
    try:
        return Record.parse(line)
    except ValueError:
        return None
