"""Weights as trunk.cpp reads them: matrices and low-rank changes in panels of 16 outputs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bedplate.infer.cpu.structs import FLOAT32, INT8, LANES, LowRank, Matrix, at
from bedplate.model.projection import Adapter, Projection

Precision = Literal["float32", "int8"]
"""Of stored weights. int8: activations are rounded too, a scale for each row and group of inputs."""
GROUP = 64
"""Inputs that share a scale. SmolLM2-135M, perplexity against float32: 64: +0.6%, 192: +1.3%, a whole row: +3.7% (docs/journal.md)."""


class Packer:
    """Packs, and keeps what was packed in memory as long as it lives."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.kept: list[np.ndarray[Any, Any]] = []
        self.bytes = 0

    def keep(self, array: np.ndarray[Any, Any]) -> int | None:
        """Where a copy of an array lies that lives as long as this."""
        self.kept.append(np.ascontiguousarray(array))
        self.bytes += array.nbytes
        return at(self.kept[-1])

    def vector(self, values: Tensor | None, room: int = 0) -> int | None:
        """A vector of float32, filled up with zeros; None stays None."""
        if values is None:
            return None
        plain = values.detach().float().cpu().numpy()
        return self.keep(np.pad(plain, (0, max(0, room - len(plain)))))

    def matrix(self, weight: Float[Tensor, "o i"], bias: Tensor | None, precision: Precision) -> Matrix:
        """A matrix; in float32 where its inputs cannot be grouped."""
        outputs, inputs = weight.shape
        plain = np.ascontiguousarray(weight.detach().float().cpu().numpy())
        rows = -(-outputs // LANES) * LANES
        group = next((g for g in range(min(GROUP, inputs), 3, -1) if inputs % g == 0 and g % 4 == 0), 0)
        if precision == "int8" and group:
            data, scale = np.empty(rows * inputs, np.uint8), np.empty(rows, np.float32)
            self.library.pack_bytes(ctypes.c_void_p(at(plain)), outputs, inputs, ctypes.c_void_p(self.keep(data)), ctypes.c_void_p(self.keep(scale)))
            return Matrix(at(self.kept[-2]), at(self.kept[-1]), self.vector(bias, rows), INT8, outputs, inputs, group)
        data = np.empty(rows * inputs, np.float32)
        self.library.pack_float(ctypes.c_void_p(at(plain)), outputs, inputs, ctypes.c_void_p(self.keep(data)))
        return Matrix(at(self.kept[-1]), None, self.vector(bias, rows), FLOAT32, outputs, inputs, inputs)

    def side_by_side(self, projections: Sequence[Projection], precision: Precision) -> Matrix:
        """Projections of one input as one matrix."""
        biases = [torch.zeros(p.out_features) if p.bias is None else p.bias for p in projections]
        bias = None if all(p.bias is None for p in projections) else torch.cat([b.detach().float() for b in biases])
        return self.matrix(torch.cat([p.matrix(torch.float32) for p in projections]), bias, precision)

    def low_rank(self, projections: Sequence[Projection], adapters: Sequence[Adapter | None]) -> LowRank:
        """What one adapter changes of projections side by side."""
        ranks = sum(a.rank for a in adapters if a is not None)
        if not ranks:
            return LowRank()
        padded, outputs = -(-ranks // LANES) * LANES, sum(p.out_features for p in projections)
        panels = -(-outputs // LANES)
        down = torch.zeros(padded, projections[0].in_features)
        up = torch.zeros(panels * LANES, padded)
        gain = torch.ones(panels * LANES)
        spans = np.full((panels, 2), (padded, 0), np.int32)  # first and last rank of each panel
        row = rank = 0
        for projection, adapter in zip(projections, adapters):
            end = row + projection.out_features
            if adapter is not None:
                down[rank : rank + adapter.rank] = adapter.A.detach()
                up[row:end, rank : rank + adapter.rank] = adapter.B.detach() * adapter.scale
                if adapter.magnitude is not None:
                    gain[row:end] = adapter.magnitude.detach() / adapter.direction_norm(projection.matrix(torch.float32))
                touched = spans[row // LANES : -(-end // LANES)]
                touched[:, 0] = np.minimum(touched[:, 0], rank)
                touched[:, 1] = np.maximum(touched[:, 1], rank + adapter.rank)
                rank += adapter.rank
            row = end
        first, count = np.where(spans[:, 1] > 0, spans[:, 0], 0).astype(np.int32), np.maximum(spans[:, 1] - spans[:, 0], 0).astype(np.int32)
        parts = [up[LANES * p : LANES * (p + 1), first[p] : first[p] + count[p]].t().reshape(-1) for p in range(panels)]
        start = (np.cumsum(count) - count).astype(np.int32)
        packed = np.empty(down.numel(), np.uint16)
        plain = down.contiguous().numpy()
        self.library.pack_bfloat(ctypes.c_void_p(at(plain)), padded, down.shape[1], ctypes.c_void_p(self.keep(packed)))
        changed_length = any(a is not None and a.magnitude is not None for a in adapters)
        return LowRank(
            at(self.kept[-1]),
            self.keep(torch.cat(parts).to(torch.bfloat16).view(torch.int16).numpy()),
            self.keep(start),
            self.keep(first),
            self.keep(count),
            self.vector(gain) if changed_length else None,
            padded,
        )
