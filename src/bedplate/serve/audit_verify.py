"""Verify an audit offline: whether every record is there, unchanged and in order, and how far the gateway has signed for it.

    report = verify(folder, PublicKey.read(pem))
    report.holds, report.findings, report.records, report.signed_n, report.closed, report.torn_bytes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bedplate.core.errors import DataError, IntegrityError
from bedplate.serve.audit_chain import CHECKPOINT, START, Entry, Record, checkpoint_holds
from bedplate.serve.audit_files import HEAD, files, first_of, lines, read_head
from bedplate.serve.signing import PublicKey

MOST_FINDINGS = 100


class Finding(NamedTuple):
    """What does not hold, and where."""

    n: int
    """The record; 0: the log as a whole."""
    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}, record {self.n}: {self.what}" if self.n else f"{self.file}: {self.what}"


@dataclass(frozen=True)
class Report:
    """What verification found."""

    findings: tuple[Finding, ...]
    """Empty: everything holds. At most a hundred are told."""
    records: int
    files: int
    checkpoints: int
    signed_n: int
    """The record up to which the gateway has signed."""
    closed: bool
    """The last record is a checkpoint that says the log ends here. Otherwise it is still written, or its writer was killed."""
    torn_bytes: int
    """Half a line at the end, as a crash leaves; it was never confirmed to anybody."""
    end: Entry
    """The last record. Kept somewhere else, it is an anchor for the next verification."""

    @property
    def holds(self) -> bool:
        """Whether nothing was flipped, deleted, reordered or cut off up to `signed_n`."""
        return not self.findings

    @property
    def unsigned(self) -> int:
        """Records after the last checkpoint: chained, not signed yet."""
        return max(0, self.records - self.signed_n)


class _Reading:
    def __init__(self, key: PublicKey, start: int, anchors: tuple[Entry, ...]) -> None:
        self.key = key
        self.anchors = {anchor.n: anchor.hash for anchor in anchors}
        self.head: Entry | None = None
        """The newest checkpoint, as head.json has it."""
        self.findings: list[Finding] = []
        self.before: Entry | None = Entry(0, START) if start <= 1 else None
        self.n = max(start, 1)
        self.checkpoints = self.signed_n = 0
        self.closed = False
        self.end = Entry(0, START)

    @property
    def last_n(self) -> int:
        return self.end.n

    def found(self, n: int, file: str, what: str) -> None:
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(n, file, what))

    def line(self, line: bytes, file: str) -> None:
        try:
            record = Record.parse(line)
        except ValueError as error:
            self.found(self.n, file, f"it was changed: {error}")
            self.before = None  # the next one cannot be compared with it
            self.n += 1
            return
        if record.n != self.n:
            gap = f"records {self.n} to {record.n - 1} are missing" if record.n > self.n else f"record {record.n} stands where record {self.n} should"
            self.found(self.n, file, gap)
        elif self.before is not None and record.previous != self.before.hash:
            self.found(record.n, file, "it does not follow the record before it: one of the two was exchanged")
        if self.anchors.get(record.n, record.hash) != record.hash:
            self.found(record.n, file, "it is another than the one that was noted elsewhere")
        if self.head is not None and record.n == self.head.n and record.hash != self.head.hash:
            self.found(record.n, file, "it is another than the one that was signed last, as head.json has it")
        self.closed = False
        if record.kind == CHECKPOINT:
            self.checkpoints += 1
            if checkpoint_holds(record, self.key):
                self.signed_n = max(self.signed_n, record.n)
                self.closed = record.body["closed"] is True
            else:
                self.found(record.n, file, f"the checkpoint was not signed by the key {self.key.id}")
        self.before = self.end = record.entry
        self.n = record.n + 1


def verify(folder: Path, key: PublicKey, *, start: int = 1, anchors: tuple[Entry, ...] = ()) -> Report:
    """Read the whole log and say what does not hold.

    Args:
        folder: the audit's folder; nothing in it is changed.
        key: the gateway's public key, from somewhere else than the folder.
        start: the first record that must be there; files with earlier ones may have been archived.
        anchors: places of the chain that were noted elsewhere, such as the `end` of an earlier report: also a log that was put back whole to an older
            state is then found.
    Raises:
        DataError: there is no log.
    """
    present = files(folder)
    if not present:
        raise DataError(f"there is no audit in {folder}", "give the folder that holds audit-*.jsonl")
    reading = _Reading(key, start, anchors)
    try:
        reading.head = read_head(folder, key)
    except IntegrityError as error:
        reading.found(0, HEAD, error.message)
    torn = 0
    for number, path in enumerate(present):
        if number == 0 and start > 1:
            reading.n = first_of(path)
            if reading.n > start:
                reading.found(start, path.name, f"records {start} to {reading.n - 1} are missing")
        elif first_of(path) != reading.n:
            reading.found(reading.n, path.name, f"the file begins with record {first_of(path)} where record {reading.n} should stand")
        for line in lines(path):
            if line.endswith(b"\n"):
                reading.line(line[:-1], path.name)
            elif path is present[-1]:
                torn = len(line)
            else:
                reading.found(reading.n, path.name, "the line was cut")
                reading.n += 1
                reading.before = None
    if reading.head is not None:
        _against_head(reading, reading.head, present[-1].name)
    beyond = [n for n in reading.anchors if n > reading.last_n]
    if beyond:
        reading.found(max(beyond), present[-1].name, f"it was noted elsewhere, but the log ends at record {reading.last_n}")
    return Report(tuple(reading.findings), reading.last_n, len(present), reading.checkpoints, reading.signed_n, reading.closed and not torn, torn, reading.end)


def _against_head(reading: _Reading, head: Entry, file: str) -> None:
    if head.n > reading.last_n:
        reading.found(reading.last_n + 1, file, f"the log was cut: record {head.n} was signed, the last one here is {reading.last_n}")
    elif head.n < reading.signed_n:
        reading.found(0, file, f"head.json names record {head.n}, but record {reading.signed_n} was signed after it")
