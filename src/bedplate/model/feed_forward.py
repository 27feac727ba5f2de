"""The second half of a layer: SwiGLU, one for all positions or a few of many experts for each.

A router gives every position a share of its likeliest experts. Positions are sorted by expert, each expert computes its own in one product, and every
position adds up what its experts made, in the order of their shares: nothing depends on who else was in the batch.

Source: Shazeer et al., Outrageously Large Neural Networks (2017), section 2; without noise, shares as in Mixtral and Qwen3-MoE.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bedplate.model.config import ModelConfig
from bedplate.model.pointwise import swiglu
from bedplate.model.projection import Projection, together


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = Projection(width, inner, bias=bias)
        self.up_proj = Projection(width, inner, bias=bias)
        self.down_proj = Projection(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(swiglu(together(x, self.gate_proj, self.up_proj)))
        return result


class Experts(nn.Module):
    """A few of many SwiGLUs for each position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.chosen, self.normalised = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(config.hidden_size, config.moe_intermediate_size, False) for _ in range(config.num_experts))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        flat = x.reshape(-1, x.shape[-1])  # [n d]
        shares, experts = torch.softmax(self.gate(flat).float(), -1).topk(self.chosen, -1)  # [n c]
        if self.normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        order = experts.flatten().argsort(stable=True)
        counts = experts.flatten().bincount(minlength=len(self.experts)).tolist()
        parts = torch.split(flat[order // self.chosen], counts)
        made = torch.cat([expert(part) for expert, part in zip(self.experts, parts) if len(part)])
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        each = made[back].view(*experts.shape, -1)  # [n c d]
        return (each * shares[..., None].to(each.dtype)).sum(1).to(x.dtype).view(x.shape)


def feed_forward(config: ModelConfig, layer: int) -> FeedForward | Experts:
    """The one of a layer."""
    return Experts(config) if layer in config.expert_layers else FeedForward(config.hidden_size, config.intermediate_size, config.mlp_bias)
