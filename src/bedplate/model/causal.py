"""Causal attention for CPUs, in blocks of queries with explicit probabilities.

torch's CPU kernel recomputes scores in its backward pass and runs 54-70 ms a layer (8 rows x 512 positions, 4 heads of 64) forward and back; keeping the
probabilities (b h t t / 2 values) and skipping what lies behind the diagonal block takes 37-48 ms on the same two cores. Pays up to
`LONGEST` positions, where the kept probabilities still fit; the slow twin is `scaled_dot_product_attention`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 128
"""Most queries at once."""
LONGEST = 1024


def suits(queries: Tensor) -> bool:
    """Whether this path is the faster one for `queries` [b h t e]."""
    return queries.device.type == "cpu" and queries.shape[-2] <= LONGEST and torch.is_grad_enabled()


def causal_attention(queries: Float[Tensor, "b h t e"], keys: Float[Tensor, "b k t e"], values: Float[Tensor, "b k t e"]) -> Float[Tensor, "b h t e"]:
    """softmax(q k' / sqrt(e)) v under the causal mask, grouped-query: h is a multiple of k."""
    result: Tensor = _BlockCausal.apply(queries, keys, values)  # type: ignore[no-untyped-call]
    return result


class _BlockCausal(torch.autograd.Function):
    """g heads share a pair of key and value heads, of which there are n in all rows together; s queries stand in a block and see u keys."""

    @staticmethod
    def forward(context: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        heads, positions, width = queries.shape[1:]
        group = heads // keys.shape[1]
        queries = queries.reshape(-1, group, positions, width)
        keys, values = keys.reshape(-1, positions, width), values.reshape(-1, positions, width)
        attended, kept = [], []
        for start, end in _blocks(positions):
            behind = torch.full((end - start, end), -math.inf, dtype=queries.dtype).triu_(1 + start).repeat(group, 1)
            block = queries[:, :, start:end].reshape(-1, group * (end - start), width)
            scores = torch.baddbmm(behind, block, keys[:, :end].transpose(1, 2), alpha=width**-0.5)  # [n g*s u]
            probabilities = torch.softmax(scores, -1)
            attended.append(torch.bmm(probabilities, values[:, :end]).view(-1, group, end - start, width))
            kept.append(probabilities)
        result = torch.cat(attended, dim=2)
        context.save_for_backward(queries, keys, values, result, *kept)
        return result.view(-1, heads, positions, width)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values, result, *kept = context.saved_tensors
        group, positions, width = queries.shape[1:]
        rows, heads = gradient.shape[:2]
        gradient = gradient.reshape(queries.shape)
        delta = (gradient * result).sum(-1, keepdim=True)
        to_keys, to_values, to_queries = torch.zeros_like(keys), torch.zeros_like(values), []
        for probabilities, (start, end) in zip(kept, _blocks(positions)):
            block, to_block, block_delta = (part[:, :, start:end].reshape(len(keys), group * (end - start), -1) for part in (queries, gradient, delta))
            to_values[:, :end].baddbmm_(probabilities.transpose(1, 2), to_block)
            to_scores = torch.bmm(to_block, values[:, :end].transpose(1, 2)).sub_(block_delta).mul_(probabilities)
            to_queries.append(torch.bmm(to_scores, keys[:, :end]).mul_(width**-0.5).view(-1, group, end - start, width))
            to_keys[:, :end].baddbmm_(to_scores.transpose(1, 2), block, alpha=width**-0.5)
        return (
            torch.cat(to_queries, dim=2).view(rows, heads, positions, width),
            to_keys.view(rows, -1, positions, width),
            to_values.view(rows, -1, positions, width),
        )


def _blocks(positions: int) -> list[tuple[int, int]]:
    """Start and end of blocks of like size."""
    count = math.ceil(positions / BLOCK)
    return list(itertools.pairwise(positions * number // count for number in range(count + 1)))
