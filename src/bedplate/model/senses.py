"""Units of the continuous senses as positions of the trunk: a linear map + a fixed sin-cos grid position + the sense's learned vector."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def grid_position(grid: Int[Tensor, "n 3"], width: int) -> Float[Tensor, "n d"]:
    """Fixed sin-cos code of (frame, row, column): a third of the width each, wavelengths from 2 pi to 2 pi x 10,000.

    Source: the 2-D code of MAE and AIM, with a third axis.
    """
    third = width // 6 * 2
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(third // 2, device=grid.device) / max(third // 2 - 1, 1))
    angles = grid[:, :, None].float() * frequency  # [n 3 third/2]
    code = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)  # [n 3*third]
    return torch.nn.functional.pad(code, (0, width - code.shape[1]))


class UnitEmbedding(nn.Module):
    """Embeds one sense's units."""

    def __init__(self, unit_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(unit_width, width)
        self.sense = nn.Parameter(torch.zeros(width))

    def forward(self, units: Float[Tensor, "n p"], grid: Int[Tensor, "n 3"]) -> Float[Tensor, "n d"]:
        projected = self.project(units)
        result: Tensor = projected + self.sense + 0.1 * grid_position(grid, projected.shape[-1]).to(projected.dtype)
        return result
