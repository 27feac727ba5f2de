"""A stream: n sequences that grow together, position by position, with their keys and values cached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bedplate.modality.sequence import Sequence as Positions
from bedplate.modality.specs import ContinuousSense
from bedplate.model.foundation import FoundationModel
from bedplate.model.transformer import Cache


class Stream:
    """Begins with a prefix of tokens (and, where given, known units that see each other both ways); `last` is the state that predicts what comes next."""

    def __init__(self, model: FoundationModel, n: int, tokens: Sequence[int], sense: ContinuousSense | None = None, known: Any = None) -> None:
        """Read the prefix.

        Args:
            model: in evaluation mode.
            n: sequences.
            tokens: token ids of the prefix, the same for all.
            sense: of the known units.
            known: (units [k p], grid [k 3]) that stand after the tokens, or None.
        """
        self.model, self.n = model, n
        self.device = model.head.device
        self.cache = Cache(model.config.num_hidden_layers)
        x = model.model.embed_tokens(torch.tensor(list(tokens), device=self.device))  # [t d]
        mask = None
        if known is not None:
            units, grid = known
            x = torch.cat([x, model.unit_embeddings[str(sense)](units, grid)])
            whole = torch.ones(len(x), len(x), dtype=torch.bool, device=self.device).tril_()
            whole[len(tokens) :, len(tokens) :] = True
            mask = whole[None, None]
        self.last: Float[Tensor, "n d"] = model.model(x.expand(n, *x.shape), mask, self.cache)[:, -1]

    @classmethod
    def of(cls, model: FoundationModel, positions: Positions) -> Self:
        """One sequence that begins with some tokens, and behind them units of one sense that see each other both ways or, one by one, what stands before."""
        tokens = positions.tokens[positions.sense == 0].tolist()
        if not positions.units:
            return cls(model, 1, tokens)
        ((sense, values),) = positions.units.items()
        units, grid = torch.from_numpy(values), torch.from_numpy(positions.grid[sense].astype(np.int64))
        if positions.block.any():
            return cls(model, 1, tokens, sense, (units, grid))
        made = cls(model, 1, tokens)
        for unit, place in zip(units, grid):
            made.push_units(sense, unit[None], place)
        return made

    def push_tokens(self, tokens: Tensor) -> None:
        """Append one token to each sequence [n]."""
        self._push(self.model.model.embed_tokens(tokens))

    def push_units(self, sense: ContinuousSense, units: Float[Tensor, "n p"], grid: Tensor) -> None:
        """Append one unit to each sequence."""
        self._push(self.model.unit_embeddings[sense](units, grid.expand(self.n, 3)))

    def _push(self, x: Tensor) -> None:
        self.last = self.model.model(x[:, None], None, self.cache)[:, -1]
