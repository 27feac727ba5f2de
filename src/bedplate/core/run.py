"""Run: every long job is a folder with `run.toml` (resolved settings), `events.jsonl`, a lock and a heartbeat.

    with Run.open(Path("runs/first"), kind="pretrain", resolved=settings) as run:
        run.events.emit("step", step=1, ...)

The lock is an OS file lock, so a killed process releases it; the heartbeat (age of the file `heartbeat`) tells watchers alive from dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bedplate.core.config import Resolved, to_mapping, to_toml
from bedplate.core.environment import environment
from bedplate.core.errors import BedplateError, StateError, from_system
from bedplate.core.events import EventLog, Listener, read_events
from bedplate.core.files import write_text

HEARTBEAT_S = 5.0


class Run:
    """An open run folder. Use as a context manager; failures are recorded with their hint, and with a trace in `trace.txt`."""

    def __init__(self, folder: Path, kind: str, listeners: tuple[Listener, ...] = ()) -> None:
        self.folder = folder
        self.kind = kind
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take_lock(self._lock)
        except BlockingIOError as error:
            owner = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            os.close(self._lock)
            busy = f"run {folder} is already running (process {owner or 'unknown'})"
            raise StateError(busy, f"watch it with `bedplate runs watch {folder}`") from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        self.events = EventLog(folder / "events.jsonl", listeners)
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._beat()
        threading.Thread(target=self._beats, name="heartbeat", daemon=True).start()

    @classmethod
    def open(
        cls,
        folder: Path,
        kind: str,
        resolved: Resolved[Any],
        listeners: tuple[Listener, ...] = (),
        check: Callable[[Path], None] | None = None,
    ) -> Self:
        """Lock the folder, write run.toml, and say that the run started.

        Args:
            folder: of the run; made when missing.
            kind: of job.
            resolved: its settings.
            listeners: told of every event.
            check: refuses a folder that holds a run of other settings, by raising. It is asked while the folder is ours and still as that run left it.
        """
        run = cls(folder, kind, listeners)
        try:
            if check is not None:
                check(folder)
            write_text(folder / "run.toml", f"# kind: {kind}\n" + to_toml(resolved))
        except BaseException:
            run.close()
            raise
        run.events.emit("run_started", kind=kind, settings=to_mapping(resolved.value), environment=environment())
        return run

    @property
    def seconds(self) -> float:
        """Seconds since this process opened the run."""
        return time.monotonic() - self._started

    def close(self) -> None:
        """Release the lock. Closing twice does no harm."""
        if self._stop.is_set():
            return
        self._stop.set()
        self.events.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.events.emit("run_stopped", reason="interrupted")
        elif error is not None:
            import traceback

            told = error if isinstance(error, BedplateError) else from_system(error)
            message = f"{type(error).__name__}: {error}" if told is None else told.message
            with contextlib.suppress(OSError):  # a full disk must not hide that it is full
                self.events.emit("run_failed", error=message, hint="" if told is None else told.hint)
                write_text(self.folder / "trace.txt", "".join(traceback.format_exception(error)))
        self.close()

    def _beat(self) -> None:
        (self.folder / "heartbeat").write_text(f"{time.time():.0f}\n")

    def _beats(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                self._beat()
            except OSError:  # the folder was removed under us: nothing left to tell
                return


class Follower(Run):
    """A run that another process leads: this one works on it, and writes and tells nothing."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.events = EventLog(None)
        self._started = time.monotonic()

    def close(self) -> None:
        """Nothing is held."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _take_lock(descriptor: int) -> None:
    """Take the lock. Somebody who asks for the state holds it for an instant, so only a refusal that lasts counts.

    Raises:
        BlockingIOError: another process has it.
    """
    for _ in range(50):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def run_state(folder: Path) -> str:
    """"running", "finished", "failed", "stopped", or "interrupted" (its process died without a word)."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY)
    except FileNotFoundError:
        held = False
    else:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            held = False
        except BlockingIOError:
            held = True
        finally:
            os.close(descriptor)
    if held:
        return "running"
    last = ""
    for event in read_events(folder / "events.jsonl", ("run_started", "run_resumed", "run_finished", "run_failed", "run_stopped")):
        last = event["event"]
    return {"run_finished": "finished", "run_failed": "failed", "run_stopped": "stopped"}.get(last, "interrupted")
