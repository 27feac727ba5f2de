"""Audit: what the gateway did, in lines that answer for each other and are signed every so often.

    log = AuditLog.open(folder, Signer.open(pem), AuditSettings())
    entry = log.append("answer", {"id": ..., "receipt": ...})      # returns at once; a thread of its own writes and syncs
    log.flush(entry)                                                # waits until that record survives a power cut
    log.close()                                                     # the last record is a signed checkpoint that says: closed

The folder holds `audit-NNNNNNNNNNNN.jsonl` (the number is that of its first record), `head.json` (the newest checkpoint, so that a log cut back to
an older one is found) and `audit.pub.pem`. What cannot be written stops the gateway from answering: `append` then raises.
audit_verify.py reads it back; docs/formats/audit.md says what is proved by it and what is not.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import bedplate
from bedplate.core.errors import BedplateError, ConfigError, IntegrityError, ResourceError, StateError
from bedplate.core.files import fsync_folder, sha256_bytes, write_bytes
from bedplate.serve.audit_chain import START, Entry, Record, checkpoint
from bedplate.serve.audit_files import HEAD, PUBLIC, file_name, files, head_bytes, read_end, read_head
from bedplate.serve.signing import Signer, as_read

__all__ = ["AuditLog", "AuditSettings", "Entry"]


@dataclass(frozen=True)
class AuditSettings:
    """How the audit is written."""

    rotate_bytes: int = 67_108_864
    """A file that has become larger is followed by a new one."""
    checkpoint_records: int = 1000
    """A checkpoint is signed after so many records ..."""
    checkpoint_s: float = 60.0
    """... or after so many seconds, whichever comes first, where there is anything new."""
    most_unwritten: int = 10_000
    """Records that may wait for the disk; beyond them nothing more is answered."""

    def __post_init__(self) -> None:
        if min(self.rotate_bytes, self.checkpoint_records, self.most_unwritten) < 1 or not self.checkpoint_s > 0:
            raise ConfigError("a setting of the audit is below 1", "67108864 bytes, 1000 records, 60 s, 10000 unwritten are usual")


class AuditLog:
    """A log under way. Safe from any thread. Make it with `open`."""

    def __init__(self, folder: Path, signer: Signer, settings: AuditSettings, clock: Callable[[], float], lock: int, end: Entry) -> None:
        self.folder, self.settings = folder, settings
        self._signer, self._clock, self._lock = signer, clock, lock
        self._turn = threading.Condition()
        self._end = end
        self._pending: list[Record] = []
        self._waiting: list[tuple[int, Future[None]]] = []
        """(record, told once it is written)."""
        self._unsigned = 0
        self._signed_s = clock()
        self._written_n = end.n
        self._failure: BedplateError | None = None
        self._closing = False
        self._file = -1
        self._writer = threading.Thread(target=self._write_all, name="audit", daemon=True)

    @classmethod
    def open(cls, folder: Path, signer: Signer, settings: AuditSettings, clock: Callable[[], float] = time.time) -> Self:
        """Begin a log, or continue one where it ended; half a line that a crash left is cut off and noted.

        Args:
            folder: made when missing; nobody else may be writing it.
            signer: the gateway's key; a log keeps its key.
            settings: how it is written.
            clock: seconds since 1970.
        Raises:
            StateError: another process writes it.
            IntegrityError: what is there does not hold; nothing is added to it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StateError(f"another process writes the audit in {folder}", "give each gateway a folder of its own") from error
            end, torn = _recover(folder, signer)
            log = cls(folder, signer, settings, clock, lock, end)
            write_bytes(folder / PUBLIC, signer.public.pem)
            log._writer.start()
        except BaseException:
            os.close(lock)
            raise
        log.append("opened", {"version": bedplate.__version__, "key": signer.public.id})
        if torn:
            log.append("recovered", {"cut_bytes": len(torn), "sha256": sha256_bytes(torn)})
        log.sign()
        log.flush()
        return log

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Add a record; its place in the chain is fixed at once, the disk follows within milliseconds.

        Args:
            kind: one word.
            body: JSON-able, no NaN; its own fields, never a key or a token.
        Raises:
            ResourceError: the disk does not keep up, or cannot be written: answer nothing that is not written down.
            StateError: the log is closed.
        """
        body = as_read(body)  # what is signed must be what is read back
        with self._turn:
            self._check(kind)
            record = Record.following(self._end, self._now(), kind, body)
            self._add(record)
            self._unsigned += 1
            if self._unsigned >= self.settings.checkpoint_records:
                self._sign(closed=False)
            return record.entry

    def sign(self) -> Entry:
        """Sign a checkpoint now."""
        with self._turn:
            self._check("checkpoint")
            return self._sign(closed=False)

    def flush(self, entry: Entry | None = None, timeout_s: float | None = None) -> bool:
        """Wait until a record (by default all of them) survives a power cut. False: it took longer than that.

        Raises:
            ResourceError: it cannot be written.
        """
        with self._turn:
            n = self._end.n if entry is None else entry.n
            done = self._turn.wait_for(lambda: self._written_n >= n or self._failure is not None, timeout_s)
            if self._failure is not None and self._written_n < n:
                raise self._failure
            return done

    def written(self, entry: Entry) -> Future[None]:
        """Done once a record survives a power cut; for those who must not wait in a thread. Its error is ResourceError: it cannot be written."""
        told: Future[None] = Future()
        with self._turn:
            self._waiting.append((entry.n, told))
            self._tell()
        return told

    @property
    def end(self) -> Entry:
        """The newest record."""
        return self._end

    @property
    def unwritten(self) -> int:
        """Records that wait for the disk."""
        return self._end.n - self._written_n

    def close(self) -> None:
        """Sign that it ends here, write everything, let go of the folder. A second time does nothing.

        Raises:
            ResourceError: it could not be written.
        """
        with self._turn:
            if self._closing:
                return
            if self._failure is None:
                self._sign(closed=True)
            self._closing = True
            self._turn.notify_all()
        self._writer.join()
        if self._file >= 0:
            os.close(self._file)
        os.close(self._lock)
        if self._failure is not None:
            raise self._failure

    def _check(self, kind: str) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise StateError(f"{kind!r} comes after the audit was closed", "open it again")
        if len(self._pending) >= self.settings.most_unwritten:
            raise ResourceError(f"{len(self._pending)} records wait for the audit's disk", "ask again in a second; a faster disk helps")

    def _add(self, record: Record) -> None:
        self._pending.append(record)
        self._end = record.entry
        self._turn.notify_all()

    def _sign(self, closed: bool) -> Entry:
        record = checkpoint(self._signer, self._end, self._now(), closed)
        self._add(record)
        self._unsigned, self._signed_s = 0, self._clock()
        return record.entry

    def _tell(self) -> None:
        """Tell those whose records are written, or never will be."""
        waiting, self._waiting = self._waiting, []
        for n, told in waiting:
            if n > self._written_n and self._failure is None:
                self._waiting.append((n, told))
            elif told.set_running_or_notify_cancel():  # else nobody waits any more
                told.set_result(None) if n <= self._written_n else told.set_exception(self._failure)

    def _now(self) -> str:
        return dt.datetime.fromtimestamp(self._clock(), dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _write_all(self) -> None:
        """The writer's thread: what has come together is written with one sync."""
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._pending or self._closing, timeout=min(1.0, self.settings.checkpoint_s))
                if not self._pending and not self._closing and self._unsigned and self._clock() - self._signed_s >= self.settings.checkpoint_s:
                    self._sign(closed=False)
                batch, self._pending = self._pending, []
                if not batch and self._closing:
                    return
            if batch:
                try:
                    self._write(batch)
                except OSError as error:
                    said = f"the audit in {self.folder} cannot be written: {error.strerror or error}"
                    with self._turn:
                        self._failure = ResourceError(said, "make room or mend the disk, start again")
                        self._tell()
                        self._turn.notify_all()
                    return
                with self._turn:
                    self._written_n = batch[-1].n
                    self._tell()
                    self._turn.notify_all()

    def _write(self, batch: list[Record]) -> None:
        if self._file >= 0 and os.fstat(self._file).st_size >= self.settings.rotate_bytes:
            os.close(self._file)
            self._file = -1
        if self._file < 0:
            present = files(self.folder)
            latest = present[-1] if present else None
            fits = latest is not None and latest.stat().st_size < self.settings.rotate_bytes
            path = latest if latest is not None and fits else self.folder / file_name(batch[0].n)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fsync_folder(self.folder)
        data = b"".join(record.line for record in batch)
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)
        signed = [record for record in batch if record.kind == "checkpoint"]
        if signed:
            write_bytes(self.folder / HEAD, head_bytes(signed[-1]), private=True)


def _recover(folder: Path, signer: Signer) -> tuple[Entry, bytes]:
    """Where a log ends, and the half line that was cut off behind it."""
    present = files(folder)
    if not present:
        if (folder / HEAD).exists():
            raise IntegrityError(f"the records of {folder} are gone", "restore them from a copy, or begin in a new folder")
        return Entry(0, START), b""
    end = read_end(folder, read_head(folder, signer.public), signer.public)
    if end.torn:
        with present[-1].open("r+b") as handle:
            handle.truncate(handle.seek(0, os.SEEK_END) - len(end.torn))
            os.fsync(handle.fileno())
    return end.entry, end.torn
