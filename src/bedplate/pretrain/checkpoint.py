"""Checkpoints: everything a run needs to continue as if nothing had happened.

    RUN/checkpoints/step-00001200/   model.safetensors  optimiser.safetensors  [average.safetensors]  state.json  manifest.json

A save copies the tensors (the only pause of training), then a thread writes them to a temporary folder, syncs it, seals it with a
manifest and renames it. A folder under its final name is therefore complete; on resume its digests are checked all the same, and a
damaged one is passed over for the one before. docs/formats/checkpoint.md is the specification.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bedplate.core.artifact import seal, verify
from bedplate.core.config import from_mapping
from bedplate.core.errors import BedplateError, ConfigError, IntegrityError, ResourceError
from bedplate.core.files import fsync_folder, read_json, write_json

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class CheckpointSettings:
    """When checkpoints are written and which are kept."""

    every_s: float = 120.0
    """Seconds of training between checkpoints: the most that a crash can lose. 0 turns the clock off."""
    every_steps: int = 0
    """Also one after each multiple of this many steps; 0 turns it off."""
    keep_last: int = 2
    """The newest checkpoints that stay; the older one serves when the newest is damaged."""
    keep_every_steps: int = 0
    """Checkpoints at multiples of this many steps stay for good; 0 keeps none of them."""

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ConfigError(f"checkpoint.keep_last = {self.keep_last} keeps none", "set checkpoint.keep_last to 1 or more")
        if self.every_s < 0 or self.every_steps < 0 or self.keep_every_steps < 0:
            raise ConfigError("a checkpoint interval is negative", "0 turns it off")


@dataclass(frozen=True)
class Progress:
    """Where a run is: what is not a tensor."""

    step: int = 0
    """Steps done; the next step has this number."""
    skipped_positions: int = 0
    """Positions of data that roll-backs jumped over."""
    roll_backs: int = 0
    """Times the run went back to a checkpoint."""
    skipped_steps: tuple[int, ...] = ()
    """Recent steps whose update was dropped."""
    trained_s: float = 0.0
    """Seconds spent in steps so far, over all processes of the run."""
    losses: tuple[float, ...] = ()
    """The recent losses that the health checks look at, oldest first."""
    gradient_norms: tuple[float, ...] = ()
    """The recent gradient norms, one for each of `losses`."""
    start_loss: float = 0.0
    """Median loss of the first steps: the level that a stalled run does not leave."""
    reported: Mapping[str, int] = field(default_factory=dict)
    """Slow health problem -> step at which it was last told."""


class State(NamedTuple):
    """A checkpoint in memory; the tensors are on the CPU."""

    progress: Progress
    model: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    """Averaged weights; empty before the average starts."""


class Saved(NamedTuple):
    """A finished save."""

    step: int
    path: Path
    seconds: float
    """From the call to the renamed folder."""
    stall_s: float
    """How long training stood still for it."""


@dataclass
class CheckpointWriter:
    """Writes checkpoints behind the back of training; at most one save runs at a time."""

    folder: Path
    """The run's checkpoints/ folder."""
    settings: CheckpointSettings
    about: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the manifest: the digest of the settings, the corpus."""
    _copies: dict[str, Tensor] = field(default_factory=dict)
    _thread: threading.Thread | None = None
    _done: list[Saved] = field(default_factory=list)
    _error: BaseException | None = None

    def due(self, step: int, since_save_s: float) -> bool:
        """Whether a checkpoint should be written now, after `step` steps."""
        by_step = self.settings.every_steps > 0 and step % self.settings.every_steps == 0
        by_clock = self.settings.every_s > 0 and since_save_s >= self.settings.every_s
        return by_step or by_clock

    def save(self, state: State) -> None:
        """Copy the state and start writing it. Waits first for a save that is still running.

        Raises:
            ResourceError: the save before this one failed.
        """
        started = time.monotonic()
        self.wait()
        copies = State(state.progress, *(self._copy(part, getattr(state, part)) for part in ("model", "optimiser", "average")))
        stall_s = time.monotonic() - started
        self._thread = threading.Thread(target=self._write, args=(copies, started, stall_s), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when no save is running.

        Raises:
            ResourceError: the save failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            hint = f"free space in {self.folder}; the same command resumes the run"
            raise ResourceError(f"the checkpoint could not be written: {error}", hint) from error

    def finished(self) -> list[Saved]:
        """The saves that finished since the last call.

        Raises:
            ResourceError: a save failed.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()
        done, self._done = self._done, []
        return done

    def _copy(self, part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies = {}
        for name, tensor in tensors.items():  # buffers are kept: fresh pages would cost more than the copy
            key = f"{part}.{name}"
            if key not in self._copies or self._copies[key].shape != tensor.shape:
                self._copies[key] = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
            copies[name] = self._copies[key].copy_(tensor.detach())
        return copies

    def _write(self, state: State, started: float, stall_s: float) -> None:
        try:
            path = write_state(self.folder, state, self.about)
            self._done.append(Saved(state.progress.step, path, time.monotonic() - started, stall_s))
            prune(self.folder, self.settings)
        except BaseException as error:
            self._error = error


def write_state(folder: Path, state: State, about: Mapping[str, Any]) -> Path:
    """Write one checkpoint below `folder` and return its path. It appears complete or not at all."""
    from safetensors.torch import save_file

    final = folder / f"step-{state.progress.step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for part in ("model", "optimiser", "average"):
        tensors = getattr(state, part)
        if tensors:
            path = temporary / f"{part}.safetensors"
            save_file(dict(tensors), path)
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    write_json(temporary / "state.json", asdict(state.progress))
    seal(temporary, "checkpoint", about={**about, "step": state.progress.step})
    if final.exists():  # the same step, written before a roll-back or by a damaged save
        remove(final)
    temporary.rename(final)
    fsync_folder(folder)
    return final


def read_state(path: Path) -> State:
    """Read a checkpoint after checking every digest.

    Raises:
        BedplateError: it is damaged or incomplete.
    """
    from safetensors.torch import load_file

    verify(path, "checkpoint")
    parts = []
    try:
        progress = from_mapping(Progress, read_json(path / "state.json"))
        for part in ("model", "optimiser", "average"):
            file = path / f"{part}.safetensors"
            parts.append(load_file(file) if file.exists() else {})
    except (BedplateError, ValueError, OSError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", "an older checkpoint is used when there is one") from error
    return State(progress, *parts)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints below `folder`, oldest first; whatever is half-written or half-deleted has another name and is not among them."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()), key=_step)


def newest(folder: Path, warn: Callable[[str, str], None]) -> State | None:
    """The newest checkpoint that verifies; None when there is no checkpoint.

    Args:
        folder: the run's checkpoints/ folder. Left-overs of killed saves in it are removed.
        warn: told (message, hint) of each checkpoint that was passed over.
    Raises:
        IntegrityError: there are checkpoints and none of them can be used.
    """
    for left in folder.glob(".*.tmp") if folder.is_dir() else ():
        shutil.rmtree(left, ignore_errors=True)
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return read_state(path)
        except BedplateError as error:
            warn(f"checkpoint {path.name} is passed over: {error.message}", error.hint)
    if paths:
        hint = f"restore {folder} from a copy, or remove it to start again"
        raise IntegrityError(f"none of the {len(paths)} checkpoints in {folder} can be read", hint)
    return None


def prune(folder: Path, settings: CheckpointSettings) -> None:
    """Remove the checkpoints that the keep policy does not keep."""
    for path in list_checkpoints(folder)[: -settings.keep_last]:
        if not (settings.keep_every_steps and _step(path) % settings.keep_every_steps == 0):
            remove(path)


def remove(path: Path) -> None:
    """Delete a checkpoint; it loses its name first, so that no half-deleted one is ever found."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.gone.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1
