"""Weighing: how much each of several scorers counts, found on examples that none of them has seen.

    fold = folds(groups, seed)
    scales = weigh([scores of one from the other folds, scores of another], targets, loss, weights)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from bedplate.adapt.probe import Loss, losses

FOLDS = 4


def folds(groups: Sequence[str], seed: int) -> Int[np.ndarray, "n"]:
    """The fold of each thing, 0 .. FOLDS - 1; equal groups share one, and folds are about equally large.

    Args:
        groups: what each is from; "" stands for itself alone.
        seed: of the order in which they are dealt out.
    """
    named = [group or f"\0{number}" for number, group in enumerate(groups)]
    sizes: dict[str, int] = {}
    for name in named:
        sizes[name] = sizes.get(name, 0) + 1
    names = list(sizes)
    order = np.random.default_rng([seed, 9]).permutation(len(names))
    filled, fold = [0] * FOLDS, {}
    for name in sorted((names[i] for i in order), key=lambda name: -sizes[name]):  # the largest first, each to the emptiest
        fold[name] = int(np.argmin(filled))
        filled[fold[name]] += sizes[name]
    return np.array([fold[name] for name in named])


def weigh(
    parts: Sequence[Float[np.ndarray, "n c"]], targets: Float[np.ndarray, "n c"], loss: Loss, weights: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "p"]:
    """What each scorer's scores are multiplied with before they are added, none below zero.

    Args:
        parts: scores of every thing by every scorer, from things that are not in its fold.
        targets: labels that hold.
        loss: what is minimised.
        weights: how much each thing counts.
    """
    scores, y = torch.from_numpy(np.stack(parts).astype(np.float64)), torch.from_numpy(targets.astype(np.float64))
    w = torch.from_numpy(weights / weights.sum())
    roots = torch.full((len(parts),), len(parts) ** -0.5, dtype=torch.float64, requires_grad=True)  # squares cannot fall below zero
    optimiser = torch.optim.LBFGS([roots], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        total = (w * losses(torch.einsum("p,pnc->nc", roots.square(), scores), y, loss)).sum()
        torch.autograd.backward(total)
        return total

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return roots.detach().square().numpy()
