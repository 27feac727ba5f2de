"""Two programs that take turns on one machine: each runs in a process of its own and waits for leave before every step."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Turn(NamedTuple):
    """What a worker tells after its steps."""

    seconds: list[float]
    """Of each step, from leave to end."""
    processor_s: list[float]
    """Of each step, on all cores together: what a busy neighbour changes less."""
    losses: list[float]
    """Of each step, where the worker knows them."""
    positions: list[int]
    """Of each step, padding not counted, where the worker knows them."""
    peak_bytes: int
    """Most memory that its process has held so far."""


class Turns:
    """The worker's side: `wait` before a step, `told` after it."""

    def __init__(self) -> None:
        self.left = 0
        self.seconds: list[float] = []
        self.processor_s: list[float] = []
        self.losses: list[float] = []
        self.positions: list[int] = []
        self.started = self.busy = 0.0

    def wait(self) -> None:
        """Block until there is leave for a step."""
        if self.left == 0:
            if self.seconds:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                print(json.dumps(Turn(self.seconds, self.processor_s, self.losses, self.positions, peak)), flush=True)
                self.seconds, self.processor_s, self.losses, self.positions = [], [], [], []
            line = sys.stdin.readline()
            if not line.strip():
                sys.exit(0)
            self.left = int(line)
        self.left -= 1
        self.started, self.busy = time.perf_counter(), time.process_time()

    def told(self, loss: float | None = None, positions: int | None = None) -> None:
        """A step has ended."""
        self.seconds.append(time.perf_counter() - self.started)
        self.processor_s.append(time.process_time() - self.busy)
        self.losses += [] if loss is None else [loss]
        self.positions += [] if positions is None else [positions]


class Worker:
    """The measuring side of one worker process."""

    def __init__(self, module: str, name: str, folder: Path, threads: int, *extra: str) -> None:
        command = [sys.executable, "-m", module, "--worker", name, "--folder", str(folder), "--threads", str(threads), *extra]
        # Threads that wait spin by default, and where another program takes a core that slows every step (docs/journal.md).
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "GOMP_SPINCOUNT": "1000"}
        )

    def steps(self, count: int) -> Turn:
        """Let it take `count` steps."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("[["):
                return Turn(*json.loads(line))
        raise RuntimeError("a worker died; see its error above")

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
