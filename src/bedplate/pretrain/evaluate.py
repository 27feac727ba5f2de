"""Evaluation: losses on the same rows of the validation split, and how many bits a byte of text costs."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from bedplate.modality.sequence import Batch
from bedplate.model.batch import to_torch
from bedplate.pretrain.step import autocast, count_targets, divisor, generator_seed, sense_of

EVALUATION_SEED = 20_000_003
"""The noise of evaluations: always the same, so that their differences are the model's."""


class Evaluation(NamedTuple):
    """How well the model predicts what it has not seen."""

    losses: Mapping[str, float]
    """Mean per loss."""
    bits_per_byte: float | None
    """Bits that a byte of text costs; None where there is no text. Comparable across tokenizers."""
    loss: float
    """What training minimises, on these rows."""


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], token_bytes: Int[np.ndarray, "v"], device: torch.device, dtype: torch.dtype
) -> Evaluation:
    """Losses over batches of held-out rows.

    Args:
        model: gives `.losses(batch, generator)`.
        batches: numpy batches.
        token_bytes: bytes that each token stands for; 0 for special tokens, which are no targets here, so that bits per byte is exact.
        device: where the model is.
        dtype: precision of the network's products.
    """
    sums: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()
    weights: dict[str, float] = {}
    text_bytes = 0
    was_training = model.training
    model.eval()
    for number, batch in enumerate(batches):
        ordinary = batch.token_loss & (token_bytes[batch.tokens] > 0)
        batch = dataclasses.replace(batch, token_loss=ordinary)
        text_bytes += int(token_bytes[batch.tokens[ordinary]].sum())
        counts += count_targets([batch])
        generator = torch.Generator(device).manual_seed(generator_seed(EVALUATION_SEED, number, 0, 0))
        with autocast(device, dtype):
            part = model.losses(to_torch(batch, device), generator)  # type: ignore[operator]
        weights |= part.weights
        for name, value in part.sums.items():
            sums[name] = sums.get(name, 0) + value.detach().double()
    model.train(was_training)
    losses = {name: float(value) / counts[sense_of(name)] for name, value in sums.items() if counts[sense_of(name)]}
    bits = float(sums["text"]) / math.log(2) / text_bytes if text_bytes else None
    loss = sum(float(value) * weights[name] / divisor(name, counts) for name, value in sums.items())
    return Evaluation(losses, bits, loss)
