"""Probe: a linear classifier on frozen features, the cheapest worker that a base can have."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""L2 penalties that are tried, as a share of the mean loss."""
FOLDS = 4
MANY = 1000
"""With more things than this one fold tells enough."""

Loss = Literal["softmax", "sigmoid", "squared"]


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

    def plain(self) -> tuple[Float[np.ndarray, "c d"], Float[np.ndarray, "c"]]:
        """(weight, bias) of the same map on features that are not standardised."""
        return self.weight / self.spread, self.bias - self.weight @ (self.mean / self.spread)

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
    return fit_linear(features, np.eye(classes)[labels], "softmax", seed)


def fit_linear(
    features: Float[np.ndarray, "n d"], targets: Float[np.ndarray, "n c"], loss: Loss, seed: int = 0, weights: Float[np.ndarray, "n"] | None = None
) -> Probe:
    """A linear map from features to targets; the penalty is chosen by cross-validation on these targets alone.

    Args:
        features: of the things.
        targets: one-hot labels (softmax), labels that hold or not (sigmoid), or numbers (squared).
        loss: what is minimised.
        seed: of the folds.
        weights: how much each thing counts; all the same when left out.
    """
    mean, spread = features.mean(0), features.std(0) + 1e-6
    x = torch.from_numpy(((features - mean) / spread).astype(np.float64))
    y = torch.from_numpy(targets.astype(np.float64))
    w = torch.ones(len(y), dtype=torch.float64) if weights is None else torch.from_numpy(weights / weights.mean()).double()
    penalty = _best_penalty(x, y, w, loss, seed)
    weight, bias = _solve(x, y, w, loss, penalty)
    return Probe(mean, spread, weight.numpy(), bias.numpy(), penalty)


def unseen_scores(
    features: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n c"],
    loss: Loss,
    fold: Int[np.ndarray, "n"],
    penalty: float,
    weights: Float[np.ndarray, "n"],
) -> Float[np.ndarray, "n c"]:
    """The scores that each thing gets from a linear map that the things of the other folds made.

    Args:
        features: of the things.
        targets: as in `fit_linear`.
        loss: what is minimised.
        fold: of each thing.
        penalty: the L2 penalty.
        weights: how much each thing counts.
    """
    x = torch.from_numpy(((features - features.mean(0)) / (features.std(0) + 1e-6)).astype(np.float64))
    y, w = torch.from_numpy(targets.astype(np.float64)), torch.from_numpy(weights / weights.mean()).double()
    made = np.zeros(targets.shape)
    for held_out in np.unique(fold):
        train, test = torch.from_numpy(fold != held_out), torch.from_numpy(fold == held_out)
        weight, bias = _solve(x[train], y[train], w[train], loss, penalty)
        made[fold == held_out] = (x[test] @ weight.T + bias).numpy()
    return made


def _best_penalty(x: Tensor, y: Tensor, w: Tensor, loss: Loss, seed: int) -> float:
    count, classes = y.shape
    if count < 2 * classes or count < FOLDS:  # too few to hold any out: the strongest penalty errs least
        return PENALTIES[-1]
    fold = np.random.default_rng(seed).permutation(count) % FOLDS
    scores = {}
    for penalty in PENALTIES:
        score = 0.0
        for held_out in range(FOLDS if count <= MANY else 1):
            train, test = torch.from_numpy(fold != held_out), torch.from_numpy(fold == held_out)
            weight, bias = _solve(x[train], y[train], w[train], loss, penalty)
            scored = x[test] @ weight.T + bias
            if loss == "softmax":
                score += float((scored.argmax(1) == y[test].argmax(1)).sum())
            else:
                score -= float(losses(scored, y[test], loss).sum())
        scores[penalty] = score
    return max(scores, key=lambda p: (scores[p], p))


def losses(scores: Float[Tensor, "n c"], y: Float[Tensor, "n c"], loss: Loss) -> Float[Tensor, "n"]:
    """Loss of each thing."""
    if loss == "softmax":
        return F.cross_entropy(scores, y, reduction="none")
    if loss == "sigmoid":
        return F.binary_cross_entropy_with_logits(scores, y, reduction="none").mean(1)
    return (scores - y).square().mean(1) / 2


def _solve(x: Tensor, y: Tensor, w: Tensor, loss: Loss, penalty: float) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(y.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = (w * losses(x @ weight.T + bias, y, loss)).mean() + penalty * weight.square().sum() / 2
        torch.autograd.backward(total)
        return total

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
