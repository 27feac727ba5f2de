"""One sequence: every sense becomes positions for one trunk.

A position is a token (text, code, marks) or a unit (a patch of a continuous sense). Convention everywhere: the thing AT position i is
predicted from the hidden state at i-1, so `token_loss[i]` and `unit_loss` say whether the thing itself is a target.

    document   <|endoftext|>  a  cat  <|image|>  U U U U ... U  <|/image|>  <|endoftext|>

Legend: b batch (rows), t positions in a row, n units of one sense in the batch, p values in a unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from bedplate.modality.specs import ContinuousSense

PADDING = -1
"""`Batch.sense` at positions that hold nothing."""

SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",  # starts and ends every document
    "<|pad|>",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<|im_start|>",  # chat, ChatML as Qwen and SmolLM write it
    "<|im_end|>",
    "<|image|>",
    "<|/image|>",
    "<|audio|>",
    "<|/audio|>",
    "<|video|>",
    "<|/video|>",
    "<|series|>",
    "<|/series|>",
    "<|mask|>",  # personal data or a secret that was taken out
)
"""The first ids of every tokenizer trained here, in this order. A model's config keeps its own name -> id table."""


@dataclass
class Sequence:
    """One document (or a piece of one) as positions. `units`, `grid` and `unit_loss` list a sense's units in order of position."""

    tokens: Int[np.ndarray, "t"]
    """Token id at each position; the id of <|pad|> where a unit stands."""
    sense: Int[np.ndarray, "t"]
    """0 where a token stands, the index in SENSES where a unit stands."""
    block: Int[np.ndarray, "t"]
    """Positions with the same number > 0 see each other both ways (the known part of a picture or a video frame); 0: causal only."""
    token_loss: Bool[np.ndarray, "t"]
    units: dict[ContinuousSense, Float[np.ndarray, "n p"]] = field(default_factory=dict)
    """Normalised by the spec's affine."""
    grid: dict[ContinuousSense, Int[np.ndarray, "n 3"]] = field(default_factory=dict)
    """(frame, row, column) of each unit; audio and series count along the first."""
    unit_loss: dict[ContinuousSense, Bool[np.ndarray, "n"]] = field(default_factory=dict)
    left_out: int = 0
    """Positions that did not fit and were cut out of it."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class Batch:
    """Rows of packed sequences: numpy from the loader, torch after `model.batch.to_torch`. Units are listed in order of (row, position)."""

    tokens: Int[Any, "b t"]
    sense: Int[Any, "b t"]
    """As in Sequence; PADDING where there is nothing."""
    document: Int[Any, "b t"]
    """Number of the document within its row; attention never crosses it when `isolated`. PADDING where there is nothing."""
    block: Int[Any, "b t"]
    token_loss: Bool[Any, "b t"]
    units: dict[ContinuousSense, Float[Any, "n p"]]
    grid: dict[ContinuousSense, Int[Any, "n 3"]]
    unit_loss: dict[ContinuousSense, Bool[Any, "n"]]
    isolated: bool = False
    """Whether attention must stay inside documents. False for pure text rows: plain causal attention, the fast kernel."""
