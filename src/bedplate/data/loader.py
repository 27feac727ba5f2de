"""Loader: rows of a corpus as batches. Everything is a pure function of (seed, row, context): no state, nothing to save, nothing to replay.

    corpus tables --shuffle(seed, epoch)--> Plan --row--> Slices --assemble--> positions --> Batch
    global row --Mixture--> component and its row --> epoch and row within it

A context warm-up changes `context` and counts rows in the new width from the same number of positions on (pretrain/schedule.py). Rows of
another width are shuffled anew, so what an earlier stage saw comes again only as often as chance has it. With several processes each takes
its part of a step's rows; the loader need not know.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bedplate.core.errors import DataError
from bedplate.data.corpus import Corpus, Split
from bedplate.data.document import COMPONENTS, Component
from bedplate.data.mixture import Mixture, tempered
from bedplate.data.packing import PackingSettings, Plan, Slice, assemble, fill_in_middle
from bedplate.modality.sequence import PADDING, Batch
from bedplate.modality.sequence import Sequence as Positions
from bedplate.modality.specs import SENSES

STREAMS: tuple[Component, ...] = ("text", "code")
"""Components that are cut into rows wherever a row ends."""

SHORTEST_FIM = 16


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
    """Batches of a corpus's split."""

    def __init__(self, corpus: Corpus, settings: LoaderSettings, split: Split = "train") -> None:
        self.corpus, self.settings, self.split = corpus, settings, split
        self.special_ids, self.specs = corpus.special_ids, corpus.specs
        self.tables = {c: table for c in corpus.components if len((table := corpus.table(c, split)).document)}
        self.positions = {c: int(table.positions.sum()) for c, table in self.tables.items()}
        wanted = {c: settings.mixture[c] for c in COMPONENTS if c in settings.mixture and c in self.tables}
        foreign = [name for name in settings.mixture if name not in corpus.components]
        if foreign:
            raise DataError(f"the mixture wants {foreign[0]!r}, which the corpus does not have", f"it has {', '.join(corpus.components)}")
        if not self.tables:
            raise DataError(f"the {split} split has no documents", "build the corpus from more input")
        self.mixture = Mixture(wanted or tempered(self.positions), settings.seed)
        self._plan = functools.lru_cache(maxsize=64)(self._make_plan)

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

    def _slices(self, row: int, context: int) -> tuple[Component, int, list[Slice]]:
        component, index = self.mixture.pick(row)  # index: its row among all of its epochs
        epoch = 0
        while index >= (plan := self._plan(component, epoch, context)).rows:
            index -= plan.rows
            epoch += 1
        return component, epoch, plan.row(index)

    def _make_plan(self, component: Component, epoch: int, context: int) -> Plan:
        table = self.tables[component]
        rng = np.random.default_rng([self.settings.seed, 2, COMPONENTS.index(component), epoch])
        order = rng.permutation(len(table.document))
        stream = component in STREAMS
        return Plan(table.document[order], table.positions[order], context, whole=not stream, rng=rng if stream else None)

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
        return cut_positions(assemble(segments, self.specs, self.special_ids, rng, self.settings.packing), part.start, part.end)

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


def cut_positions(whole: Positions, start: int, end: int) -> Positions:
    """Positions start..end of a sequence with the units that stand there. A first position that lost what stood before it is no target."""
    if start == 0 and end >= len(whole):
        return whole
    here = slice(start, min(end, len(whole)))
    sense, token_loss = whole.sense[here], whole.token_loss[here].copy()
    token_loss[:1] = False
    kept: dict[str, slice] = {}
    unit_loss = {}
    for name in whole.units:
        number = SENSES.index(name)
        first = int((whole.sense[: here.start] == number).sum())
        kept[name] = slice(first, first + int((sense == number).sum()))
        unit_loss[name] = whole.unit_loss[name][kept[name]].copy()
        if len(sense) and sense[0] == number:
            unit_loss[name][:1] = False
    present = [name for name in whole.units if kept[name].stop > kept[name].start]
    return Positions(
        tokens=whole.tokens[here],
        sense=sense,
        block=whole.block[here],
        token_loss=token_loss,
        units={name: whole.units[name][kept[name]] for name in present},
        grid={name: whole.grid[name][kept[name]] for name in present},
        unit_loss={name: unit_loss[name] for name in present},
    )
