"""Weights in 8 or 4 bits: what a frozen base is kept in, so that an adapter can be learned where the whole base would not fit.

Runs of BLOCK numbers share a scale, their largest magnitude. 8 bits: evenly spaced. 4 bits: NF4, sixteen levels that hold equally much of a
normal distribution each. Products are not computed in few bits: a matrix is written out when it is used, and forgotten.

Source: Dettmers et al., QLoRA (2023), section 3 and appendix E (the levels).
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Bits = Literal[8, 4]
BLOCK = 64
"""Numbers that share a scale of 32 bits: half a bit more for each."""
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""NF4, as shares of a block's scale."""
WORST: dict[int, float] = {8: 0.5 / 127, 4: max(b - a for a, b in itertools.pairwise(LEVELS)) / 2}
"""Bits -> largest error of a number, as a share of its block's scale."""


class Quantised(nn.Module):
    """A matrix in few bits."""

    codes: Tensor
    """8 bits: int8, a number each [n]. 4 bits: uint8, two numbers each, the first in the upper half [n / 2]."""
    scales: Tensor
    """The largest magnitude of each block, float32."""

    def __init__(self, weight: Float[Tensor, "o i"], bits: Bits) -> None:
        super().__init__()
        self.bits: Bits = bits
        self.shape = tuple(weight.shape)
        flat = weight.detach().float().flatten()
        blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        scales = blocks.abs().amax(1)
        shares = blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        if bits == 8:
            codes = (shares * 127).round_().to(torch.int8).flatten()
        else:
            levels = torch.tensor(LEVELS, device=weight.device)
            nearest = torch.bucketize(shares.flatten(), (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
            codes = nearest[::2] << 4 | nearest[1::2]
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    def dense(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "o i"]:
        """The matrix written out."""
        eight = self.bits == 8
        shares = self.codes.to(torch.float32).div_(127) if eight else F.embedding(self.codes.to(torch.int32), _pairs(self.codes.device))
        count = self.shape[0] * self.shape[1]
        return shares.view(-1, BLOCK).mul_(self.scales[:, None]).flatten()[:count].view(self.shape).to(dtype)

    @property
    def stored_bytes(self) -> int:
        """What it takes."""
        return int(self.codes.nbytes + self.scales.nbytes)


def _pairs(device: torch.device) -> Float[Tensor, "256 2"]:
    """The two levels that each byte names: one look-up for two numbers."""
    levels = torch.tensor(LEVELS, device=device)
    return torch.stack([levels.repeat_interleave(16), levels.repeat(16)], 1)
