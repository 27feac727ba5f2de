"""A request under way: its positions so far, how many of them are computed, and the pages that hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from bedplate.infer.adapters import Registered
from bedplate.infer.pages import Chain
from bedplate.infer.request import Listener, Request
from bedplate.infer.speculate import Lookup
from bedplate.infer.step import PAGE

if TYPE_CHECKING:
    from bedplate.core.generation import Finish


class Running:
    """One request of the engine."""

    def __init__(
        self, request: Request, listener: Listener, adapter: Registered | None, embedded: Float[np.ndarray, "t d"] | None, drafting: bool
    ) -> None:
        """Not yet started.

        Args:
            request: what is asked.
            listener: who hears of it.
            adapter: what stands behind the name that it asks for.
            embedded: its positions as vectors, where units stand among them; None: tokens alone, looked up when they are read.
            drafting: whether answers are guessed ahead.
        """
        self.request, self.listener, self.adapter, self.embedded = request, listener, adapter, embedded
        self.lead = self
        """Whose listener hears: itself, or the one that it is read beside."""
        self.beside: Running | None = None
        """What is read side by side with it: it begins, is put back and ends with it."""
        self._room: Float[np.ndarray, "t d"] | None = None
        self.state: Float[np.ndarray, "d"] | None = None
        """Behind its last position, where a unit is wanted."""
        self.number = 0
        """In order of arrival."""
        asked = request.positions
        self.asked = len(asked)
        self.ids = np.zeros(self.asked + max(1, request.wanted) + PAGE, np.int64)
        self.ids[: self.asked] = asked.tokens
        self.length = self.asked
        """Positions that are known; those from `computed` on are still to be read."""
        self.computed = 0
        self.pages: list[int] = []
        self.named = 0
        """Pages, from the first on, that can be found by what they hold."""
        self.cancelled: Finish | None = None
        self.begun = False
        self.until = _until(asked.block)
        self.collected: list[np.ndarray] = []
        """States of positions computed so far, where the request wants states or log-probabilities of its prompt."""
        digest = "" if adapter is None else adapter.digest  # a name may come to mean another adapter
        self.chain = Chain((request.tenant, request.policy, digest))
        self.lookup = Lookup(asked.tokens) if drafting else None
        self.drafted: Int[np.ndarray, "k"] = np.zeros(0, np.int64)
        """Guessed tokens that stand behind the known ones in this step."""
        self.guess_most = 4
        """How far to guess; it follows what came of earlier guesses."""

    @property
    def changes(self) -> str:
        """Digest of the adapter that changes its positions; "": they are the base's."""
        return self.adapter.digest if self.adapter is not None and self.adapter.changes else ""

    @property
    def keeps_states(self) -> bool:
        """Whether every position's state is needed, so that none may be skipped."""
        return self.request.layers is not None or (self.request.prompt_logprobs is not None and not self.said)

    @property
    def said(self) -> int:
        """Tokens of the answer so far."""
        return self.length - self.asked

    @property
    def most(self) -> int:
        """Positions when it is as long as it may get."""
        return self.asked + self.request.wanted

    @property
    def together(self) -> tuple[Running, ...]:
        """Itself, and what is read beside it."""
        return (self,) if self.beside is None else (self, self.beside)

    def sees(self, start: int, end: int) -> Int[np.ndarray, "n"]:
        """The last position that each of a stretch sees."""
        known = self.until[start:end]
        return known if len(known) == end - start else np.concatenate([known, np.arange(max(start, self.asked), end, dtype=np.int32)])

    def may_stop_at(self, end: int) -> int:
        """The latest end of a portion at or before `end` that parts no picture; `computed` where there is none."""
        while self.computed < end < self.asked and self.until[self.computed : end].max() >= end:
            end -= 1
        return end

    def block_end(self, start: int) -> int:
        """Where the shortest portion from `start` on ends."""
        return int(self.until[start]) + 1 if start < self.asked else start + 1

    def append(self, token: int) -> None:
        """One more token of the answer."""
        if self.length == len(self.ids):
            self.ids = np.concatenate([self.ids, np.zeros(len(self.ids), np.int64)])
        self.ids[self.length] = token
        self.length += 1
        if self.lookup is not None:
            self.lookup.extend([token])

    def append_vector(self, vector: Float[np.ndarray, "d"]) -> None:
        """One more unit, as the trunk reads it. The first makes room for all that are wanted."""
        assert self.embedded is not None and len(self.embedded) == self.length
        if self._room is None:
            self._room = np.empty((self.most, len(vector)), np.float32)
            self._room[: self.length] = self.embedded
        self._room[self.length] = vector
        self.length += 1
        self.embedded = self._room[: self.length]
        self.state = None

    def name_pages(self, name: Callable[[int, bytes], None]) -> None:
        """Name every page that has become full."""
        while self.named < min(self.computed // PAGE, len(self.pages)):
            if self.named == len(self.chain.keys):
                self._extend_chain(self.named)
            name(self.pages[self.named], self.chain.keys[self.named])
            self.named += 1

    def known_keys(self) -> list[bytes]:
        """Keys of the pages that could be shared: all full ones, but for the last position, whose state is needed."""
        for number in range(len(self.chain.keys), (self.length - 1) // PAGE):
            self._extend_chain(number)
        return self.chain.keys[: (self.length - 1) // PAGE]

    def start_over(self) -> None:
        """Nothing of it is computed any more; what was said stays said."""
        self.computed, self.pages, self.named, self.collected, self.drafted, self.state = 0, [], 0, [], np.zeros(0, np.int64), None

    def _extend_chain(self, number: int) -> None:
        start, end = number * PAGE, (number + 1) * PAGE
        ahead = b""
        if self.embedded is not None and start < len(self.embedded):
            seen = int(self.until[start:end].max(initial=-1)) + 1
            ahead = self.embedded[start : max(seen, end)].tobytes() + self.until[start:end].tobytes()
        elif self.embedded is None and (own := self.until[start:end]).size and (own > np.arange(start, start + own.size)).any():
            ahead = self.ids[end : int(own.max()) + 1].tobytes() + own.tobytes()  # words that see what follows them
        self.chain.extend(self.ids[start:end], ahead)


def _until(block: Int[np.ndarray, "t"]) -> Int[np.ndarray, "t"]:
    """The last position that each position sees: itself, or the end of the block that it belongs to."""
    until = np.arange(len(block), dtype=np.int32)
    if block.any():
        ends = np.flatnonzero(np.append(block[1:] != block[:-1], True))
        last = ends[np.searchsorted(ends, until)]
        until = np.where(block > 0, last, until).astype(np.int32)
    return until
