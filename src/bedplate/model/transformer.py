"""The trunk: a decoder with RMSNorm, SwiGLU, grouped-query attention and rotary positions; Qwen3's by default, other families by the config's
flags (biases, QK-norm, scaled rotation, layers with a sliding window or without rotation, experts).

Parameter names are Hugging Face's, so that `model.safetensors` is an ordinary checkpoint of its family. Legend: b batch, t positions, d width,
h heads, k key heads, e head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bedplate.model import causal
from bedplate.model.config import ModelConfig
from bedplate.model.feed_forward import feed_forward
from bedplate.model.pointwise import rms_norm
from bedplate.model.projection import Projection, together
from bedplate.model.rotary import Rotation, rotate, rotation


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


class RMSNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Grouped-query attention, by default with normalised queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.key_heads, self.width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        d = config.hidden_size
        self.q_proj = Projection(d, self.heads * self.width, bias=config.attention_bias)
        self.k_proj = Projection(d, self.key_heads * self.width, bias=config.attention_bias)
        self.v_proj = Projection(d, self.key_heads * self.width, bias=config.attention_bias)
        self.o_proj = Projection(self.heads * self.width, d, bias=config.output_bias)
        self.q_norm = RMSNorm(self.width, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.width, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, angles: Rotation | None, mask: Tensor | None, cache: Cache | None, layer: int, wanted: Tensor | None) -> Tensor:
        b, t, _ = x.shape
        projected = together(x, self.q_proj, self.k_proj, self.v_proj).view(b, t, -1, self.width)
        queries, keys, values = torch.split(projected, [self.heads, self.key_heads, self.key_heads], 2)
        queries = self.q_norm(queries).transpose(1, 2)  # [b h t e]
        keys = self.k_norm(keys).transpose(1, 2)  # [b k t e]
        values = values.transpose(1, 2)
        if angles is not None:
            queries, keys = rotate(queries, angles), rotate(keys, angles)
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        if mask is None and cache is None and causal.suits(queries):
            attended = causal.causal_attention(queries, keys, values)
        else:
            only_past = mask is None and t > 1
            attended = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=only_past, enable_gqa=self.heads != self.key_heads
            )
        attended = attended.transpose(1, 2).reshape(b, t, -1)
        result: Tensor = self.o_proj(attended if wanted is None else attended[wanted])
        return result


class Layer(nn.Module):
    """Attention and feed-forward, each on the normalised stream and added to it."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = feed_forward(config, number)

    def forward(
        self, x: Tensor, angles: Rotation | None, mask: Tensor | None, cache: Cache | None = None, layer: int = 0, wanted: Tensor | None = None
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), angles, mask, cache, layer, wanted)
        x = (x if wanted is None else x[wanted]) + attended
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Trunk(nn.Module):
    """Token table, layers, last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "b 1 t s"] | None = None,
        cache: Cache | None = None,
        collect: list[Tensor] | None = None,
        wanted: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t d"] | Float[Tensor, "n d"]:
        """Hidden states after the last norm.

        Args:
            x: embedded positions.
            mask: True where a query (t) may look at a key (s, those in the cache first); None: causal.
            cache: earlier positions; `x` continues them and the cache grows by it.
            collect: gets the stream after every layer appended.
            wanted: positions whose states are asked for; the last layer computes no others than these. None: all.
        """
        held, t = 0 if cache is None else cache.length, x.shape[1]
        if mask is None and held and t > 1:  # the kernels' own causal mask counts from the first key, not from the first new one
            mask = torch.ones(t, held + t, dtype=torch.bool, device=x.device).tril_(held)
        angles = rotation(self.config, t, x.device, held)
        window, near = self.config.sliding_window, mask
        if window is not None and held + t > window:
            past = torch.ones(t, held + t, dtype=torch.bool, device=x.device)
            near = past.triu(held + 1 - window) & (past.tril(held) if mask is None else mask)
        for number, layer in enumerate(self.layers):
            turned = None if number in self.config.no_rope_layers else angles
            last = number == len(self.layers) - 1
            x = layer(x, turned, near if number in self.config.sliding_layers else mask, cache, number, wanted if last else None)
            if collect is not None:
                collect.append(x)
        result: Tensor = self.norm(x)
        return result
