"""A program in a process of its own, confined, watched and ended: see confine.py for what it may do.

    run_program("assert f(1) == 2\\n", Limits(seconds=5))       # Outcome(passed=False, reason="error", detail="NameError: ...")

A program passes when it reaches its end: the last line says a word made up for this run, so leaving early is no way to pass. It is no
defence against a program that reads its own text to find the word; models that are measured are not expected to cheat.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

from bedplate.core.errors import PolicyError
from bedplate.evaluate.sandbox import confine

CONFINE = Path(confine.__file__)
KEPT_BYTES = 4096
"""End of what a program says that is looked at; the rest is read and forgotten."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    """Of time, and of processor time."""
    memory_bytes: int = 1 << 30
    """Of address space."""


class Outcome(NamedTuple):
    """How a program ended."""

    passed: bool
    reason: Literal["passed", "failed", "error", "time", "memory", "left early", "killed"]
    """failed: an assertion did not hold."""
    detail: str
    """Last line of its complaint."""


def run_program(source: str, limits: Limits | None = None) -> Outcome:
    """Run a program to its end.

    Args:
        source: Python.
        limits: of time and memory.
    Raises:
        PolicyError: this machine cannot confine programs; nothing was run.
    """
    check_confinement()
    return _run(source, limits or Limits())


def _run(source: str, limits: Limits) -> Outcome:
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="bedplate-program-") as folder:
        program = Path(folder) / "program.py"
        program.write_text(f"{source}\nimport os\nos.write(1, b'\\n{word}\\n')\n", encoding="utf-8", errors="replace")
        words = [sys.executable, "-I", "-B", str(CONFINE), str(program), str(max(1, round(limits.seconds))), str(limits.memory_bytes)]
        quiet = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": folder}
        pipe = subprocess.PIPE
        process = subprocess.Popen(words, cwd=folder, env=quiet, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True)
        assert process.stdout is not None and process.stderr is not None
        tails = _Tail(process.stdout), _Tail(process.stderr)
        late = False
        try:
            process.wait(limits.seconds + 1)  # the interpreter starts and loads within the second
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            said, complaint = (tail.text() for tail in tails)
    return _outcome(process.returncode, late, word in said.splitlines(), complaint)


@functools.cache
def check_confinement() -> None:
    """See that this machine can confine programs.

    Raises:
        PolicyError: it cannot.
    """
    told = _run("import socket\ntry:\n    socket.socket()\nexcept PermissionError:\n    pass\nelse:\n    raise SystemExit('a socket')", Limits())
    if not told.passed:
        hint = "run the tasks of code on Linux, x86_64 or aarch64, with seccomp"
        raise PolicyError(f"this machine cannot confine programs: {told.detail or told.reason}", hint)


def _outcome(code: int, late: bool, ended: bool, complaint: str) -> Outcome:
    lines = complaint.strip().splitlines()
    detail = lines[-1][:300] if lines else ""
    if late or code == -signal.SIGXCPU:
        return Outcome(False, "time", detail)
    if code == 0:
        return Outcome(ended, "passed" if ended else "left early", detail)
    if detail.startswith("MemoryError"):
        return Outcome(False, "memory", detail)
    if code < 0:
        return Outcome(False, "killed", detail or signal.Signals(-code).name)
    return Outcome(False, "failed" if detail.startswith("AssertionError") else "left early" if not detail else "error", detail)


class _Tail(threading.Thread):
    """Reads a pipe to its end and keeps the last bytes, so that a program that says too much fills nothing."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._pipe, self._kept = pipe, b""
        self.start()

    def run(self) -> None:
        with self._pipe as pipe:
            while data := os.read(pipe.fileno(), 65536):
                self._kept = (self._kept + data)[-KEPT_BYTES:]

    def text(self) -> str:
        """What was kept, once the pipe has closed."""
        self.join()
        return self._kept.decode("utf-8", errors="replace")
