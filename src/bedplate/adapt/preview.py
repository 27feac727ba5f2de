"""Preview: what the model really sees of an example, with the positions that carry loss marked."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import numpy as np

from bedplate.adapt.base import Base
from bedplate.adapt.encode import Item
from bedplate.modality.sequence import Sequence as Positions
from bedplate.modality.specs import SENSES

OPEN, CLOSE = "⟦", "⟧"
"""Stand around what carries loss."""


class Stretch(NamedTuple):
    """Neighbouring positions of one kind."""

    text: str
    """The tokens written out, special ones by name; or how many units of which sense."""
    loss: bool
    positions: int


def stretches(positions: Positions, base: Base) -> list[Stretch]:
    """A sequence in words."""
    kinds = list(zip(positions.sense.tolist(), positions.token_loss.tolist()))
    found, at = [], 0
    for (sense, loss), members in groupby(kinds):
        end = at + len(list(members))
        text = f"[{end - at} units of {SENSES[sense]}]" if sense else base.decode(np.asarray(positions.tokens[at:end]))
        found.append(Stretch(text, bool(loss), end - at))
        at = end
    return found


def written(positions: Positions, base: Base) -> str:
    """A sequence as text; what carries loss stands in ⟦ ⟧."""
    return "".join(f"{OPEN}{part.text}{CLOSE}" if part.loss else part.text for part in stretches(positions, base))


def preview(item: Item, base: Base, target: str = "") -> str:
    """An example as text; what carries loss stands in ⟦ ⟧.

    Args:
        item: the example.
        base: writes its tokens out.
        target: what the head should say of it, in words.
    """
    lines = []
    for positions in item.sequences:
        cut = f"; {positions.left_out:,} more did not fit and were cut out" if positions.left_out else ""
        lines.append(f"row {item.row}: {len(positions)} positions, {int(positions.token_loss.sum())} carry loss{cut}\n{written(positions, base)}")
    if target:
        lines.append(f"the head learns: {OPEN}{target}{CLOSE}")
    return "\n".join(lines)
