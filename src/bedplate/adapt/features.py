"""Features: vectors for things of any sense, from the frozen model, without labels.

A document's vector is the mean over its own positions of the mean of the last layers' normalised streams (AIM found mid and late layers best).
A picture that is only looked at is one block: its patches see each other both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int

from bedplate.adapt.encode import collate
from bedplate.data.corpus_format import StoredSegment
from bedplate.data.packing import PackingSettings, assemble, cut_positions
from bedplate.modality.sequence import Batch
from bedplate.modality.sequence import Sequence as Positions
from bedplate.modality.specs import SENSES
from bedplate.model.batch import to_torch
from bedplate.model.foundation import FoundationModel

LOOK = PackingSettings(fim_text=0, fim_code=0, known_share=1, caption_first=0, caption_drop=0)


def look_at(model: FoundationModel, segments: Sequence[StoredSegment]) -> Positions:
    """A document assembled to be looked at: nothing is a target, pictures and frames are whole blocks."""
    positions = assemble(segments, model.config.senses, model.config.special_ids, np.random.default_rng(0), LOOK)
    for sense in ("image", "video"):
        if sense in positions.units:
            here = positions.sense == SENSES.index(sense)
            frames = positions.grid[sense][:, 0] if sense == "video" else np.zeros(here.sum(), np.int64)
            positions.block[here] = 1 + frames
    nothing = {sense: np.zeros_like(wanted) for sense, wanted in positions.unit_loss.items()}
    return replace(positions, token_loss=np.zeros_like(positions.token_loss), unit_loss=nothing)


def pooled(model: FoundationModel, batch: Batch, layers: int) -> Float[torch.Tensor, "b d"]:
    """Mean feature of each row: over its units where it has any, else over its tokens. Differentiable.

    Args:
        model: any.
        batch: from `collate`, numpy.
        layers: how many of the last layers' streams are averaged.
    """
    moved = to_torch(batch, model.head.device)
    return pool(model.hidden(moved, layers), moved.sense)


def pool(hidden: Float[torch.Tensor, "b t d"], sense: Int[torch.Tensor, "b t"]) -> Float[torch.Tensor, "b d"]:
    """A vector a sequence: the mean over its units, or its tokens where it has none.

    Args:
        hidden: a state for each position.
        sense: of each position, as in `Sequence`.
    """
    units, tokens = (sense > 0).float(), (sense == 0).float()
    weight = torch.where(units.sum(1, keepdim=True) > 0, units, tokens)[..., None]
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


@torch.inference_mode()
def features(
    model: FoundationModel, documents: Sequence[Sequence[StoredSegment]], layers: int | None = None, rows: int = 64
) -> Float[np.ndarray, "n d"]:
    """Vectors of documents.

    Args:
        model: frozen.
        documents: the segments of each.
        layers: how many of the last layers; None: the upper half.
        rows: documents at once.
    """
    chosen = layers or max(1, model.config.num_hidden_layers // 2)
    parts = []
    limit = model.config.max_position_embeddings
    for start in range(0, len(documents), rows):
        sequences = [_cropped(look_at(model, one), limit) for one in documents[start : start + rows]]
        parts.append(pooled(model, collate(sequences, model.config.special_ids["<|pad|>"]), chosen).float().cpu().numpy())
    return np.concatenate(parts)


def _cropped(positions: Positions, longest: int) -> Positions:
    return cut_positions(positions, 0, min(len(positions), longest))
