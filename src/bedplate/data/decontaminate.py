"""Decontamination: a document that shares a run of thirteen words with an evaluation text is not learned from.

Source: the run of 13 words and dropping the whole document follow GPT-3 (Brown et al., 2020, appendix C). An evaluation text shorter than
that is matched as a whole, when it has at least FEWEST_WORDS; a shorter one says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Int, UInt64

from bedplate.data.words import runs, split_words

RUN_WORDS = 13
FEWEST_WORDS = 8


@dataclass(frozen=True)
class Evaluations:
    """The runs of words of evaluation texts, sorted for fast look-up."""

    names: tuple[str, ...]
    hashes: dict[int, UInt64[np.ndarray, "n"]]
    """Length of the run in words -> sorted hashes."""
    owner: dict[int, Int[np.ndarray, "n"]]
    """Index in `names` of the text that each hash came from."""

    @classmethod
    def gather(cls, texts: Iterable[tuple[str, str]]) -> Self:
        """Collect the runs of (name, text) pairs."""
        names: list[str] = []
        found: dict[int, list[np.ndarray]] = {}
        owners: dict[int, list[np.ndarray]] = {}
        for name, text in texts:
            words = split_words(text).hashes
            length = min(RUN_WORDS, len(words))
            if length < FEWEST_WORDS:
                continue
            if not names or names[-1] != name:
                names.append(name)
            hashes = runs(words, length)
            found.setdefault(length, []).append(hashes)
            owners.setdefault(length, []).append(np.full(len(hashes), len(names) - 1, np.int32))
        sorted_hashes, sorted_owners = {}, {}
        for length, parts in found.items():
            unique, first = np.unique(np.concatenate(parts), return_index=True)
            sorted_hashes[length], sorted_owners[length] = unique, np.concatenate(owners[length])[first]
        return cls(tuple(names), sorted_hashes, sorted_owners)

    def match(self, words: UInt64[np.ndarray, "w"]) -> str | None:
        """The name of the first evaluation text that shares a run with these words, or None."""
        for length in self.hashes:
            hits = self.hits(words, length)
            if len(hits):
                return self.names[int(self.owner[length][hits[0]])]
        return None

    def hits(self, words: UInt64[np.ndarray, "w"], length: int) -> Int[np.ndarray, "h"]:
        """Indices in `hashes[length]` of the runs that these words share, in the order of the words."""
        known, found = self.hashes[length], runs(words, length)
        at = np.minimum(np.searchsorted(known, found), len(known) - 1)
        shared: np.ndarray = at[known[at] == found]
        return shared
