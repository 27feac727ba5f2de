"""Packing: a stored document as a sequence of positions, with what is given and what is to be predicted; and pieces of a sequence.

What is random here (which of a pair comes first, how much of a picture is given, whether a middle is filled in) is drawn from a generator
that the loader makes from (seed, epoch, document).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from bedplate.core.errors import ConfigError
from bedplate.data.corpus_format import StoredSegment
from bedplate.data.rows import MARKS
from bedplate.modality.senses import HANDLERS
from bedplate.modality.sequence import Sequence as Positions
from bedplate.modality.specs import CONTINUOUS, SENSES, ContinuousSense, SenseSpecs
from bedplate.modality.units import Units


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
    cuts = [None if s.sense == "text" else HANDLERS[s.sense].cut(s.value, getattr(specs, s.sense)) for s in segments]
    builder = _Builder(2 + sum(len(s.value) if cut is None else len(cut.values) + MARKS for s, cut in zip(segments, cuts)), special_ids)
    builder.token("<|endoftext|>", target=False)
    for segment, cut in zip(segments, cuts):
        if segment.sense == "text" or cut is None:
            builder.text(segment.value)
        else:
            builder.units(segment.sense, cut, *_known(segment.sense, cut.grid, rng, settings, looked_at))
    builder.token("<|endoftext|>", target=segments[-1].sense == "text")
    return builder.finish()


def _known(
    sense: ContinuousSense, grid: np.ndarray, rng: np.random.Generator, settings: PackingSettings, looked_at: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(block of each unit, whether it is a target): a picture's or a frame's first k units are given and see each other both ways."""
    count = len(grid)
    blocks, wanted = np.zeros(count, np.int32), np.ones(count, bool)
    if sense not in ("image", "video") or not (looked_at or rng.random() < settings.known_share):
        return blocks, wanted
    frame = grid[:, 0].astype(np.int32)
    frames = int(frame[-1]) + 1
    each = count // frames
    known = each if looked_at else rng.integers(1, max(2, each), frames)[frame]
    given = np.arange(count) - frame * each < known
    blocks[given] = frame[given] + 1
    wanted[given] = False
    return blocks, wanted


def fill_in_middle(tokens: Int[np.ndarray, "t"], special_ids: Mapping[str, int], rng: np.random.Generator) -> Int[np.ndarray, "t"]:
    """Prefix, suffix, then the middle, in as many positions as before: the three marks cost the last three tokens.

    Source: Bavarian et al. (arXiv 2207.14255), prefix-suffix-middle order.
    """
    kept = tokens[:-3]
    first, second = np.sort(rng.integers(0, len(kept) + 1, 2))
    mark = [np.array([special_ids[name]], tokens.dtype) for name in ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")]
    return np.concatenate([mark[0], kept[:first], mark[1], kept[second:], mark[2], kept[first:second]])


def cut_positions(whole: Positions, start: int, end: int) -> Positions:
    """Positions start..end of a sequence, with the units that stand there."""
    if start == 0 and end >= len(whole):
        return whole
    here = slice(start, min(end, len(whole)))
    kept: dict[ContinuousSense, slice] = {}
    for name in whole.units:
        standing = whole.sense == SENSES.index(name)
        first, count = int(standing[:start].sum()), int(standing[here].sum())
        if count:
            kept[name] = slice(first, first + count)
    return Positions(
        tokens=whole.tokens[here],
        sense=whole.sense[here],
        block=whole.block[here],
        token_loss=whole.token_loss[here],
        units={name: whole.units[name][part] for name, part in kept.items()},
        grid={name: whole.grid[name][part] for name, part in kept.items()},
        unit_loss={name: whole.unit_loss[name][part] for name, part in kept.items()},
    )


def cut_piece(whole: Positions, start: int, end: int, special_ids: Mapping[str, int]) -> Positions:
    """Positions start..end that stand on their own: units that lost a mark get one again, so at most MARKS positions more.

    A token that lost what stood before it is no target. Nor is a last unit that others followed: a mark stands behind it, but nothing ends.
    """
    piece = cut_positions(whole, start, end)
    if piece is whole or not len(piece):
        return piece
    opened, closed = int(piece.sense[0]), int(piece.sense[-1])
    unit_loss = dict(piece.unit_loss)
    if closed and end < len(whole) and int(whole.sense[end]) == closed:
        name = CONTINUOUS[closed - 1]
        unit_loss[name] = unit_loss[name].copy()
        unit_loss[name][-1] = False
    before = [special_ids[f"<|{SENSES[opened]}|>"]] if opened else []
    behind = [special_ids[f"<|/{SENSES[closed]}|>"]] if closed else []
    padding = (len(before), len(behind))
    token_loss = np.pad(piece.token_loss, padding)
    token_loss[0] = False
    return replace(
        piece,
        tokens=np.concatenate([before, piece.tokens, behind]).astype(np.int32),
        sense=np.pad(piece.sense, padding),
        block=np.pad(piece.block, padding),
        token_loss=token_loss,
        unit_loss=unit_loss,
    )


class _Builder:
    """Fills positions in."""

    def __init__(self, length: int, special_ids: Mapping[str, int]) -> None:
        self.special = special_ids
        self.tokens = np.full(length, special_ids["<|pad|>"], np.int32)
        self.sense, self.block, self.token_loss = np.zeros(length, np.int8), np.zeros(length, np.int32), np.zeros(length, bool)
        self.collected: dict[ContinuousSense, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        self.at = self.blocks = 0

    def token(self, name: str, target: bool) -> None:
        self.tokens[self.at] = self.special[name]
        self.token_loss[self.at] = target
        self.at += 1

    def text(self, ids: np.ndarray) -> None:
        here = slice(self.at, self.at + len(ids))
        self.tokens[here] = ids
        self.token_loss[here] = True
        self.at = here.stop

    def units(self, sense: ContinuousSense, cut: Units, blocks: np.ndarray, wanted: np.ndarray) -> None:
        # The mark before units is a target where something was said before it: it tells when the telling ends. The closing mark is not:
        # where units end is what the `end` head learns.
        self.token(f"<|{sense}|>", target=self.at > 1)
        here = slice(self.at, self.at + len(blocks))
        self.sense[here] = SENSES.index(sense)
        self.block[here] = np.where(blocks > 0, blocks + self.blocks, 0)
        self.blocks += int(blocks.max(initial=0))
        self.at = here.stop
        self.collected.setdefault(sense, []).append((cut.values, cut.grid, wanted))
        self.token(f"<|/{sense}|>", target=False)

    def finish(self) -> Positions:
        units, grid, unit_loss = (
            {sense: parts[0][column] if len(parts) == 1 else np.concatenate([part[column] for part in parts]) for sense, parts in self.collected.items()}
            for column in range(3)
        )
        return Positions(self.tokens, self.sense, self.block, self.token_loss, units, grid, unit_loss)
