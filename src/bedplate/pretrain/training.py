"""A run in memory: take steps, judge them, evaluate, sample, save, continue.

Nothing here is random, and nothing depends on the clock but when checkpoints are written; so a killed and resumed run ends with the weights
of an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from bedplate.core.errors import BedplateError, IntegrityError, StateError
from bedplate.core.events import read_events
from bedplate.core.run import Run
from bedplate.modality.sequence import Batch
from bedplate.pretrain.average import WeightAverage
from bedplate.pretrain.checkpoint import FOLDER, CheckpointWriter, Progress, State, newest
from bedplate.pretrain.evaluate import Evaluation, evaluate
from bedplate.pretrain.health import Finding, find_exhausted, find_nan, find_spike, find_stall
from bedplate.pretrain.interrupt import StopSignal
from bedplate.pretrain.parallel import Parallel
from bedplate.pretrain.schedule import Schedule, StepRows
from bedplate.pretrain.settings import PretrainSettings
from bedplate.pretrain.step import StepLosses, Stepper

START_STEPS = 20
"""Steps whose median loss is the level a run starts from."""


class Rows(Protocol):
    """What the loop needs of a loader."""

    def batches(self, first_row: int, rows: int, context: int, most_rows: int) -> list[Batch]:
        """Rows of packed sequences in batches of at most `most_rows`; a pure function of its arguments."""
        ...


Sampler = Callable[[nn.Module, int, Path], Sequence[Mapping[str, Any]]]
"""(model, step, folder for files) -> fields of `sample` events. Given by the command line, as generation lives above training."""


@dataclass
class Training:
    """A run in memory. `settings` has no "auto" left."""

    settings: PretrainSettings
    run: Run
    model: nn.Module
    stepper: Stepper
    schedule: Schedule
    loader: Rows
    validation: Sequence[Batch]
    token_bytes: np.ndarray
    """Bytes that each token stands for; 0 for special tokens."""
    epochs: Callable[[int], float]
    """Positions read -> how often the most repeated component was read."""
    sampler: Sampler | None = None
    parallel: Parallel = field(default_factory=Parallel)
    about: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the checkpoints' manifests."""
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.writer = CheckpointWriter(self.run.folder / FOLDER, self.settings.checkpoint, self.about)
        self.parameters = dict(self.model.named_parameters())
        self.average = WeightAverage(self.parameters)
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._reader = ThreadPoolExecutor(1, "loader")
        self._ahead: tuple[StepRows, Future[list[Batch]]] | None = None

    def train(self) -> bool:
        """Take all steps that are left. False when a signal stopped the run early; it can be resumed.

        Raises:
            StateError: a health check stopped the run.
        """
        self.resume()
        try:
            with StopSignal() as signal:
                while self.progress.step < self.schedule.steps:
                    self.take_step()
                    self.look()
                    if self.parallel.any(bool(signal.reason)) and self.progress.step < self.schedule.steps:
                        self.save()
                        self.writer.wait()
                        self.tell_saves()
                        self.run.events.emit("run_stopped", step=self.progress.step, reason=signal.reason or "another process was asked to")
                        return False
                    if self.writer.due(self.progress.step, time.monotonic() - self._saved_at):
                        self.save()
            if self._saved_step != self.schedule.steps:
                self.save()
            self.writer.wait()
            self.tell_saves()
        finally:
            self._reader.shutdown(wait=False, cancel_futures=True)
        return True

    def resume(self) -> None:
        """Continue from the newest checkpoint that holds; a fresh run stays as it is."""
        state = newest(self.writer.folder, lambda message, hint: self.run.events.emit("warning", message=message, hint=hint))
        if state is not None:
            self.load(state)
            self._saved_step = state.progress.step
            lost_s = lost_seconds(self.run.folder / "events.jsonl", state.progress.step)
            self.run.events.emit("run_resumed", step=state.progress.step, steps=self.schedule.steps, lost_s=round(lost_s, 1))
        shared = f"{self.run.folder} must be the same folder for all of them"
        self.parallel.check_same("steps to resume from", self.progress.step, shared)  # all have read before the first writes again
        if state is None and "roll_back" in (self.settings.health.on_nan, self.settings.health.on_spike):
            self.save()  # somewhere to go back to, before the first regular checkpoint
        self._saved_at = time.monotonic()

    def take_step(self) -> None:
        """One step: read, compute, judge, apply (or not), tell."""
        began = time.monotonic()
        step, schedule = self.progress.step, self.schedule
        rows = schedule.rows(step, self.progress.skipped_positions)
        batches = self.read(rows)
        loader_s = time.monotonic() - began
        result = self.stepper.gradients(step, batches)
        finding = self.judge(result)
        if finding is not None:
            self.run.events.emit("health", step=step, problem=finding.problem, action=finding.action, detail=finding.detail)
        if finding is not None and finding.action == "stop":
            self.stepper.drop()
            self.stop(finding)
        if finding is not None and finding.action == "roll_back":
            self.stepper.drop()
            self.roll_back(finding)
            return
        skipped = finding is not None and finding.action == "skip"
        lr_factor = schedule.lr_factor(step)
        if skipped:
            self.stepper.drop()
        else:
            self.stepper.apply(lr_factor, schedule.momentum(step))
        self.average.take(schedule.average_weight(step))
        self.remember(result, skipped, time.monotonic() - began)
        step_s = time.monotonic() - began
        positions = rows.rows * rows.context
        self.run.events.emit(
            "step",
            step=step + 1,
            steps=schedule.steps,
            tokens=schedule.positions(step + 1),
            first_row=rows.first_row,
            loss=result.loss,
            **{f"loss_{name}": value for name, value in result.losses.items()},
            gradient_norm=result.gradient_norm,
            lr=lr_factor * self.settings.optim.lr_matrix,
            context=rows.context,
            step_s=round(step_s, 4),
            loader_s=round(loader_s, 4),
            memory_bytes=memory_bytes(self.stepper.device),
            units_per_s=round(positions / step_s, 1),
        )

    def read(self, rows: StepRows) -> list[Batch]:
        """The micro-batches of some rows, read ahead while the step before was computed."""
        expected = self._ahead is not None and self._ahead[0] == rows
        batches = self._ahead[1].result() if self._ahead is not None and expected else self.micro_batches(rows)
        following = self.progress.step + 1
        self._ahead = None
        if following < self.schedule.steps:
            ahead = self.schedule.rows(following, self.progress.skipped_positions)
            self._ahead = ahead, self._reader.submit(self.micro_batches, ahead)
        return batches

    def micro_batches(self, rows: StepRows) -> list[Batch]:
        """Rows cut into portions of equal positions: as many as `run.rows_per_micro` rows of the full context hold."""
        assert not isinstance(self.settings.run.rows_per_micro, str)
        portion = max(1, self.settings.run.rows_per_micro * self.schedule.context // rows.context)
        first, last = (rows.first_row + rows.rows * part // self.parallel.world for part in (self.parallel.rank, self.parallel.rank + 1))
        return self.loader.batches(first, last - first, rows.context, portion)

    def judge(self, result: StepLosses) -> Finding | None:
        """The most pressing problem that this step's gradients have."""
        health, progress = self.settings.health, self.progress
        finding = find_nan(result.loss, result.gradient_norm, health)
        finding = finding or find_spike(progress.losses, progress.gradient_norms, result.loss, result.gradient_norm, health)
        if finding is not None and finding.action == "skip" and len(progress.skipped_steps) >= health.max_skips:
            return finding._replace(action="stop", detail=f"{finding.detail}; {len(progress.skipped_steps)} updates were skipped before")
        if finding is not None and finding.action == "roll_back" and progress.roll_backs >= health.max_roll_backs:
            return finding._replace(action="stop", detail=f"{finding.detail}; {progress.roll_backs} roll-backs did not help")
        return finding

    def look(self) -> None:
        """After a step: tell of saves and slow illnesses, evaluate, make samples."""
        self.tell_saves()
        step, settings = self.progress.step, self.settings
        self.watch_learning()
        if not self.parallel.leads:
            return
        if is_due(step, settings.evaluate.every_steps, self.schedule.steps):
            told = self.evaluate()
            bits = {} if told.bits_per_byte is None else {"bits_per_byte": told.bits_per_byte}
            losses = {f"loss_{name}": value for name, value in told.losses.items()}
            self.run.events.emit("evaluated", step=step, loss=told.loss, **losses, **bits)
        if self.sampler is not None and is_due(step, settings.sample.every_steps, self.schedule.steps):
            with self.average.in_place():
                for fields in self.sampler(self.model, step, self.run.folder / "samples"):
                    self.run.events.emit("sample", **{"step": step, **fields})

    def watch_learning(self) -> None:
        """Stall and exhaustion, each told at most once in `health.stall_steps` steps."""
        health, progress = self.settings.health, self.progress
        findings = [
            find_stall(progress.losses, progress.start_loss, health),
            find_exhausted(self.epochs(self.schedule.positions(progress.step) + progress.skipped_positions), health),
        ]
        for finding in findings:
            if finding is None or progress.step - progress.reported.get(finding.problem, -health.stall_steps) < health.stall_steps:
                continue
            self.run.events.emit("health", step=progress.step, problem=finding.problem, action=finding.action, detail=finding.detail)
            self.progress = dataclasses.replace(self.progress, reported={**self.progress.reported, finding.problem: progress.step})
            if finding.action == "stop":
                self.stop(finding)

    def evaluate(self) -> Evaluation:
        """Losses on the validation rows of the weights that would be the final ones."""
        with self.average.in_place():
            return evaluate(self.model, self.validation, self.token_bytes, self.stepper.device, self.stepper.dtype)

    def remember(self, result: StepLosses, skipped: bool, step_s: float) -> None:
        """Count the step and keep what the health checks will compare with."""
        progress, health = self.progress, self.settings.health
        losses, norms = progress.losses, progress.gradient_norms
        if math.isfinite(result.loss) and math.isfinite(result.gradient_norm):
            losses = (*losses, result.loss)[-health.memory :]
            norms = (*norms, result.gradient_norm)[-health.memory :]
        recent = tuple(s for s in progress.skipped_steps if s > progress.step - health.window)
        self.progress = dataclasses.replace(
            progress,
            step=progress.step + 1,
            trained_s=progress.trained_s + step_s,
            losses=losses,
            gradient_norms=norms,
            start_loss=statistics.median(losses) if len(losses) <= START_STEPS and losses else progress.start_loss,
            skipped_steps=(*recent, progress.step) if skipped else recent,
        )

    def roll_back(self, finding: Finding) -> None:
        """Return to the newest checkpoint, and jump over all data that followed it."""
        self.writer.wait()
        self.parallel.barrier()
        before = self.progress
        state = newest(self.writer.folder, lambda message, hint: self.run.events.emit("warning", message=message, hint=hint))
        if state is None:
            raise StateError(f"{finding.problem} at step {before.step}, and no checkpoint to go back to", "set checkpoint.every_s")
        self.load(state)
        self.parallel.barrier()
        jumped = self.schedule.positions(before.step + 1) - self.schedule.positions(state.progress.step)
        self.progress = dataclasses.replace(
            self.progress, skipped_positions=before.skipped_positions + jumped, roll_backs=before.roll_backs + 1, trained_s=before.trained_s
        )

    def stop(self, finding: Finding) -> None:
        """Save what is good and end the run with an error that says what to do."""
        if finding.problem in ("stall", "exhausted"):
            self.save()
        self.writer.wait()
        self.tell_saves()
        gentler = f"start a new run with --set optim.lr_matrix={self.settings.optim.lr_matrix / 2:g}"
        hints = {
            "nan": f"last good checkpoint is step {max(self._saved_step, 0)}; {gentler}",
            "spike": f"last good checkpoint is step {max(self._saved_step, 0)}; {gentler}",
            "stall": "see `bedplate doctor` on the run; health.on_stall = \"none\" lets it go on",
            "exhausted": f"add data, or set health.max_epochs above {self.settings.health.max_epochs:g}",
        }
        raise StateError(f"stopped at step {self.progress.step}: {finding.problem}, {finding.detail}", hints[finding.problem])

    def save(self) -> None:
        """Start writing a checkpoint of this moment; rank 0 does it for all."""
        if self.parallel.leads:
            optimiser = self.stepper.optimiser.state()
            self.writer.save(State(self.progress, dict(self.model.state_dict()), optimiser, self.average.tensors))
        self._saved_at, self._saved_step = time.monotonic(), self.progress.step

    def load(self, state: State) -> None:
        """Become a checkpoint's state."""
        try:
            self.model.load_state_dict(dict(state.model), strict=True)
        except RuntimeError as error:
            hint = "resume with the settings the run was started with"
            raise IntegrityError("the checkpoint's weights do not fit the model", hint) from error
        self.stepper.optimiser.load(state.optimiser)
        self.average.load(state.average)
        self.progress = state.progress

    def tell_saves(self) -> None:
        """Emit an event for every checkpoint that was finished."""
        for saved in self.writer.finished():
            path = saved.path.relative_to(self.run.folder).as_posix()
            times = {"seconds": round(saved.seconds, 3), "stall_s": round(saved.stall_s, 4)}
            self.run.events.emit("checkpoint_saved", step=saved.step, path=path, **times)


def is_due(step: int, every_steps: Any, steps: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens after `step` steps."""
    return step == steps or (every_steps > 0 and step % every_steps == 0)


def lost_seconds(events: Path, step: int) -> float:
    """Seconds of work after `step` that the log of a killed run shows and its checkpoint does not hold."""
    lost: dict[int, float] = {}
    try:
        for event in read_events(events, ("step", "run_started", "run_resumed")):
            if event["event"] == "run_resumed":
                lost.clear()
            elif event["event"] == "step" and int(event["step"]) > step:
                lost[int(event["step"])] = float(event["step_s"])
    except (KeyError, TypeError, ValueError, BedplateError):
        return 0.0
    return sum(lost.values())


def memory_bytes(device: torch.device) -> int:
    """Memory in use: of the GPU at its peak, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import psutil

    return int(psutil.Process().memory_info().rss)
