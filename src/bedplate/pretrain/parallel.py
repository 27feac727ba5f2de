"""Several processes that train one model: each takes a part of a step's rows, gradients are added up.

    torchrun --nproc-per-node 2 --no-python bedplate pretrain run recipe.toml --to runs/one

Losses are divided by the targets of the whole step before they are differentiated, so adding is exact: two processes give one process's
gradients to rounding. Rank 0 leads: it alone derives, evaluates, makes samples, saves and tells. What all must do alike (stop, go back)
follows from numbers that all share. Every process holds the whole model and optimiser; sharding them will change this file alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from bedplate.core.errors import StateError
from bedplate.modality.specs import SENSES

BUCKET_VALUES = 1 << 24
"""Gradients travel in buckets of about this many numbers: few messages, little memory."""


def leads() -> bool:
    """Whether this process is alone or the first of those that torchrun started; asked before they have met."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Parallel:
    """This process's place among those that train together. The default is one process alone."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    neighbours: int = 1
    """Processes on this machine, this one included."""

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, device: str) -> Self:
        """From torchrun's variables, where they are; NCCL on GPUs, Gloo on processors.

        Args:
            device: "auto", "cpu" or "cuda"; with several processes each takes the GPU of its local rank.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if world == 1:
            return cls(0, 1, torch.device(device))
        cuda = device.startswith("cuda")
        if not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(place)
        return cls(dist.get_rank(), world, place, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def sum_counts(self, counts: Counter[str]) -> Counter[str]:
        """Counts of all processes added up."""
        if self.world == 1:
            return counts
        tensor = torch.tensor([counts[sense] for sense in SENSES], dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor)
        return Counter(dict(zip(SENSES, tensor.tolist())))

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Tensors of all processes added up, in place."""
        bucket: list[Tensor] = []
        values = 0
        for tensor in tensors:
            bucket.append(tensor)
            values += tensor.numel()
            if values >= BUCKET_VALUES:
                self._sum_bucket(bucket)
                bucket, values = [], 0
        if bucket:
            self._sum_bucket(bucket)

    def any(self, asked: bool) -> bool:
        """Whether any process asks for it: the same answer for all."""
        if self.world == 1:
            return asked
        flag = torch.tensor(int(asked), device=self.device)
        dist.all_reduce(flag)
        return bool(flag.item())

    def check_same(self, what: str, number: int, hint: str) -> None:
        """Make sure that all processes have the same number.

        Raises:
            StateError: they do not.
        """
        if self.world == 1:
            return
        extremes = torch.tensor([number, -number], dtype=torch.int64, device=self.device)
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        most, least = int(extremes[0]), -int(extremes[1])
        if most != least:
            raise StateError(f"the processes have different {what}: {least} .. {most}", hint)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes rank 0's tensors, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the others, at the end."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def _sum_bucket(self, bucket: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1).float() for tensor in bucket])
        dist.all_reduce(flat)
        at = 0
        for tensor in bucket:
            tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
            at += tensor.numel()
