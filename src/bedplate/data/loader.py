"""Loader: rows of a corpus as batches. Everything is a pure function of (seed, row, context): no state, nothing to save, nothing to replay.

    corpus tables --shuffle(seed, component, context, epoch)--> Plan --row--> Slices --assemble--> positions --> Batch
    global row --Mixture--> component and its row --> epoch and row within it

A context warm-up changes `context` and counts rows in the new width from the same number of positions on (pretrain/schedule.py), so epochs
go on where they were. Rows of another width are shuffled anew: the rest of the epoch is a fresh draw from all documents, not those that the
earlier stage left, and what it saw comes again as often as chance has it, never by rule. With several processes, rank r of w takes rows
first + rows * r // w up to first + rows * (r + 1) // w of a step; the loader need not know.
"""

from __future__ import annotations

import functools
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bedplate.core.errors import ConfigError, DataError, did_you_mean
from bedplate.data.corpus import Corpus, Split
from bedplate.data.document import COMPONENTS, Component
from bedplate.data.mixture import Mixture, tempered
from bedplate.data.packing import PackingSettings, assemble, cut_piece, fill_in_middle
from bedplate.data.rows import Plan, Slice, StreamPlan, WholePlan, stream_rows
from bedplate.modality.sequence import PADDING, Batch
from bedplate.modality.sequence import Sequence as Positions

STREAMS: tuple[Component, ...] = ("text", "code")
"""Components that are cut into rows wherever a row ends."""

SHORTEST_FIM = 16
"""Tokens that a piece must have for its middle to be filled in."""

PLANS_KEPT = 2 * len(COMPONENTS)
"""A plan takes 20 bytes a document; more than this epoch's and the next one's are not needed."""


@dataclass(frozen=True)
class LoaderSettings:
    """What a run reads and how it is packed."""

    mixture: Mapping[str, float] = field(default_factory=dict)
    """Weight of each component, such as {text = 2, image = 1}; components left out are not read. Empty: by the square root of their size."""
    packing: PackingSettings = field(default_factory=PackingSettings)
    """How documents become positions and targets."""
    seed: int = 0
    """Of the order and of every choice made in packing."""


class TracedDocument(NamedTuple):
    """A document that a row saw."""

    row: int
    document: int
    component: Component
    epoch: int
    start: int
    """First position of the document that the row holds."""
    end: int
    source: str
    member: str
    sha256: str


