"""Mixture: which component a row comes from, and which of its rows. A pure function of the row's number, in constant time.

Rows come in blocks of BLOCK. Every block holds each component in exactly its share (largest remainders), in an order shuffled by the seed,
so that any stretch of training sees the mixture and the n-th row of a component can be found without counting.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bedplate.core.errors import ConfigError, did_you_mean
from bedplate.data.document import COMPONENTS, Component

BLOCK = 512


class Pick(NamedTuple):
    """Where a row comes from."""

    component: Component
    number: int
    """Number of the row among all rows of its component, epochs after each other."""


def tempered(positions: Mapping[Component, int]) -> dict[Component, float]:
    """Shares by the square root of what there is: small components are seen more often than their size, large ones still most."""
    roots = {component: float(count) ** 0.5 for component, count in positions.items() if count > 0}
    total = sum(roots.values())
    return {component: root / total for component, root in roots.items()}


class Mixture:
    """Components with their shares."""

    def __init__(self, weights: Mapping[Component, float], seed: int) -> None:
        unknown = [name for name in weights if name not in COMPONENTS]
        if unknown:
            raise ConfigError(f"the mixture names {unknown[0]!r}", did_you_mean(unknown[0], COMPONENTS))
        total = sum(weights.values())
        if not 0 < total < math.inf or min(weights.values()) < 0:
            raise ConfigError("the mixture's weights must be positive numbers", "give at least one component a weight above 0")
        self.components = [name for name, weight in weights.items() if weight > 0]
        exact = np.array([weights[name] / total * BLOCK for name in self.components])
        counts = np.maximum(np.floor(exact).astype(int), 1)  # a component that is wanted at all is in every block
        while counts.sum() > BLOCK:
            counts[counts.argmax()] -= 1
        order = np.argsort(-(exact - counts), kind="stable")
        counts[order[: BLOCK - counts.sum()]] += 1
        self.counts = counts
        self.seed = seed
        self._block = functools.lru_cache(maxsize=64)(self._make_block)

    @property
    def shares(self) -> dict[Component, float]:
        """Share of rows of each component, as it is really drawn."""
        return {name: float(count) / BLOCK for name, count in zip(self.components, self.counts)}

    def pick(self, row: int) -> Pick:
        """The component of a row and its number there."""
        block, offset = divmod(row, BLOCK)
        slots, ranks = self._block(block)
        number = int(slots[offset])
        return Pick(self.components[number], block * int(self.counts[number]) + int(ranks[offset]))

    def rows_before(self, component: Component, row: int) -> int:
        """Rows of a component among the first `row` rows."""
        if component not in self.components:
            return 0
        number = self.components.index(component)
        block, offset = divmod(row, BLOCK)
        return block * int(self.counts[number]) + int((self._block(block)[0][:offset] == number).sum())

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        slots = np.random.default_rng([self.seed, 1, block]).permutation(np.repeat(np.arange(len(self.counts)), self.counts))
        ranks = np.empty(BLOCK, int)
        for number in range(len(self.counts)):
            here = slots == number
            ranks[here] = np.arange(here.sum())
        return slots, ranks
