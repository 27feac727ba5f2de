"""A step as torch computes it: numbers on the device, and sequences with equally many positions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bedplate.infer.step import PAGE, Segment, Step


class Group(NamedTuple):
    """Sequences with equally many positions in a step."""

    rows: Int[Tensor, "s t"]
    """Of the step."""
    slots: Int[Tensor, "s l"]
    """Where the keys and values of each sequence's places lie, filled up with any."""


class Inputs(NamedTuple):
    """Positions to compute; see `Step`."""

    x: Float[Tensor, "n d"]
    position: Int[Tensor, "n"]
    until: Int[Tensor, "n"]
    slot: Int[Tensor, "n"]
    groups: Sequence[Group]
    segments: Sequence[Segment] = ()
    layers: int | None = None


def inputs(step: Step, device: torch.device, dtype: torch.dtype) -> Inputs:
    """A step's numbers on a device."""
    position, until, slot = (torch.from_numpy(a.astype(np.int64)).to(device) for a in (step.position, step.until, step.slot))
    return Inputs(torch.from_numpy(step.x).to(device, dtype), position, until, slot, _groups(step, device), step.segments, step.layers)


def slots(pages: Int[Tensor, "s p"]) -> Int[Tensor, "s l"]:
    """Where each place of each page lies."""
    return (pages[:, :, None] * PAGE + torch.arange(PAGE, device=pages.device)).flatten(1)


def _groups(step: Step, device: torch.device) -> list[Group]:
    starts = np.flatnonzero(np.append(True, step.sequence[1:] != step.sequence[:-1]))
    counts = np.diff(np.append(starts, len(step.sequence)))
    groups = []
    for count in np.unique(counts).tolist():
        first = starts[counts == count]
        rows = first[:, None] + np.arange(count)
        longest = int(step.until[rows].max()) + 1
        pages = step.table[step.sequence[first], : -(-longest // PAGE)].astype(np.int64)
        groups.append(Group(torch.from_numpy(rows.astype(np.int64)).to(device), slots(torch.from_numpy(pages).to(device))))
    return groups
