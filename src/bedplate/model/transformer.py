"""The trunk: a decoder of Qwen3's shape (RMSNorm, SwiGLU, grouped-query attention, QK-norm, rotary positions).

Parameter names are Hugging Face's, so that `model.safetensors` is an ordinary Qwen3 checkpoint. Legend: b batch, t positions, d width,
h heads, k key heads, e head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bedplate.model import causal
from bedplate.model.config import ModelConfig


class Cache:
    """Keys and values of the positions seen so far, one pair a layer, for generation one position (or a few) at a time."""

    def __init__(self, layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    @property
    def length(self) -> int:
        """Positions held."""
        return 0 if self.keys[0] is None else int(self.keys[0].shape[2])

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [b k t e] and return everything held."""
        old_keys, old_values = self.keys[layer], self.values[layer]
        if old_keys is not None and old_values is not None:
            keys, values = torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)
        self.keys[layer], self.values[layer] = keys, values
        return keys, values


class Rotation(NamedTuple):
    """cos and sin of the rotary angles, [t e] each."""

    cos: Tensor
    sin: Tensor


def rotation(config: ModelConfig, length: int, device: torch.device, offset: int = 0) -> Rotation:
    """Rotary angles of positions offset..offset+length-1. Source: RoFormer, section 3.4; halves rotated as in Llama."""
    frequency = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim)
    angles = torch.arange(offset, offset + length, device=device, dtype=torch.float32)[:, None] * frequency  # [t e/2]
    doubled = torch.cat([angles, angles], -1)
    return Rotation(doubled.cos(), doubled.sin())


def rotate(x: Float[Tensor, "b h t e"], angles: Rotation) -> Float[Tensor, "b h t e"]:
    """Turn each pair of coordinates by its position's angle."""
    first, second = x.chunk(2, -1)
    return x * angles.cos.to(x.dtype) + torch.cat([-second, first], -1) * angles.sin.to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.key_heads, self.width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        d = config.hidden_size
        self.q_proj = nn.Linear(d, self.heads * self.width, bias=False)
        self.k_proj = nn.Linear(d, self.key_heads * self.width, bias=False)
        self.v_proj = nn.Linear(d, self.key_heads * self.width, bias=False)
        self.o_proj = nn.Linear(self.heads * self.width, d, bias=False)
        self.q_norm = RMSNorm(self.width, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.width, config.rms_norm_eps)

    def forward(self, x: Tensor, angles: Rotation, mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        b, t, _ = x.shape
        # One product for all three: the concatenated weights are small, the calls saved are not.
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        queries, keys, values = torch.split(F.linear(x, weight).view(b, t, -1, self.width), [self.heads, self.key_heads, self.key_heads], 2)
        queries = rotate(self.q_norm(queries).transpose(1, 2), angles)  # [b h t e]
        keys = rotate(self.k_norm(keys).transpose(1, 2), angles)  # [b k t e]
        values = values.transpose(1, 2)
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        if mask is None and cache is None and causal.suits(queries):
            attended = causal.causal_attention(queries, keys, values)
        else:
            only_past = mask is None and t > 1
            attended = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=only_past, enable_gqa=self.heads != self.key_heads
            )
        result: Tensor = self.o_proj(attended.transpose(1, 2).reshape(b, t, -1))
        return result


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, inner, bias=False)
        self.up_proj = nn.Linear(d, inner, bias=False)
        self.down_proj = nn.Linear(inner, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, torch.cat([self.gate_proj.weight, self.up_proj.weight])).chunk(2, -1)
        result: Tensor = self.down_proj(F.silu(gate) * up)
        return result


class Layer(nn.Module):
    """Attention and feed-forward, each on the normalised stream and added to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, angles: Rotation, mask: Tensor | None, cache: Cache | None = None, layer: int = 0) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), angles, mask, cache, layer)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Trunk(nn.Module):
    """Token table, layers, last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "b 1 t s"] | None = None,
        cache: Cache | None = None,
        collect: list[Tensor] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Hidden states after the last norm.

        Args:
            x: embedded positions.
            mask: True where a query (t) may look at a key (s, those in the cache first); None: causal.
            cache: earlier positions; `x` continues them and the cache grows by it.
            collect: gets the stream after every layer appended.
        """
        held, t = 0 if cache is None else cache.length, x.shape[1]
        if mask is None and held and t > 1:  # the kernels' own causal mask counts from the first key, not from the first new one
            mask = torch.ones(t, held + t, dtype=torch.bool, device=x.device).tril_(held)
        angles = rotation(self.config, t, x.device, held)
        for number, layer in enumerate(self.layers):
            x = layer(x, angles, mask, cache, number)
            if collect is not None:
                collect.append(x)
        result: Tensor = self.norm(x)
        return result
