"""Prompt look-up: what stood behind the same words before may come again. Placeholder until the measured version is merged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

WORDS = 3


class Lookup:
    """Where every few tokens stood last."""

    def __init__(self, ids: Sequence[int] | Int[np.ndarray, "t"]) -> None:
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self.extend([int(i) for i in ids])

    def extend(self, tokens: Sequence[int]) -> None:
        """More tokens."""
        for token in tokens:
            if len(self._ids) >= WORDS:
                self._behind[tuple(self._ids[-WORDS:])] = len(self._ids)
            self._ids.append(token)

    def draft(self, most: int) -> Int[np.ndarray, "n"]:
        """What may come next."""
        at = self._behind.get(tuple(self._ids[-WORDS:]))
        return np.array([] if at is None else self._ids[at : at + most], np.int64)


def accepted(draft: Int[np.ndarray, "n"], drawn: Sequence[int]) -> int:
    """Tokens of a draft that were drawn."""
    count = 0
    while count < min(len(draft), len(drawn)) and draft[count] == drawn[count]:
        count += 1
    return count
