"""Encoding: words, files and conversations as positions for the trunk, each knowing whether it carries loss.

    Tokens(ids, loss) and Segments --compose--> Positions --shorten--> at most so many --> Item

An Item is what every task learns from: one or several sequences, and what the head should say of them where a head says something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from bedplate.data.document import Segment
from bedplate.modality.senses import HANDLERS
from bedplate.modality.sequence import PADDING, Batch
from bedplate.modality.sequence import Sequence as Positions
from bedplate.modality.specs import CONTINUOUS, SENSES
from bedplate.model.config import ModelConfig

KEPT_AROUND = 16
"""Positions that stay at each end of a stretch that loses its middle."""


class Tokens(NamedTuple):
    """A stretch of tokens."""

    ids: Int[np.ndarray, "n"]
    loss: Bool[np.ndarray, "n"]
    """Which of them the network learns to say."""


@dataclass(frozen=True)
class Item:
    """An encoded example."""

    row: int
    sequences: tuple[Positions, ...]
    target: Float[np.ndarray, "k"]
    """What the head should say; empty where the marked tokens are all there is to learn."""
    weight: float
    """Its share in the mean that is minimised: its loss-carrying tokens, or the weight of its label."""

    @property
    def length(self) -> int:
        """Positions of the longest sequence."""
        return max(map(len, self.sequences))

    @property
    def positions(self) -> int:
        """Positions of all its sequences."""
        return sum(map(len, self.sequences))


def said(ids: Sequence[int] | np.ndarray, loss: bool) -> Tokens:
    """A stretch that carries loss everywhere or nowhere."""
    return Tokens(np.asarray(ids, np.int32), np.full(len(ids), loss))


def compose(parts: Sequence[Tokens | Segment], config: ModelConfig) -> Positions:
    """Parts in their order as one sequence. Units are looked at: none is a target, and those of a picture or a frame see each other both ways."""
    tokens: list[np.ndarray] = []
    sense: list[np.ndarray] = []
    block: list[np.ndarray] = []
    loss: list[np.ndarray] = []
    units: dict[str, list[np.ndarray]] = {}
    grid: dict[str, list[np.ndarray]] = {}
    blocks = 0
    for part in parts:
        if isinstance(part, Tokens):
            tokens.append(part.ids)
            sense.append(np.zeros(len(part.ids), np.int8))
            block.append(np.zeros(len(part.ids), np.int32))
            loss.append(part.loss)
            continue
        assert not isinstance(part.value, str) and part.sense != "text"
        cut = HANDLERS[part.sense].cut(part.value, config.senses.present()[part.sense])
        n = len(cut.values)
        seen = 1 + blocks + cut.grid[:, 0].astype(np.int32) if part.sense in ("image", "video") else np.zeros(n, np.int32)
        blocks = int(seen.max(initial=blocks))
        marks = [config.special_ids[f"<|{part.sense}|>"], config.special_ids[f"<|/{part.sense}|>"]]
        tokens.append(np.array([marks[0], *[config.special_ids["<|pad|>"]] * n, marks[1]], np.int32))
        sense.append(np.pad(np.full(n, SENSES.index(part.sense), np.int8), 1))
        block.append(np.pad(seen, 1))
        loss.append(np.zeros(n + 2, bool))
        units.setdefault(part.sense, []).append(cut.values)
        grid.setdefault(part.sense, []).append(cut.grid)
    whole = Positions(np.concatenate(tokens).astype(np.int32), np.concatenate(sense), np.concatenate(block), np.concatenate(loss))
    whole.token_loss[:1] = False  # nothing stands before it that could predict it
    for name in (name for name in CONTINUOUS if name in units):
        whole.units[name], whole.grid[name] = np.concatenate(units[name]), np.concatenate(grid[name])
        whole.unit_loss[name] = np.zeros(len(whole.units[name]), bool)
    return whole


def shorten(whole: Positions, most: int) -> Positions:
    """At most so many positions: the longest stretch of tokens without loss loses its middle; where that is not enough, the end is cut.

    Args:
        whole: one example.
        most: positions that are kept.
    """
    excess = len(whole) - most
    if excess <= 0:
        return whole
    idle = np.flatnonzero(np.diff(np.concatenate([[0], (~whole.token_loss & (whole.sense == 0)).astype(np.int8), [0]])))
    starts, ends = idle[::2], idle[1::2]
    kept = np.ones(len(whole), bool)
    if len(starts):
        longest = int((ends - starts).argmax())
        spare = max(0, int(ends[longest] - starts[longest]) - 2 * KEPT_AROUND)
        first = int(starts[longest]) + KEPT_AROUND + max(0, spare - excess) // 2
        kept[first : first + min(excess, spare)] = False
    kept[np.flatnonzero(kept)[most:]] = False
    cut = replace(
        whole, tokens=whole.tokens[kept], sense=whole.sense[kept], block=whole.block[kept], token_loss=whole.token_loss[kept], left_out=whole.left_out + excess
    )
    for name in whole.units:
        stays = kept[whole.sense == SENSES.index(name)]
        for part, old in ((cut.units, whole.units), (cut.grid, whole.grid), (cut.unit_loss, whole.unit_loss)):
            part[name] = old[name][stays]
    return cut


def collate(sequences: Sequence[Positions], pad_id: int) -> Batch:
    """One sequence a row, padded on the right, where causal attention never looks; so plain text needs no mask.

    Args:
        sequences: any; best of like length.
        pad_id: token of the padding.
    """
    shape = (len(sequences), max(map(len, sequences)))
    tokens, sense = np.full(shape, pad_id, np.int32), np.full(shape, PADDING, np.int8)
    document, block, token_loss = np.full(shape, PADDING, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, one in enumerate(sequences):
        t = len(one)
        tokens[row, :t], sense[row, :t], document[row, :t] = one.tokens, one.sense, 0
        block[row, :t], token_loss[row, :t] = one.block, one.token_loss
    names = [s for s in CONTINUOUS if any(s in one.units for one in sequences)]
    return Batch(
        tokens=tokens,
        sense=sense,
        document=document,
        block=block,
        token_loss=token_loss,
        units={s: np.concatenate([one.units[s] for one in sequences if s in one.units]) for s in names},
        grid={s: np.concatenate([one.grid[s] for one in sequences if s in one.grid]) for s in names},
        unit_loss={s: np.concatenate([one.unit_loss[s] for one in sequences if s in one.unit_loss]) for s in names},
        isolated=bool(block.any()),
    )
