"""Rows: which stretch of which document stands in which row. Plans of an epoch, as pure functions of lengths and a shuffle.

    StreamPlan   text and code: documents after each other, cut wherever a row ends. No position is lost and none is padding; rows are
                 shuffled, so that a step does not read neighbouring parts of one long document, and are cut elsewhere in every epoch.
    WholePlan    everything else: a document stays in one row, and each row is filled as well as possible; the rest of it is padding. Only
                 what is longer than a row is split, into pieces with room for the marks that each piece needs to stand on its own.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from bedplate.core.errors import ConfigError

MARKS = 2
"""Positions that a piece of a longer document keeps free: units need a mark before them and one behind."""


class Slice(NamedTuple):
    """Part of a document in a row: positions start..end of the document as it is assembled."""

    document: int
    start: int
    end: int


class Plan(Protocol):
    """The rows of one component in one epoch."""

    @property
    def rows(self) -> int:
        """How many."""
        ...

    def row(self, row: int) -> list[Slice]:
        """What a row holds, in order."""
        ...


class StreamPlan:
    """Documents as one stream, cut into rows.

    Args:
        documents: their numbers.
        lengths: positions of each.
        context: positions in a row.
        rng: decides the order of documents and of rows.
    """

    def __init__(self, documents: Int[np.ndarray, "d"], lengths: Int[np.ndarray, "d"], context: int, rng: np.random.Generator) -> None:
        order = rng.permutation(len(documents))
        self._documents, self._context = documents[order], context
        self._starts = np.concatenate([[0], np.cumsum(lengths[order], dtype=np.int64)])
        self.rows = stream_rows(int(self._starts[-1]), context)
        self._order = rng.permutation(self.rows)

    def row(self, row: int) -> list[Slice]:
        """What a row holds, in order."""
        begin = int(self._order[row]) * self._context
        end = min(begin + self._context, int(self._starts[-1]))
        first = int(np.searchsorted(self._starts, begin, "right")) - 1
        last = int(np.searchsorted(self._starts, end, "left"))
        bounds = self._starts[first : last + 1].tolist()
        parts = zip(self._documents[first:last].tolist(), bounds, bounds[1:])
        return [Slice(document, max(begin - at, 0), min(end, after) - at) for document, at, after in parts if after > at]


class WholePlan:
    """Documents kept whole, several in a row.

    Args:
        documents: their numbers.
        lengths: positions of each.
        context: positions in a row.
        rng: decides the order of documents and of rows.
    Raises:
        ConfigError: a row is too short for a unit between its marks.
    """

    def __init__(self, documents: Int[np.ndarray, "d"], lengths: Int[np.ndarray, "d"], context: int, rng: np.random.Generator) -> None:
        if context <= MARKS:
            raise ConfigError(f"a context of {context} positions holds no unit between its marks", f"set model.context to {MARKS + 2} or more")
        order = rng.permutation(len(documents))
        length = lengths[order].astype(np.int64)
        room = context - MARKS
        pieces = np.where(length <= context, 1, -(-length // room))
        owner = np.repeat(np.arange(len(order)), pieces)
        number = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        split = pieces[owner] > 1
        start = number * room
        end = np.where(split, np.minimum(start + room, length[owner]), length[owner])
        row = best_fit(end - start + MARKS * split, context)
        self.rows = int(row.max(initial=-1)) + 1
        by_row = np.argsort(row, kind="stable")
        self._document, self._start, self._end = documents[order][owner][by_row], start[by_row], end[by_row]
        self._first = np.searchsorted(row[by_row], np.arange(self.rows + 1))
        self._order = rng.permutation(self.rows)

    def row(self, row: int) -> list[Slice]:
        """What a row holds, in order."""
        number = self._order[row]
        here = slice(self._first[number], self._first[number + 1])
        return list(map(Slice, self._document[here].tolist(), self._start[here].tolist(), self._end[here].tolist()))


def stream_rows(positions: int, context: int) -> int:
    """Rows of a stream of so many positions: the same in every epoch."""
    return -(-positions // context)


def best_fit(sizes: Int[np.ndarray, "p"], capacity: int) -> Int[np.ndarray, "p"]:
    """The row of each piece: the fullest that still has room for it, or else a new one. About a million pieces a second.

    In the given (shuffled) order and not by size, or pieces of one size, which are often of one kind, would end up together.
    """
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    some = 0  # bit r: there is a row with exactly r free positions
    placed = []
    count = 0
    for size in sizes.tolist():
        fitting = some >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                some ^= 1 << room
        else:
            room, row, count = capacity, count, count + 1
        left = room - size
        if left:
            if not by_room[left]:
                some ^= 1 << left
            by_room[left].append(row)
        placed.append(row)
    return np.array(placed, np.int64)
