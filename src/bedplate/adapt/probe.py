"""Probe: a linear classifier on frozen features, the cheapest worker that a base can have."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""L2 penalties that are tried, as a share of the mean loss."""
FOLDS = 4


class Probe(NamedTuple):
    """Standardisation and a linear map."""

    mean: Float[np.ndarray, "d"]
    spread: Float[np.ndarray, "d"]
    weight: Float[np.ndarray, "c d"]
    bias: Float[np.ndarray, "c"]
    penalty: float
    """The L2 penalty that cross-validation chose."""

    def logits(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        """Scores of every class."""
        scores: np.ndarray = ((features - self.mean) / self.spread) @ self.weight.T + self.bias
        return scores

    def predict(self, features: Float[np.ndarray, "n d"]) -> Int[np.ndarray, "n"]:
        """The likeliest class of each."""
        chosen: np.ndarray = self.logits(features).argmax(1)
        return chosen


def fit_probe(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], classes: int, seed: int = 0) -> Probe:
    """Multinomial logistic regression; the penalty is chosen by cross-validation on these labels alone.

    Args:
        features: of the labelled things.
        labels: 0 .. classes - 1.
        classes: how many there are.
        seed: of the folds.
    """
    mean, spread = features.mean(0), features.std(0) + 1e-6
    x = torch.from_numpy(((features - mean) / spread).astype(np.float64))
    y = torch.from_numpy(labels.astype(np.int64))
    penalty = _best_penalty(x, y, classes, seed)
    weight, bias = _solve(x, y, classes, penalty)
    return Probe(mean, spread, weight.numpy(), bias.numpy(), penalty)


def _best_penalty(x: torch.Tensor, y: torch.Tensor, classes: int, seed: int) -> float:
    count = len(y)
    if count < 2 * classes:  # too few to hold any out: the strongest penalty errs least
        return PENALTIES[-1]
    fold = np.random.default_rng(seed).permutation(count) % FOLDS
    scores = {}
    for penalty in PENALTIES:
        right = 0
        for held_out in range(FOLDS):
            train, test = torch.from_numpy(fold != held_out), torch.from_numpy(fold == held_out)
            weight, bias = _solve(x[train], y[train], classes, penalty)
            right += int(((x[test] @ weight.T + bias).argmax(1) == y[test]).sum())
        scores[penalty] = right
    return max(scores, key=lambda p: (scores[p], p))


def _solve(x: torch.Tensor, y: torch.Tensor, classes: int, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + penalty * weight.square().sum() / 2
        torch.autograd.backward(loss)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
