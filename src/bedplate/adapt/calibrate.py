"""Calibration on held-out examples: a temperature that makes probabilities honest, and the confidence below which to abstain."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

TEMPERATURES = np.exp(np.linspace(np.log(0.05), np.log(20.0), 241))
"""Those that are tried: 2.5% apart."""
FEWEST = 10
"""Held-out examples that it takes to fit anything on them."""


def log_probabilities(logits: Float[np.ndarray, "n c"], several: bool) -> tuple[np.ndarray, np.ndarray]:
    """(log p, log(1 - p)) of every label: one label of all, or each for itself."""
    logits = logits.astype(np.float64)
    if several:
        return -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
    high = logits - logits.max(1, keepdims=True)
    log_p = high - np.log(np.exp(high).sum(1, keepdims=True))
    return log_p, np.log1p(-np.minimum(np.exp(log_p), 1 - 1e-12))


def fit_temperature(logits: Float[np.ndarray, "n c"], targets: Float[np.ndarray, "n c"], several: bool) -> float:
    """The temperature whose probabilities make the targets likeliest; 1 where there are too few to tell.

    Args:
        logits: of held-out examples.
        targets: 1 at the labels that hold.
        several: labels do not exclude each other.
    Source: Guo et al., On Calibration of Modern Neural Networks (2017), section 4.2; targets a little off 0 and 1 as in Platt, Probabilistic Outputs
    for Support Vector Machines (1999): where every example is right, the next one may still be wrong.
    """
    n, labels = targets.shape
    if n < FEWEST:
        return 1.0
    doubt = 1 / (n + 2)
    targets = targets * (1 - doubt) + (1 - targets) * (doubt if several else doubt / max(1, labels - 1))

    def loss(temperature: float) -> float:
        log_p, log_not = log_probabilities(logits / temperature, several)
        return -float((targets * log_p + ((1 - targets) * log_not if several else 0)).sum())

    return float(min(TEMPERATURES, key=loss))


def expected_calibration_error(confidence: Float[np.ndarray, "n"], right: Bool[np.ndarray, "n"], bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over bins of equally many examples."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, max(1, len(order) // 5))) if len(part)]
    return float(sum(abs(confidence[part].mean() - right[part].mean()) * len(part) for part in parts) / max(1, len(order)))


def abstention_threshold(confidence: Float[np.ndarray, "n"], right: Bool[np.ndarray, "n"], accuracy: float) -> float:
    """The lowest confidence from which on answers are as often right as wanted; above 1 where no confidence suffices.

    Args:
        confidence: of the likeliest label.
        right: whether it held.
        accuracy: wanted of the answers; 0: every one is given.
    """
    if accuracy <= 0 or not len(confidence):
        return 0.0
    order = np.argsort(-confidence, kind="stable")
    share = right[order].cumsum() / np.arange(1, len(order) + 1)
    last = np.append(confidence[order][1:] < confidence[order][:-1], True)  # equal confidences are answered together or not at all
    enough = np.flatnonzero((share >= accuracy) & last & (np.arange(1, len(order) + 1) >= min(FEWEST, len(order))))
    return float(confidence[order[enough[-1]]]) if len(enough) else 2.0


def best_threshold(probabilities: Float[np.ndarray, "n c"], targets: Float[np.ndarray, "n c"]) -> float:
    """The probability from which on several labels are given, by micro-F1; a half where there are too few examples to tell."""
    if len(targets) < FEWEST:
        return 0.5
    tried = np.linspace(0.05, 0.95, 19)
    return float(max(tried, key=lambda t: (micro_f1(probabilities >= t, targets > 0.5), -abs(t - 0.5))))


def micro_f1(given: Bool[np.ndarray, "n c"], held: Bool[np.ndarray, "n c"]) -> float:
    """F1 over all labels together."""
    both, either = float((given & held).sum()), float(given.sum() + held.sum())
    return 2 * both / either if either else 1.0


def macro_f1(given: Bool[np.ndarray, "n c"], held: Bool[np.ndarray, "n c"]) -> float:
    """Mean F1 of the labels that occur."""
    both, either = (given & held).sum(0).astype(float), (given.sum(0) + held.sum(0)).astype(float)
    return float((2 * both[either > 0] / either[either > 0]).mean()) if (either > 0).any() else 1.0


def one_hot(labels: Int[np.ndarray, "n"], classes: int) -> Float[np.ndarray, "n c"]:
    """1 at each label."""
    hot: np.ndarray = np.eye(classes, dtype=np.float32)[labels]
    return hot
