"""Packing: stored documents to sequences, and sequences to rows of a fixed number of positions.

Text and code are a stream: documents in shuffled order, cut into rows wherever a row ends. Other components stay whole: as many documents as
fit, then padding; only what is longer than a row goes on in the next one. Plans are pure functions of the lengths and the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bedplate.core.errors import ConfigError
from bedplate.data.corpus_format import StoredSegment
from bedplate.modality.senses import HANDLERS
from bedplate.modality.sequence import Sequence as Positions
from bedplate.modality.specs import SENSES, ContinuousSense, SenseSpecs


@dataclass(frozen=True)
class PackingSettings:
    """How documents become positions and targets."""

    fim_text: float = 0.05
    """Share of text pieces that are learned by filling in their middle."""
    fim_code: float = 0.3
    """The same for code."""
    known_share: float = 0.5
    """Share of pictures (and clips) of which a first part is given and only the rest predicted; of the others everything is."""
    caption_first: float = 0.7
    """Share of pairs in which the text stands first and the other sense is made from it; in the rest it is looked at, then described."""
    caption_drop: float = 0.1
    """Share of the former that lose their text, so that generation can be guided away from the uncaptioned."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.packing.{name} = {getattr(self, name)} is not a share", "give it a number from 0 to 1")


class Slice(NamedTuple):
    """Part of a document in a row: positions start..end of the document as it is assembled."""

    document: int
    start: int
    end: int


