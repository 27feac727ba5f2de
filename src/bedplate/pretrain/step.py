"""One step: gradients of all its micro-batches added up exactly, then one update.

Every loss is a mean over the targets of the whole step, not a mean of the micro-batches' means: the targets are counted in the numpy
batches first, and each micro-batch contributes its sum divided by that count. Splitting a step therefore changes nothing but rounding.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bedplate.modality.sequence import Batch
from bedplate.model.batch import to_torch
from bedplate.pretrain.optim import Optimiser


class LossSums(Protocol):
    """What a model says about a batch: a sum per loss, differentiable."""

    @property
    def sums(self) -> Mapping[str, Tensor]:
        """Loss name -> sum over its targets. A name starts with the sense it belongs to."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """Loss name -> its factor in what is minimised."""
        ...


class Model(Protocol):
    """What the step needs of a model."""

    def losses(self, batch: Batch, generator: torch.Generator) -> Any:
        """The loss sums of a batch; all noise comes from the generator."""
        ...

    def loss_names(self) -> list[str]:
        """Every loss there can be."""
        ...


@dataclass(frozen=True)
class StepLosses:
    """What one step's gradients were made of."""

    loss: float
    """What is minimised: the weighted sum of the losses, tokens as one mean and the units of all senses as another."""
    losses: Mapping[str, float]
    """Mean of each loss over its own sense's targets."""
    gradient_norm: float
    """Joint norm of all gradients before clipping."""


def generator_seed(seed: int, step: int, rank: int, micro: int) -> int:
    """The seed of a micro-batch's noise: a pure function of its place, so that a resumed run draws the same."""
    digest = hashlib.blake2b(f"{seed}:{step}:{rank}:{micro}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def count_targets(batches: Iterable[Batch]) -> Counter[str]:
    """Targets per sense in numpy batches."""
    counts: Counter[str] = Counter()
    for batch in batches:
        counts["text"] += int(batch.token_loss.sum())
        for sense, targets in batch.unit_loss.items():
            counts[sense] += int(targets.sum())
    return counts


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """The context in which the network computes in `dtype`."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@dataclass
class Stepper:
    """Computes a step's gradients. `apply` is separate, so that an ill step can be dropped in between."""

    model: Model
    optimiser: Optimiser
    device: torch.device
    dtype: torch.dtype = torch.float32
    seed: int = 0
    rank: int = 0
    sum_counts: Callable[[Counter[str]], Counter[str]] = lambda counts: counts
    """Adds the counts of all processes."""
    sum_tensors: Callable[[Sequence[Tensor]], None] | None = None
    """Adds tensors of all processes, in place; None where there is one process."""

    def gradients(self, step: int, batches: Sequence[Batch]) -> StepLosses:
        """Leave the clipped gradients of a step in the parameters.

        Args:
            step: number of the step; with the seed it decides the noise.
            batches: its micro-batches, numpy.
        """
        self.optimiser.zero_grad()
        counts = self.sum_counts(count_targets(batches))
        sums: dict[str, Tensor] = {}
        for micro, batch in enumerate(batches):
            generator = torch.Generator(self.device).manual_seed(generator_seed(self.seed, step, self.rank, micro))
            with autocast(self.device, self.dtype):
                part = self.model.losses(to_torch(batch, self.device), generator)
            shares = [value * (part.weights[name] / divisor(name, counts)) for name, value in part.sums.items()]
            total = torch.stack(shares).sum()
            torch.autograd.backward(total)
            for name, value in {**part.sums, "": total}.items():
                sums[name] = sums.get(name, 0) + value.detach()
        names = sorted(sums)
        if self.sum_tensors is not None:
            names = self.agree(sums, counts)
        norm = self.optimiser.clip()
        values = torch.stack([*(sums[name].float() for name in names), norm.float()]).tolist()  # the step's one wait for a GPU
        losses = {name: value / max(counts[sense_of(name)], 1) for name, value in zip(names, values) if name}
        return StepLosses(loss=values[names.index("")], losses=losses, gradient_norm=values[-1])

    def agree(self, sums: dict[str, Tensor], counts: Counter[str]) -> list[str]:
        """Add the gradients and losses of all processes. One that saw nothing of a sense contributes zeros; all name losses in the same order."""
        assert self.sum_tensors is not None
        senses = {sense for sense, count in counts.items() if count}
        names = ["", *sorted(n for n in self.model.loss_names() if sense_of(n) in senses or n == "text")]
        for name in names:
            sums.setdefault(name, torch.zeros((), device=self.device))
        parameters = self.optimiser.parameters
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum_tensors([p.grad for p in parameters if p.grad is not None])
        self.sum_tensors([used, *(sums[name] for name in names)])
        for parameter, count in zip(parameters, used.tolist()):
            if not count:  # no process used it: then it must not decay either
                parameter.grad = None
        return names

    def apply(self, lr_factor: float, momentum: float) -> None:
        """Move the weights along the gradients that are there."""
        self.optimiser.step(lr_factor, momentum)

    def drop(self) -> None:
        """Forget the gradients that are there."""
        self.optimiser.zero_grad()


def divisor(loss: str, counts: Mapping[str, int]) -> int:
    """What a loss is divided by in the objective: all tokens, or all units of whatever sense, so that the mixture alone sets the balance."""
    if sense_of(loss) == "text":
        return max(counts["text"], 1)
    return max(sum(count for sense, count in counts.items() if sense != "text"), 1)


def sense_of(loss: str) -> str:
    """The sense whose targets a loss is averaged over: the first word of its name."""
    return loss.partition("_")[0]