class Loader:
    """Batches of a corpus's split. May be used by several threads at once.

    Raises:
        ConfigError: the mixture names what is no component.
        DataError: the corpus, or its split, does not have what the mixture wants.
    """

    def __init__(self, corpus: Corpus, settings: LoaderSettings, split: Split = "train") -> None:
        self.corpus, self.settings, self.split = corpus, settings, split
        self.special_ids, self.specs = corpus.special_ids, corpus.specs
        self.tables = {c: table for c in corpus.components if len((table := corpus.table(c, split)).document)}
        self.positions = {c: int(table.positions.sum()) for c, table in self.tables.items()}
        self.mixture = Mixture(self._weights(), settings.seed)
        self._plan = functools.lru_cache(maxsize=PLANS_KEPT)(self._make_plan)
        self._whole_starts: dict[tuple[Component, int], list[int]] = {}
        self._counting = threading.Lock()

    def batch(self, first_row: int, rows: int, context: int) -> Batch:
        """Rows first_row .. first_row + rows - 1 as numpy.

        Args:
            first_row: counted from 0 over the whole run; epochs follow each other without end.
            rows: how many.
            context: positions in a row.
        """
        return self._collate(range(first_row, first_row + rows), context)

    def batches(self, first_row: int, rows: int, context: int, most_rows: int) -> list[Batch]:
        """The same rows as several batches of at most `most_rows`: rows of pure text apart, since they need no mask and compute faster."""
        kinds: dict[bool, list[int]] = {True: [], False: []}
        for row in range(first_row, first_row + rows):
            kinds[self.mixture.pick(row).component in STREAMS].append(row)
        return [self._collate(part[start : start + most_rows], context) for part in kinds.values() for start in range(0, len(part), most_rows)]

    def documents(self, first_row: int, rows: int, context: int) -> list[TracedDocument]:
        """Which documents those rows hold, with their files."""
        found = []
        for row in range(first_row, first_row + rows):
            component, epoch, slices = self._slices(row, context)
            for part in slices:
                origin = self.corpus.origin(part.document)
                place = (part.start, part.end, origin.source, origin.member, origin.sha256)
                found.append(TracedDocument(row, part.document, component, epoch, *place))
        return found

    def epochs(self, row: int, context: int) -> float:
        """How often the most repeated component has been read after `row` rows."""
        return max(self.mixture.rows_before(c, row) / self._plan(c, 0, context).rows for c in self.mixture.components)

    def _weights(self) -> dict[Component, float]:
        asked = self.settings.mixture
        for name in asked:
            if name not in COMPONENTS:
                raise ConfigError(f"the mixture names {name!r}", did_you_mean(name, COMPONENTS))
            if name not in self.corpus.components:
                raise DataError(f"the mixture wants {name!r}, which the corpus does not have", f"it has {', '.join(self.corpus.components)}")
        if not self.tables:
            raise DataError(f"the {self.split} split has no documents", "build the corpus from more input")
        if not asked:
            return tempered(self.positions)
        weights = {c: asked[c] for c in COMPONENTS if c in asked and c in self.tables}
        if not any(weights.values()):
            raise DataError(f"the {self.split} split has nothing of what the mixture wants", f"it has {', '.join(self.tables)}")
        return weights

    def _slices(self, row: int, context: int) -> tuple[Component, int, list[Slice]]:
        component, index = self.mixture.pick(row)  # index: its row among all of its epochs
        if component in STREAMS:
            epoch, number = divmod(index, stream_rows(self.positions[component], context))
        else:
            epoch, number = self._whole_row(component, index, context)
        return component, epoch, self._plan(component, epoch, context).row(number)

    def _whole_row(self, component: Component, index: int, context: int) -> tuple[int, int]:
        """(epoch, row in it): how many rows whole documents fill differs a little from epoch to epoch, so they are counted, once."""
        with self._counting:
            starts = self._whole_starts.setdefault((component, context), [0])
            while starts[-1] <= index:
                starts.append(starts[-1] + self._plan(component, len(starts) - 1, context).rows)
        epoch = bisect_right(starts, index) - 1
        return epoch, index - starts[epoch]

    def _make_plan(self, component: Component, epoch: int, context: int) -> Plan:
        table = self.tables[component]
        rng = np.random.default_rng([self.settings.seed, 2, COMPONENTS.index(component), context, epoch])
        kind = StreamPlan if component in STREAMS else WholePlan
        return kind(table.document, table.positions, context, rng)

    def _collate(self, rows: Sequence[int], context: int) -> Batch:
        shape = (len(rows), context)
        tokens = np.full(shape, self.special_ids["<|pad|>"], np.int32)
        sense, document = np.full(shape, PADDING, np.int8), np.full(shape, PADDING, np.int32)
        block, token_loss = np.zeros(shape, np.int32), np.zeros(shape, bool)
        parts: list[Positions] = []
        isolated = False
        for number, row in enumerate(rows):
            component, epoch, slices = self._slices(row, context)
            isolated |= component not in STREAMS
            at, blocks = 0, 0
            for count, part in enumerate(slices):
                piece = self._piece(component, epoch, part)
                end = at + len(piece)
                tokens[number, at:end], sense[number, at:end], document[number, at:end] = piece.tokens, piece.sense, count
                block[number, at:end] = np.where(piece.block > 0, piece.block + blocks, 0)
                token_loss[number, at:end] = piece.token_loss
                blocks = int(block[number, at:end].max(initial=blocks))
                at = end
                if piece.units:
                    parts.append(piece)
        token_loss[:, 0] = False  # nothing stands before it that could predict it
        names = [s for s in self.specs.present() if any(s in p.units for p in parts)]
        return Batch(
            tokens=tokens,
            sense=sense,
            document=document,
            block=block,
            token_loss=token_loss,
            units={s: np.concatenate([p.units[s] for p in parts if s in p.units]) for s in names},
            grid={s: np.concatenate([p.grid[s] for p in parts if s in p.grid]) for s in names},
            unit_loss={s: np.concatenate([p.unit_loss[s] for p in parts if s in p.unit_loss]) for s in names},
            isolated=isolated,
        )

    def _piece(self, component: Component, epoch: int, part: Slice) -> Positions:
        """A slice of a document as positions."""
        segments = self.corpus.segments(part.document)
        if component in STREAMS and len(segments) == 1:
            return self._text_piece(component, epoch, part, segments[0].value)
        rng = np.random.default_rng([self.settings.seed, 3, epoch, part.document])
        whole = assemble(segments, self.specs, self.special_ids, rng, self.settings.packing)
        return cut_piece(whole, part.start, part.end, self.special_ids)

    def _text_piece(self, component: Component, epoch: int, part: Slice, ids: np.ndarray) -> Positions:
        """The fast path: tokens copied straight from the mapped shard, `<|endoftext|>` at both ends of the document."""
        length = part.end - part.start
        tokens = np.empty(length, np.int32)
        low, high = max(part.start - 1, 0), min(part.end - 1, len(ids))
        begins, ends = part.start == 0, part.end == len(ids) + 2
        inner = slice(int(begins), length - int(ends))
        tokens[inner] = ids[low:high]
        wanted = np.ones(length, bool)
        if begins:
            tokens[0] = self.special_ids["<|endoftext|>"]
            wanted[0] = False
        if ends:
            tokens[-1] = self.special_ids["<|endoftext|>"]
        share = self.settings.packing.fim_code if component == "code" else self.settings.packing.fim_text
        if share and high - low >= SHORTEST_FIM:
            rng = np.random.default_rng([self.settings.seed, 4, epoch, part.document, part.start])
            if rng.random() < share:
                tokens[inner] = fill_in_middle(tokens[inner], self.special_ids, rng)
        zeros = np.zeros(length, np.int8)
        return Positions(tokens, zeros, zeros, wanted)
