"""Pages of keys and values: who holds which, and which hold beginnings that a later request may share.

A page is free, held by sequences, or kept: nobody needs it now, but what it holds can be found again by what stands in it and before it. Kept
pages are given away when free ones run out, the longest unused first. What is kept is found only under the salt that it was kept with, so
that nobody can tell from an answer's speed what somebody else has asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from jaxtyping import Int

from bedplate.infer.step import PAGE

Key = bytes
"""Digest of a page's positions and of all before them."""


class Pages:
    """The cache's pages. Not safe to share between threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._key: list[Key | None] = [None] * count
        self._found: dict[Key, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Pages that nobody holds but that can be found, the longest unused first."""

    @property
    def available(self) -> int:
        """Pages that can be taken now."""
        return len(self._free) + len(self._kept)

    @property
    def held(self) -> int:
        """Pages that sequences hold."""
        return self.count - self.available

    def take(self, wanted: int) -> list[int] | None:
        """Pages for one sequence; None, and nothing taken, where there are too few."""
        if wanted > self.available:
            return None
        return [self._take() for _ in range(wanted)]

    def share(self, keys: Sequence[Key]) -> list[int]:
        """The pages of the longest beginning that is still there; each is held once more."""
        shared: list[int] = []
        for key in keys:
            page = self._found.get(key)
            if page is None:
                break
            self._holders[page] += 1
            self._kept.pop(page, None)
            shared.append(page)
        return shared

    def name(self, page: int, key: Key) -> None:
        """Say what a held page holds, now that it is full. Where another holds the same, that one stays the one that is found."""
        if key not in self._found and self._key[page] is None:
            self._key[page] = key
            self._found[key] = page

    def give_back(self, pages: Sequence[int]) -> None:
        """One sequence needs them no longer. Later pages are given away before earlier ones: a beginning is of more use."""
        for page in reversed(pages):
            self._holders[page] -= 1
            assert self._holders[page] >= 0
            if self._holders[page]:
                continue
            if self._key[page] is None:
                self._free.append(page)
            else:
                self._kept[page] = None

    def forget(self) -> None:
        """Find nothing of what was kept any more."""
        for page in self._kept:
            self._free.append(page)
        self._kept.clear()
        self._found.clear()
        self._key = [None] * self.count

    def check(self) -> None:
        """Every page is in one place. An error of ours where not."""
        free, kept = set(self._free), set(self._kept)
        assert len(free) == len(self._free) and not free & kept
        for page in range(self.count):
            assert (self._holders[page] == 0) == (page in free or page in kept), page
            assert self._key[page] is None or self._found[self._key[page]] == page  # type: ignore[index]
        assert all(self._key[page] is not None for page in kept)

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._kept.popitem(last=False)
            key = self._key[page]
            assert key is not None
            del self._found[key]
            self._key[page] = None
        self._holders[page] = 1
        return page


class Chain:
    """The keys of a sequence's pages, one after the other as they fill."""

    def __init__(self, salt: Sequence[str]) -> None:
        seed = blake2b(digest_size=16)
        for part in salt:
            seed.update(len(part.encode()).to_bytes(4, "little") + part.encode())
        self._last = seed.digest()
        self.keys: list[Key] = []

    def extend(self, content: Int[np.ndarray, "t"], ahead: bytes = b"") -> None:
        """The key of one more page.

        Args:
            content: its positions' token ids.
            ahead: what else its states depend on: units that stand in it, and all that its positions see beyond its end.
        """
        self._last = blake2b(content.astype(np.int64).tobytes() + ahead, key=self._last, digest_size=16).digest()
        self.keys.append(self._last)


def pages_for(positions: int) -> int:
    """Pages that hold so many positions."""
    return -(-positions // PAGE)
