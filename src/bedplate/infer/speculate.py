"""Prompt look-up: what stood behind the same words before may come again. It costs no second model, and pays where answers quote their question.

    lookup = Lookup(prompt)             # one a request; a few dictionary writes a token
    draft = lookup.draft(8)             # guesses, or none
    count = accepted(draft, drawn)      # how many came true

A guess is kept only where the token that is drawn at its place, from the logits behind it and with the noise of its position, is the same.
So answers are those without guesses: token for token, greedy or drawn. (For a guess without probabilities this is the rejection rule of
Leviathan et al. (2023), section 2.3: it is accepted with the probability that the model gives it, and what is drawn in its stead has the
model's own distribution without it.)

Source: Saxena, Prompt Lookup Decoding (2023); lengths and rule of recency measured on the legal summaries (docs/journal.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

LENGTHS = (4, 3, 2, 1)
"""Tokens that must have stood there, the longest match first."""


class Lookup:
    """Where every few tokens stood last, kept as the sequence grows."""

    def __init__(self, ids: Iterable[int] | Int[np.ndarray, "t"]) -> None:
        """
        Args:
            ids: tokens so far.
        """
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        """The last tokens -> the place behind where they stood last, but for their end of the sequence."""
        self._waiting: list[tuple[int, ...]] = []
        """The ends of the sequence: nothing stands behind them yet."""
        self.extend(ids.tolist() if isinstance(ids, np.ndarray) else ids)

    def extend(self, tokens: Iterable[int]) -> None:
        """More tokens."""
        ids, behind = self._ids, self._behind
        for token in tokens:
            place = len(ids)
            for words in self._waiting:
                behind[words] = place
            ids.append(token)
            self._waiting = [tuple(ids[-length:]) for length in LENGTHS if place + 1 >= length]

    def draft(self, most: int) -> Int[np.ndarray, "n"]:
        """What may come next: at most so many tokens, none where nothing like the end stood before."""
        for words in self._waiting:
            at = self._behind.get(words)
            if at is not None:
                return _behind(self._ids, at, most)
        return np.zeros(0, np.int64)


def draft(seen: Int[np.ndarray, "t"], most: int) -> Int[np.ndarray, "n"]:
    """What may come behind a sequence: the slow twin of `Lookup`, which looks at all of it.

    Args:
        seen: tokens so far.
        most: tokens wanted.
    """
    ids = seen.tolist()
    for length in LENGTHS:
        for start in range(len(ids) - length - 1, -1, -1):
            if ids[start : start + length] == ids[-length:]:
                return _behind(ids, start + length, most)
    return np.zeros(0, np.int64)


def _behind(ids: list[int], at: int, most: int) -> Int[np.ndarray, "n"]:
    """What stands from a place on; behind the end it goes on as it went since that place."""
    told = ids[at : at + most]
    while len(told) < most:
        told = (told * 2)[:most]
    return np.array(told, np.int64)


def accepted(draft: Int[np.ndarray, "n"], drawn: Sequence[int]) -> int:
    """How many tokens of a draft came true.

    Args:
        draft: guesses.
        drawn: at each place the token that was drawn behind the draft up to there.
    """
    count = 0
    for guess, token in zip(draft.tolist(), drawn):
        if guess != token:
            break
        count += 1
    return count
