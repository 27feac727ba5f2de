"""The next token: drawn from logits by temperature, top-k and top-p."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bedplate.core.errors import ConfigError

LIKELY = 512
"""Top-p looks at this many tokens first: ordering them takes a fifth of the time that ordering 8,192 takes, and they are mostly enough."""


def check(temperature: float, top_k: int, top_p: float) -> None:
    """Refuse what cannot be drawn with.

    Raises:
        ConfigError: one of the three is out of range.
    """
    if not temperature >= 0:
        raise ConfigError(f"temperature = {temperature} is below 0", "0 takes the likeliest token, 0.8 is usual")
    if top_k < 0:
        raise ConfigError(f"top_k = {top_k} is below 0", "0 allows every token")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p = {top_p} is not above 0 and at most 1", "1 allows every token")


def draw(logits: Float[Tensor, "n v"], temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> Int[Tensor, "n"]:
    """One token a row.

    Args:
        logits: of every token.
        temperature: 0 takes the likeliest.
        top_k: only the k likeliest; 0: all.
        top_p: of those, only the likeliest that together have this probability; 1: all.
        generator: of the draws.
    """
    if temperature == 0:
        return logits.argmax(-1)
    vocabulary = logits.shape[-1]
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    if not 0 < top_k < vocabulary and top_p >= 1:
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    if 0 < top_k < vocabulary:
        ordered, order = probabilities.topk(top_k)
        ordered = ordered / ordered.sum(-1, keepdim=True)
    else:
        ordered, order = probabilities.topk(min(LIKELY, vocabulary))
        if bool((ordered.sum(-1) < top_p).any()):
            ordered, order = probabilities.sort(-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)  # the first token always stays
    return order.gather(-1, torch.multinomial(ordered, 1, generator=generator))[:, 0]
