"""In which numbers a processor keeps the weights of a model, where nobody says."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from bedplate.model.foundation import FoundationModel

FEW_REQUESTS = 8
"""Side by side, up to which 4-bit weights were faster than 8-bit ones: by half at one, by a seventh at eight, slower at 32 (docs/journal.md)."""
STEPS = range(15, 3, -1)
"""From the least of a group's numbers to its greatest; what came in 4 bits need not use all of them."""
GROUP = 32
"""Inputs that share a line (nibbles.h)."""
LOOKED_AT = 16
"""Outputs of each matrix."""
LOST = 2e-3
"""Length of the difference over the length of the weights, up to which nothing is lost; 8 bits lose four times as much."""


def usual_precision(model: FoundationModel, most_running: int) -> Literal["int8", "int4"]:
    """4 bits for few requests at a time, where the weights came in 4 bits and lose nothing; else 8.

    Args:
        model: whose weights are looked at.
        most_running: requests side by side; the answer hangs on what may come, not on what is there, so that results never do.
    """
    if most_running > FEW_REQUESTS:
        return "int8"
    layers: Any = model.model.layers
    projections = (
        getattr(parent, name)
        for layer in layers
        for parent, names in ((layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")), (layer.mlp, ("gate_proj", "up_proj", "down_proj")))
        for name in names
    )
    return "int4" if all(_lies_on_lines(projection.matrix(torch.float32)) for projection in projections) else "int8"


@torch.inference_mode()
def _lies_on_lines(weight: Tensor) -> bool:
    """Whether every group of a matrix's inputs has 16 values at most, equally far apart; judged by some of its outputs."""
    outputs, inputs = weight.shape
    if inputs % GROUP:
        return False
    groups = weight[:: max(1, outputs // LOOKED_AT)].detach().float().cpu().reshape(-1, GROUP)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    off = torch.full_like(groups[:, 0], torch.inf)
    for steps in STEPS:
        step = ((high - low) / steps).clamp_min(1e-30)
        off = torch.minimum(off, (((groups - low) / step).round() * step + low - groups).square().sum(1))
    return bool(off.sum().sqrt() <= LOST * groups.norm())
