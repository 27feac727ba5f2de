"""Batches as tensors: what the loader gives in numpy, where the network wants it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bedplate.modality.sequence import Batch


def to_torch(batch: Batch, device: str | torch.device = "cpu") -> Batch:
    """The same batch as tensors: token ids and places as int64, units as float32.

    Args:
        batch: numpy.
        device: where to.
    """

    def move(array: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device=device, dtype=dtype, non_blocking=True)

    return Batch(
        tokens=move(batch.tokens, torch.int64),
        sense=move(batch.sense, torch.int8),
        document=move(batch.document, torch.int32),
        block=move(batch.block, torch.int32),
        token_loss=move(batch.token_loss, torch.bool),
        units={name: move(value, torch.float32) for name, value in batch.units.items()},
        grid={name: move(value, torch.int64) for name, value in batch.grid.items()},
        unit_loss={name: move(value, torch.bool) for name, value in batch.unit_loss.items()},
        isolated=batch.isolated,
    )
