"""Causal attention for CPUs, in blocks of queries with explicit probabilities.

torch's CPU kernel recomputes scores in its backward pass and runs 54-70 ms a layer (8 rows x 512 positions, 4 heads of 64) forward and back; keeping the
probabilities (b h t t / 2 values) and skipping what lies behind the diagonal block takes 37-48 ms on the same two cores. Pays up to
`LONGEST` positions, where the kept probabilities still fit; the slow twin is `scaled_dot_product_attention`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 128
LONGEST = 1024


def suits(queries: Tensor) -> bool:
    """Whether this path is the faster one for `queries` [b h t e]."""
    return queries.device.type == "cpu" and queries.shape[-2] % BLOCK == 0 and BLOCK < queries.shape[-2] <= LONGEST and torch.is_grad_enabled()


def causal_attention(queries: Float[Tensor, "b h t e"], keys: Float[Tensor, "b k t e"], values: Float[Tensor, "b k t e"]) -> Float[Tensor, "b h t e"]:
    """softmax(q k' / sqrt(e)) v under the causal mask, grouped-query: h is a multiple of k. t must be a multiple of BLOCK."""
    result: Tensor = _BlockCausal.apply(queries, keys, values)  # type: ignore[no-untyped-call]
    return result


class _BlockCausal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rows, heads, positions, width = queries.shape
        key_heads = keys.shape[1]
        group = heads // key_heads
        scale = 1.0 / math.sqrt(width)
        query_groups = queries.reshape(rows * key_heads, group, positions, width)
        flat_keys = keys.reshape(rows * key_heads, positions, width)
        flat_values = values.reshape(rows * key_heads, positions, width)
        behind = torch.full((BLOCK, BLOCK), -math.inf, dtype=queries.dtype).triu_(1)
        attended, kept = [], []
        for start in range(0, positions, BLOCK):
            end = start + BLOCK
            block = query_groups[:, :, start:end].reshape(rows * key_heads, group * BLOCK, width)
            scores = torch.bmm(block, flat_keys[:, :end].transpose(1, 2)).mul_(scale)
            scores.view(-1, group, BLOCK, end)[..., start:].add_(behind)
            probabilities = torch.softmax(scores, -1)
            attended.append(torch.bmm(probabilities, flat_values[:, :end]).view(-1, group, BLOCK, width))
            kept.append(probabilities)
        result = torch.cat(attended, dim=2).view(rows, heads, positions, width)
        context.save_for_backward(queries, keys, values, result, *kept)
        return result

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values, result, *kept = context.saved_tensors
        rows, heads, positions, width = queries.shape
        key_heads = keys.shape[1]
        group = heads // key_heads
        scale = 1.0 / math.sqrt(width)
        query_groups = queries.reshape(rows * key_heads, group, positions, width)
        gradient_groups = gradient.reshape(rows * key_heads, group, positions, width)
        delta = (gradient_groups * result.view(rows * key_heads, group, positions, width)).sum(-1, keepdim=True)
        flat_keys = keys.reshape(rows * key_heads, positions, width)
        flat_values = values.reshape(rows * key_heads, positions, width)
        to_keys = torch.zeros_like(flat_keys)
        to_values = torch.zeros_like(flat_values)
        to_queries = []
        for probabilities, start in zip(kept, range(0, positions, BLOCK)):
            end = start + BLOCK
            block_gradient = gradient_groups[:, :, start:end].reshape(rows * key_heads, group * BLOCK, width)
            block_queries = query_groups[:, :, start:end].reshape(rows * key_heads, group * BLOCK, width)
            block_delta = delta[:, :, start:end].reshape(rows * key_heads, group * BLOCK, 1)
            to_values[:, :end].baddbmm_(probabilities.transpose(1, 2), block_gradient)
            to_scores = torch.bmm(block_gradient, flat_values[:, :end].transpose(1, 2)).sub_(block_delta).mul_(probabilities)
            to_queries.append(torch.bmm(to_scores, flat_keys[:, :end]).mul_(scale).view(-1, group, BLOCK, width))
            to_keys[:, :end].baddbmm_(to_scores.transpose(1, 2), block_queries, alpha=scale)
        return torch.cat(to_queries, dim=2).view_as(queries), to_keys.view_as(keys), to_values.view_as(values)
