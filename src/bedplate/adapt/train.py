"""The training loop of an adaptation: exact accumulation, held-out looks, early stopping, and whole states to resume from.

Every step's loss is a sum over its items divided by the step's whole weight, so cutting a step into micro-batches changes nothing but
rounding. The weights that are kept are the best on the held-out examples, those before the first step included.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bedplate.adapt.course import Course
from bedplate.adapt.encode import Item
from bedplate.adapt.tasks import Judged, Task
from bedplate.adapt.tasks.base import Joint, portions
from bedplate.core.errors import IntegrityError, StateError
from bedplate.core.run import Run
from bedplate.pretrain.checkpoint import FOLDER, CheckpointSettings, CheckpointWriter, Progress, State, newest
from bedplate.pretrain.interrupt import StopSignal
from bedplate.pretrain.step import autocast, generator_seed

BETAS = (0.9, 0.98)


class Look(NamedTuple):
    """One look at the held-out examples."""

    step: int
    loss: float


@contextlib.contextmanager
def _frozen_heap() -> Iterator[None]:
    """What exists by now outlives the training: full collections need not walk through it again (0.17 s, every few steps)."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass
class Training:
    """An adaptation in memory."""

    task: Task
    run: Run
    course: Course
    items: Sequence[Item]
    """To learn from."""
    held_out: Sequence[Item]
    trained: Mapping[str, nn.Parameter]
    """Name -> weight that is trained, the head's among them."""
    lr: float
    weight_decay: float
    clip: float
    positions_per_micro: int
    evaluate_every: int
    patience: int
    seed: int
    dtype: torch.dtype
    checkpoint: CheckpointSettings
    step: int = 0
    trained_s: float = 0.0
    looks: list[Look] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    """The weights of the best look; empty before the first."""

    def __post_init__(self) -> None:
        groups = [
            {"params": [p for p in self.trained.values() if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in self.trained.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=self.lr, betas=BETAS, fused=True)
        self.writer = CheckpointWriter(self.run.folder / FOLDER, self.checkpoint, {"task": self.task.name})

    def train(self) -> bool:
        """Take the steps that are left, and leave the best weights in place. False when a signal stopped the run early; it can be resumed.

        Raises:
            StateError: the loss stopped being a number.
        """
        self.resume()
        saved_at = time.monotonic()
        if self.held_out and not self.looks:
            self.look()
        with StopSignal() as signal, _frozen_heap():
            while self.step < self.course.steps and not self.enough:
                self.take_step()
                if self.held_out and (self.step % self.evaluate_every == 0 or self.step == self.course.steps):
                    self.look()
                if signal.reason and self.step < self.course.steps:
                    self.save()
                    self.writer.wait()
                    self.run.events.emit("run_stopped", step=self.step, reason=signal.reason)
                    return False
                if self.writer.due(self.step, time.monotonic() - saved_at):
                    self.save()
                    saved_at = time.monotonic()
        self.writer.wait()
        self.keep_best()
        return True

    @property
    def best_look(self) -> Look:
        """The look with the lowest loss."""
        return min(self.looks, key=lambda look: look.loss)

    @property
    def enough(self) -> bool:
        """Whether the held-out examples say that more steps do not help."""
        if not self.patience or len(self.looks) <= self.patience:
            return False
        since = [look for look in self.looks if look.step > self.best_look.step]
        return len(since) >= self.patience

    def take_step(self) -> None:
        """Gradients of all parts of a step, then one update."""
        began = time.monotonic()
        items = [self.items[i] for i in self.course.examples(self.step)]
        lr = self.lr * self.course.lr_factor(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.task.model.train()
        torch.manual_seed(generator_seed(self.seed, self.step, 0, 0))
        loss = self.gradients(items)
        norm = float(nn.utils.clip_grad_norm_(list(self.trained.values()), self.clip))
        if not math.isfinite(loss) or not math.isfinite(norm):
            hint = f"start again with --set train.lr={self.lr / 3:.2g}"
            raise StateError(f"the loss stopped being a number at step {self.step}", hint)
        self.optimiser.step()
        self.step += 1
        step_s = time.monotonic() - began
        self.trained_s += step_s
        positions = sum(item.positions for item in items)
        self.run.events.emit(
            "step",
            step=self.step,
            steps=self.course.steps,
            examples=len(items),
            loss=loss,
            gradient_norm=norm,
            lr=lr,
            step_s=round(step_s, 4),
            units_per_s=round(positions / step_s, 1),
        )

    def gradients(self, items: Sequence[Item]) -> float:
        """Leave the gradients of the items' mean loss in the weights; the mean."""
        self.optimiser.zero_grad()
        parts = list(portions(items, self.positions_per_micro))
        if isinstance(self.task, Joint) and len(parts) > 1:
            return self.joint_gradients(self.task, items, parts)
        whole = sum(item.weight for item in items)
        device = self.task.model.head.device
        total = torch.zeros((), device=device)
        for part in parts:
            with autocast(device, self.dtype):
                loss = self.task.loss_sum([items[i] for i in part]) / whole
            torch.autograd.backward(loss)
            total += loss.detach()
        return float(total)

    def joint_gradients(self, task: Joint, items: Sequence[Item], parts: Sequence[Sequence[int]]) -> float:
        """The same for a loss over all items together: vectors first, then their gradients, then each part again with its share of them."""
        device = task.model.head.device
        ordered = [items[i] for part in parts for i in part]

        def vectors(part: Sequence[int]) -> Tensor:
            torch.manual_seed(generator_seed(self.seed, self.step, 0, part[0]))  # what is dropped at random is dropped in both passes
            with autocast(device, self.dtype):
                return task.vectors([items[i] for i in part]).float()

        with torch.no_grad():
            held = torch.cat([vectors(part) for part in parts])
        held.requires_grad_(True)
        loss = task.joint_loss_sum(held, ordered) / sum(item.weight for item in items)
        (gradients,) = torch.autograd.grad(loss, held)
        sequences = [sum(len(items[i].sequences) for i in part) for part in parts]
        for part, gradient in zip(parts, torch.split(gradients, sequences), strict=True):
            torch.autograd.backward(vectors(part), gradient)
        return float(loss.detach())

    def look(self) -> Judged:
        """Judge the held-out examples, and remember the weights where they are the best so far."""
        judged = self.judge()
        self.looks.append(Look(self.step, judged.loss))
        if self.best_look.step == self.step:
            self.best = {name: p.detach().clone() for name, p in self.trained.items()}
        self.run.events.emit("evaluated", step=self.step, loss=judged.loss, **{f"score_{name}": value for name, value in judged.scores.items()})
        return judged

    def judge(self) -> Judged:
        """How well the held-out examples are done now."""
        self.task.model.eval()
        with autocast(self.task.model.head.device, self.dtype):
            return self.task.judge(self.held_out)

    @torch.no_grad()
    def keep_best(self) -> None:
        """Put the best weights in place."""
        for name, tensor in self.best.items():
            self.trained[name].copy_(tensor)
        self.task.model.eval()
        if self.looks and self.step < self.course.steps:
            reason = f"{self.patience} looks after step {self.best_look.step} were no better"
            self.run.events.emit("chosen", what="step", value=self.best_look.step, reason=reason)

    def save(self) -> None:
        """Start writing a checkpoint of this moment."""
        looks = torch.tensor([list(look) for look in self.looks], dtype=torch.float64).reshape(-1, 2)
        weights = {f"now.{name}": p for name, p in self.trained.items()} | {f"best.{name}": t for name, t in self.best.items()}
        moments = {f"{part}.{name}": tensor for name, p in self.trained.items() for part, tensor in self.optimiser.state[p].items()}
        self.writer.save(State(replace(Progress(), step=self.step, trained_s=self.trained_s), {**weights, "looks": looks}, moments, {}))

    def resume(self) -> None:
        """Continue from the newest checkpoint that holds; a fresh run stays as it is."""
        state = newest(self.writer.folder, lambda message, hint: self.run.events.emit("warning", message=message, hint=hint))
        if state is None:
            return
        try:
            with torch.no_grad():
                for name, p in self.trained.items():
                    p.copy_(state.model[f"now.{name}"])
                    if f"step.{name}" in state.optimiser:  # a weight that the task does not use has no moments
                        parts = {part: state.optimiser[f"{part}.{name}"] for part in ("step", "exp_avg", "exp_avg_sq")}
                        self.optimiser.state[p] = {part: t.clone() if part == "step" else t.to(p.device, copy=True) for part, t in parts.items()}
            self.best = {name: state.model[f"best.{name}"].to(p.device, copy=True) for name, p in self.trained.items() if f"best.{name}" in state.model}
            self.looks = [Look(int(step), float(loss)) for step, loss in state.model["looks"].tolist()]
        except (KeyError, RuntimeError) as error:
            raise IntegrityError(f"the checkpoint in {self.writer.folder} is of another adaptation: {error}", "give another --to") from error
        self.step, self.trained_s = state.progress.step, state.progress.trained_s
        self.run.events.emit("run_resumed", step=self.step, steps=self.course.steps, lost_s=0)
