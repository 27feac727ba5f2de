"""Chunks: what needs the logits of many positions, computed for few at a time and again on the way back, so that they never exist all at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 512
"""Positions whose logits exist at once, as in model/cross_entropy.py."""


def in_chunks(function: Callable[..., Tensor], *tensors: Tensor, chunk: int = CHUNK) -> Float[Tensor, "n"]:
    """A function of rows, applied to all rows: a number each. Differentiable in the tensors and in what the function closes over.

    Args:
        function: rows of every tensor -> a number a row.
        tensors: of n rows each.
        chunk: rows at once.
    """
    count = len(tensors[0])
    parts = [checkpoint(function, *(t[at : at + chunk] for t in tensors), use_reentrant=False, preserve_rng_state=False) for at in range(0, count, chunk)]
    return torch.cat(parts) if parts else tensors[0].new_zeros(0)


def log_probabilities(hidden: Float[Tensor, "n d"], head: Float[Tensor, "v d"], targets: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Log-probability of each target, in nats. Differentiable.

    Args:
        hidden: states that predict the targets.
        head: output matrix.
        targets: token ids.
    """

    def of(states: Tensor, wanted: Tensor) -> Tensor:
        return torch.log_softmax(torch.nn.functional.linear(states, head).float(), 1).gather(1, wanted[:, None])[:, 0]

    return in_chunks(of, hidden, targets)


def divergences(hidden: Float[Tensor, "n d"], head: Float[Tensor, "v d"], wanted: Callable[[Tensor], Tensor], temperature: float) -> Float[Tensor, "n"]:
    """Kullback-Leibler divergence of what states predict from what is wanted, times the squared temperature. Differentiable in states and head.

    Args:
        hidden: states that predict.
        head: output matrix.
        wanted: numbers of rows -> logits that are wanted of them; no gradient flows into them.
        temperature: both sides' logits are divided by it.
    """
    words = len(head)

    def of(states: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            aim = torch.log_softmax(wanted(rows)[:, :words].float() / temperature, 1)
        found = torch.log_softmax(torch.nn.functional.linear(states, head).float()[:, : aim.shape[1]] / temperature, 1)
        return (aim.exp() * (aim - found)).sum(1) * temperature**2

    return in_chunks(of, hidden, torch.arange(len(hidden), device=hidden.device))
