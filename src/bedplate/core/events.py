"""Events: the one append-only log of a run. Whoever shows, judges or compares a run only reads this file.

One JSON object a line: {"t": seconds since the epoch, "event": NAME, ...fields}. A line is written with one `write`, so a killed
process leaves at most one torn last line, which the reader drops. EVENTS is the vocabulary.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Listener = Callable[[dict[str, Any]], None]
"""Is told each event as it happens, such as a Console."""

EVENTS: dict[str, str] = {
    "run_started": "kind, settings, environment: the job begins",
    "run_resumed": "step, lost_s: the job continues from a checkpoint",
    "run_finished": "seconds, and what it made",
    "run_failed": "error, hint",
    "run_stopped": "step, reason: stopped on purpose; can be resumed",
    "stage_started": "stage: a named part of a longer job begins",
    "stage_finished": "stage, seconds",
    "progress": "done, total, unit, label: long work that has no step of its own",
    "step": "step, steps, tokens (positions seen), first_row (of its data), loss, loss_<sense>, gradient_norm, lr, step_s, loader_s, memory_bytes, units_per_s",
    "evaluated": "step, loss, loss_<sense> on held-out data, bits_per_byte, score_<name> of an adaptation; or task, score_<name>, low_<name>, high_<name>",
    "checkpoint_saved": "step, path, seconds",
    "health": "step, problem (nan | spike | stall | exhausted), action (skip | roll_back | stop | none), detail",
    "sample": "step, sense, path or text: something the model made",
    "counted": "what, counts: how many were kept and dropped, by reason",
    "chosen": "what, value, reason: an 'auto' that was resolved",
    "warning": "message, hint",
}


class EventLog:
    """Appends events to a file, and tells listeners (a console) about each."""

    def __init__(self, path: Path | None, listeners: tuple[Listener, ...] = (), clock: Callable[[], float] = time.time) -> None:
        self._listeners = listeners
        self._clock = clock
        self._descriptor: int | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = path.exists() and path.stat().st_size > 0 and not _ends_with_newline(path)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            if torn:  # a killed process left half a line: close it so that the next event stands alone
                os.write(self._descriptor, b"\n")

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event. Numbers that JSON cannot hold (NaN, inf) become strings."""
        if event not in EVENTS:
            raise KeyError(f"{event!r} is not in EVENTS")
        record = {"t": round(self._clock(), 3), "event": event, **{k: _plain(v) for k, v in fields.items()}}
        if self._descriptor is not None:
            os.write(self._descriptor, (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
        for listener in self._listeners:
            listener(record)

    def close(self) -> None:
        """Close the file; later events reach only the listeners."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_events(path: Path, names: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """The events of a log in order, torn or foreign lines dropped.

    Args:
        path: an events.jsonl.
        names: only these events; all when empty.
    """
    if not path.exists():
        return
    with path.open("rb") as handle:
        for line in handle:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("event"), str) and (not names or record["event"] in names):
                yield record


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as handle:
        handle.seek(-1, os.SEEK_END)
        return handle.read(1) == b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if hasattr(value, "tolist"):  # a number or an array of numpy or torch
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)
