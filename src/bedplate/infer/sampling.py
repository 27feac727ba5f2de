"""The next token of one sequence, drawn from its logits. A draw is a function of logits, settings, seed and position alone: neither what else is
in the batch, nor a guess ahead, nor a start from the beginning changes it.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

from bedplate.core.errors import StateError
from bedplate.core.generation import Sampling
from bedplate.infer.request import Constraint, Drawn

NEGLIGIBLE = 20.0
"""Tokens whose probability is below e^-20 of the likeliest one's are looked at only where top-p wants that many."""


def plain(sampling: Sampling, constraint: Constraint | None) -> bool:
    """Whether the likeliest token is all that is asked for."""
    changed = sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty or sampling.logit_bias
    return sampling.temperature == 0 and not changed and sampling.logprobs is None and constraint is None


def draw(
    logits: Float[np.ndarray, "v"],
    sampling: Sampling,
    position: int,
    prompt: Int[np.ndarray, "t"],
    said: Int[np.ndarray, "s"],
    constraint: Constraint | None = None,
) -> Drawn:
    """One token.

    Args:
        logits: of every token, float32; -inf where it is never said.
        sampling: how to draw.
        position: of the token in its sequence.
        prompt: tokens of the question.
        said: tokens of the answer so far.
        constraint: which tokens may come.
    Raises:
        StateError: none may.
    """
    changed = _changed(logits, sampling, prompt, said)
    if constraint is not None:
        changed = _allowed(changed, constraint)
    token = int(changed.argmax()) if sampling.temperature == 0 else _drawn(changed, sampling, position)
    if sampling.logprobs is None:
        return Drawn(token, math.nan)
    return logprobs(logits, token, sampling.logprobs)


def logprobs(logits: Float[np.ndarray, "v"], token: int, most: int) -> Drawn:
    """A token with its log-probability, and the likeliest in its place.

    Args:
        logits: of every token, unchanged.
        token: that was said.
        most: how many others to tell of.
    """
    top = logits.max()
    total = top + np.log(np.exp(logits - top, dtype=np.float64).sum())
    likeliest = np.argpartition(-logits, most)[:most] if 0 < most < len(logits) else np.arange(min(most, len(logits)))
    likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
    return Drawn(token, float(logits[token] - total), [(int(i), float(logits[i] - total)) for i in likeliest])


def _changed(logits: np.ndarray, sampling: Sampling, prompt: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Logits after penalties and bias; a copy where anything changes."""
    repeats = sampling.repetition_penalty != 1
    counts = bool(sampling.presence_penalty or sampling.frequency_penalty) and len(said) > 0
    if not (repeats or counts or sampling.logit_bias):
        return logits
    changed = logits.copy()
    if repeats:
        seen = np.unique(np.concatenate([prompt, said]))
        seen = seen[seen < len(changed)]
        changed[seen] = np.where(changed[seen] > 0, changed[seen] / sampling.repetition_penalty, changed[seen] * sampling.repetition_penalty)
    if counts:
        tokens, times = np.unique(said, return_counts=True)
        changed[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * times.astype(np.float32)
    for token, bias in sampling.logit_bias.items():
        if 0 <= token < len(changed):
            changed[token] = -np.inf if bias <= -100 else changed[token] + (1e4 if bias >= 100 else bias)
    return changed


def _allowed(logits: np.ndarray, constraint: Constraint) -> np.ndarray:
    """Logits of the tokens that may come, the others' -inf."""
    words = np.zeros(-(-len(logits) // 32), np.int32)
    if not constraint.allow(words):
        return logits
    may = np.unpackbits(words.view(np.uint8), bitorder="little")[: len(logits)].astype(bool)
    allowed: np.ndarray = np.where(may, logits, np.float32(-np.inf))
    if not (allowed > -np.inf).any():
        raise StateError("the answer's form lets no token come that may be said", "loosen the form, or leave logit_bias and ignore_end out")
    return allowed


def _drawn(logits: np.ndarray, sampling: Sampling, position: int) -> int:
    """A token by its probability among those that top-k, top-p and min-p leave."""
    top = logits.max()
    if not np.isfinite(top):
        return int(logits.argmax())
    scaled = (logits - top) / np.float32(max(sampling.temperature, 1e-6))
    few = sampling.top_k or sampling.top_p < 1 or sampling.min_p
    candidates = np.flatnonzero(scaled > -NEGLIGIBLE) if few else np.arange(len(scaled))
    weights = np.exp(scaled[candidates], dtype=np.float64)
    if few:
        whole = float(np.exp(scaled, dtype=np.float32).sum(dtype=np.float64)) if sampling.top_p < 1 and not sampling.top_k else float(weights.sum())
        if weights.sum() < sampling.top_p * whole:
            candidates = np.arange(len(scaled))
            weights = np.exp(scaled, dtype=np.float64)
        order = np.argsort(-weights, kind="stable")
        if sampling.top_k:
            order = order[: sampling.top_k]
            whole = float(weights[order].sum())
        kept = weights[order]
        before = np.cumsum(kept) - kept
        stays = (before < sampling.top_p * whole) & (kept >= sampling.min_p)
        stays[0] = True
        candidates, weights = candidates[order[stays]], kept[stays]
    # Philox counts: the number at a position does not depend on how many were drawn before.
    u = np.random.Generator(np.random.Philox(key=sampling.seed % 2**64, counter=position)).random()
    total = np.cumsum(weights)
    return int(candidates[min(int(np.searchsorted(total, u * total[-1], side="right")), len(candidates) - 1)])
