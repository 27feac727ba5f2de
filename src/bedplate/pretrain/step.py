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
from bedplate.pretrain.optim import Optimiser


class LossSums(Protocol):
    """What a model says about a batch: a sum per loss, differentiable."""

    @property
    def sums(self) -> Mapping[str, Tensor]:
        """Loss name -> sum over its targets. A name starts with the sense it belongs to."""
        ...


class Model(Protocol):
    """What the step needs of a model."""

    def losses(self, batch: Batch, generator: torch.Generator) -> Any:
        """The loss sums of a batch; all noise comes from the generator."""
        ...


@dataclass(frozen=True)
class StepLosses:
    """What one step's gradients were made of."""

    loss: float
    """What is minimised: the sum of all mean losses."""
    losses: Mapping[str, float]
    """Mean per loss."""
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
    sum_gradients: Callable[[Sequence[Tensor]], None] | None = None
    """Adds the gradients of all processes, in place."""

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
                part = self.model.losses(batch.to_torch(str(self.device)), generator)
            weighted = {name: value / max(counts[sense_of(name)], 1) for name, value in part.sums.items()}
            total = torch.stack(list(weighted.values())).sum()
            torch.autograd.backward(total)
            for name, value in weighted.items():
                sums[name] = sums.get(name, 0) + value.detach()
        if self.sum_gradients is not None:
            self.sum_gradients([p.grad for p in self.optimiser.parameters if p.grad is not None])
        norm = self.optimiser.clip()
        names = list(sums)
        values = torch.stack([*(sums[name].float() for name in names), norm.float()]).tolist()  # the step's one wait for a GPU
        losses = dict(zip(names, values))
        return StepLosses(loss=sum(losses.values()), losses=losses, gradient_norm=values[-1])

    def apply(self, lr_factor: float, momentum: float) -> None:
        """Move the weights along the gradients that are there."""
        self.optimiser.step(lr_factor, momentum)

    def drop(self) -> None:
        """Forget the gradients that are there."""
        self.optimiser.zero_grad()


def sense_of(loss: str) -> str:
    """The sense whose targets a loss is averaged over: the first word of its name."""
    return loss.partition("_")[0]
