"""Rotary positions: angles, and how each kind of scaling stretches them for longer contexts. Legend: t positions, e head width.

Sources: RoFormer, section 3.4 (halves rotated as in Llama); position interpolation (Chen et al. 2023); dynamic NTK (its authors' posts, as
`transformers` computes it); YaRN (Peng et al. 2023), section 3.2; Llama 3.1's own scaling.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bedplate.model import pointwise
from bedplate.model.config import ModelConfig, RopeScaling


class Rotation(NamedTuple):
    """cos and sin of the rotary angles, [t e] each."""

    cos: Tensor
    sin: Tensor


def rotation(config: ModelConfig, length: int, device: torch.device, offset: int = 0) -> Rotation:
    """Rotary angles of positions offset..offset+length-1."""
    angles = torch.arange(offset, offset + length, device=device, dtype=torch.float32)[:, None] * frequencies(config, offset + length, device)  # [t e/2]
    doubled = torch.cat([angles, angles], -1)
    if config.rope_scaling is None or config.rope_scaling.rope_type != "yarn":
        return Rotation(doubled.cos(), doubled.sin())
    return Rotation(doubled.cos() * config.rope_scaling.attention_factor, doubled.sin() * config.rope_scaling.attention_factor)


def rotate(x: Float[Tensor, "b h t e"], angles: Rotation) -> Float[Tensor, "b h t e"]:
    """Turn each pair of coordinates by its position's angle."""
    return pointwise.rotate(x, angles.cos.to(x.dtype), angles.sin.to(x.dtype))


def frequencies(config: ModelConfig, positions: int, device: torch.device) -> Float[Tensor, "e/2"]:
    """Angle between neighbouring positions, in radians, of each pair of coordinates.

    Args:
        config: names the base and the scaling.
        positions: how many there are so far; only dynamic scaling looks at it. Keys that lie in a cache keep the angles they were given.
        device: where to.
    """
    scaling, width, base = config.rope_scaling, config.head_dim, config.rope_theta
    if scaling is not None and scaling.rope_type == "dynamic":
        longer = max(positions, config.max_position_embeddings) / config.max_position_embeddings
        base *= (scaling.factor * longer - (scaling.factor - 1)) ** (width / (width - 2))
    plain = base ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    if scaling is None or scaling.rope_type == "dynamic":
        return plain
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    kept = _llama3_share(scaling, plain) if scaling.rope_type == "llama3" else _yarn_share(scaling, config, device)
    return kept * plain + (1 - kept) * plain / scaling.factor


def _llama3_share(scaling: RopeScaling, plain: Tensor) -> Tensor:
    """Share of each frequency that is left alone: by how many waves fit the original context."""
    waves = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    return ((waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)


def _yarn_share(scaling: RopeScaling, config: ModelConfig, device: torch.device) -> Tensor:
    """Share of each frequency that is left alone: a ramp over the coordinates between the two numbers of turns."""

    def coordinate(turns: float) -> float:
        waves = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return config.head_dim * math.log(waves) / (2 * math.log(config.rope_theta))

    first, last = coordinate(scaling.beta_fast), coordinate(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    steps = torch.arange(config.head_dim // 2, device=device, dtype=torch.float32)
    return 1 - ((steps - first) / (last - first if last != first else 0.001)).clamp(0, 1)