class Plan:
    """The rows of one component in one epoch."""

    def __init__(
        self, documents: Int[np.ndarray, "d"], lengths: Int[np.ndarray, "d"], context: int, whole: bool, rng: np.random.Generator | None = None
    ) -> None:
        """Lay documents out.

        Args:
            documents: numbers in their order.
            lengths: positions of each.
            context: positions in a row.
            whole: keep those together that fit a row.
            rng: shuffles the rows, so that a step does not read neighbouring parts of one long document.
        """
        self.documents, self.lengths, self.context = documents, lengths, context
        self.starts = _aligned_starts(lengths, context) if whole else np.concatenate([[0], np.cumsum(lengths.astype(np.int64))])
        self.rows = int(-(-self.starts[-1] // context))
        self.order = np.arange(self.rows) if rng is None else rng.permutation(self.rows)

    def row(self, row: int) -> list[Slice]:
        """What a row holds, in order."""
        begin = int(self.order[row]) * self.context
        end = begin + self.context
        first = int(np.searchsorted(self.starts, begin, "right")) - 1
        parts = []
        for index in range(max(first, 0), len(self.documents)):
            at = int(self.starts[index])
            if at >= end:
                break
            low, high = max(begin - at, 0), min(end - at, int(self.lengths[index]))
            if low < high:
                parts.append(Slice(int(self.documents[index]), low, high))
        return parts


def _aligned_starts(lengths: Int[np.ndarray, "d"], context: int) -> Int[np.ndarray, "d+1"]:
    """Next-fit: where each document starts so that none that fits a row crosses a row's end; last, where everything ends."""
    starts = np.empty(len(lengths) + 1, np.int64)
    at = 0
    for index, length in enumerate(lengths.tolist()):
        left = context - at % context
        if length > left and left < context:
            at += left
        starts[index] = at
        at += length
    starts[-1] = at
    return starts


def assemble(
    segments: Sequence[StoredSegment], specs: SenseSpecs, special_ids: Mapping[str, int], rng: np.random.Generator, settings: PackingSettings
) -> Positions:
    """A document as positions with their targets.

    Args:
        segments: as stored.
        specs: what a unit of each sense is.
        special_ids: name -> id.
        rng: decides order, what is given and what is dropped.
        settings: the shares.
    """
    kinds = [segment.sense for segment in segments]
    pair = len(segments) == 2 and kinds[0] == "text" and kinds[1] != "text" and kinds[1] != "series"
    looked_at = False
    if pair and rng.random() < settings.caption_first:
        segments = segments[1:] if rng.random() < settings.caption_drop else segments
    elif pair:
        segments, looked_at = [segments[1], segments[0]], True
    builder = _Builder(special_ids)
    builder.token("<|endoftext|>", target=False)
    for segment in segments:
        if segment.sense == "text":
            builder.text(segment.value)
        else:
            spec = getattr(specs, segment.sense)
            values, grid = HANDLERS[segment.sense].cut(segment.value, spec)
            blocks, wanted = _known(segment.sense, grid, rng, settings, looked_at)
            builder.units(segment.sense, values, grid, blocks, wanted)
    builder.token("<|endoftext|>", target=segments[-1].sense == "text")
    return builder.finish()


def _known(
    sense: ContinuousSense, grid: np.ndarray, rng: np.random.Generator, settings: PackingSettings, looked_at: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(block of each unit, whether it is a target): a picture's or a frame's first k units are given and see each other both ways."""
    count = len(grid)
    blocks, wanted = np.zeros(count, np.int32), np.ones(count, bool)
    if sense not in ("image", "video"):
        return blocks, wanted
    some_known = looked_at or rng.random() < settings.known_share
    if not some_known:
        return blocks, wanted
    for frame in np.unique(grid[:, 0]):
        here = np.flatnonzero(grid[:, 0] == frame)
        known = len(here) if looked_at else int(rng.integers(1, max(2, len(here))))
        blocks[here[:known]] = frame + 1
        wanted[here[:known]] = False
    return blocks, wanted


def fill_in_middle(tokens: Int[np.ndarray, "t"], special_ids: Mapping[str, int], rng: np.random.Generator) -> Int[np.ndarray, "t"]:
    """Prefix, suffix, then the middle, in as many positions as before: the three marks cost the last three tokens.

    Source: Bavarian et al. (arXiv 2207.14255), prefix-suffix-middle order.
    """
    kept = tokens[:-3]
    first, second = np.sort(rng.integers(0, len(kept) + 1, 2))
    mark = [np.array([special_ids[name]], tokens.dtype) for name in ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")]
    return np.concatenate([mark[0], kept[:first], mark[1], kept[second:], mark[2], kept[first:second]])


class _Builder:
    """Collects positions."""

    def __init__(self, special_ids: Mapping[str, int]) -> None:
        self.special = special_ids
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self.collected: dict[ContinuousSense, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        self.blocks = 0

    def token(self, name: str, target: bool) -> None:
        self._add(np.array([self.special[name]]), 0, np.zeros(1, np.int32), np.array([target]))

    def text(self, ids: np.ndarray) -> None:
        self._add(ids.astype(np.int32), 0, np.zeros(len(ids), np.int32), np.ones(len(ids), bool))

    def units(self, sense: ContinuousSense, values: np.ndarray, grid: np.ndarray, blocks: np.ndarray, wanted: np.ndarray) -> None:
        # The mark before units is a target where something was said before it: it tells when the telling ends. The closing mark is not:
        # where units end is what the `end` head learns.
        self.token(f"<|{sense}|>", target=len(self.parts) > 1)
        shifted = np.where(blocks > 0, blocks + self.blocks, 0).astype(np.int32)
        self.blocks = max(self.blocks, int(shifted.max(initial=0)))
        self._add(np.full(len(values), self.special["<|pad|>"]), SENSES.index(sense), shifted, np.zeros(len(values), bool))
        self.collected.setdefault(sense, []).append((values, grid, wanted))
        self.token(f"<|/{sense}|>", target=False)

    def finish(self) -> Positions:
        columns = [np.concatenate(column) for column in zip(*self.parts)]
        joined = {sense: [np.concatenate(column) for column in zip(*parts)] for sense, parts in self.collected.items()}
        return Positions(
            tokens=columns[0].astype(np.int32),
            sense=columns[1].astype(np.int8),
            block=columns[2],
            token_loss=columns[3],
            units={sense: parts[0] for sense, parts in joined.items()},
            grid={sense: parts[1] for sense, parts in joined.items()},
            unit_loss={sense: parts[2] for sense, parts in joined.items()},
        )

    def _add(self, tokens: np.ndarray, sense: int, blocks: np.ndarray, wanted: np.ndarray) -> None:
        self.parts.append((tokens, np.full(len(tokens), sense, np.int8), blocks, wanted))
