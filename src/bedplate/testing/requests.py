"""Positions to ask an engine with."""

from __future__ import annotations

import numpy as np

from bedplate.adapt.base import Base
from bedplate.adapt.encode import compose, said
from bedplate.modality.sequence import SPECIAL_TOKENS
from bedplate.modality.sequence import Sequence as Positions


def words(base: Base, count: int, seed: int = 0) -> Positions:
    """Random tokens, none of them special.

    Args:
        base: whose vocabulary.
        count: of tokens.
        seed: of the draw.
    """
    ids = np.random.default_rng(seed).integers(len(SPECIAL_TOKENS), base.model.config.vocab_size, count)
    return compose([said(ids, False)], base.model.config)
