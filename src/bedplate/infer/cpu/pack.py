"""Weights as trunk.cpp reads them: matrices and low-rank changes in panels of 16 outputs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bedplate.infer.cpu.structs import FACTOR_BYTES, FLOAT32, INT4, INT8, LANES, LowRank, Matrix, at
from bedplate.model.projection import Adapter, Projection

Precision = Literal["float32", "int8", "int4"]
"""Of stored weights. int8 and int4: activations are rounded to 8 bits too, a scale for each row and group of inputs."""
GROUP = 64
"""Inputs that share a scale. SmolLM2-135M, perplexity against float32: 64: +0.6%, 192: +1.3%, a whole row: +3.7% (docs/journal.md)."""


LINE_BYTES = 64
"""Of the processor's caches: what is read together should lie in one."""


class Packer:
    """Packs, and keeps what was packed in memory as long as it lives.

    Args:
        library: the compiled trunk.
        pool: its threads; matrices need them, low-rank changes do not and may be packed meanwhile.
    """

    def __init__(self, library: ctypes.CDLL, pool: ctypes.c_void_p | None = None) -> None:
        self.library, self.pool = library, pool
        self.kept: list[np.ndarray[Any, Any]] = []
        self.bytes = 0

    def keep(self, array: np.ndarray[Any, Any]) -> int | None:
        """Where a copy of an array lies that lives as long as this."""
        self.kept.append(np.ascontiguousarray(array))
        self.bytes += array.nbytes
        return at(self.kept[-1])

    def room(self, count: int, number: type[np.generic]) -> np.ndarray[Any, Any]:
        """Zeros that live as long as this, at the beginning of a line of the processor's cache."""
        whole = np.zeros(count * np.dtype(number).itemsize + LINE_BYTES, np.uint8)
        first = -int(whole.ctypes.data) % LINE_BYTES
        made = whole[first : first + count * np.dtype(number).itemsize].view(number)
        self.kept.append(made)
        self.bytes += made.nbytes
        return made

    def vector(self, values: Tensor | None, room: int = 0) -> int | None:
        """A vector of float32, filled up with zeros; None stays None."""
        if values is None:
            return None
        plain = values.detach().float().cpu().numpy()
        return self.keep(np.pad(plain, (0, max(0, room - len(plain)))))

    def matrix(self, weight: Float[Tensor, "o i"], bias: Tensor | None, precision: Precision) -> Matrix:
        """A matrix; in int8 or float32 where its inputs cannot be grouped as the precision wants it."""
        outputs, inputs = weight.shape
        plain = np.ascontiguousarray(weight.detach().float().cpu().numpy())
        rows, bias_at = -(-outputs // LANES) * LANES, self.vector(bias, -(-outputs // LANES) * LANES)
        group = next((g for g in range(min(GROUP, inputs), 3, -1) if inputs % g == 0 and g % 4 == 0), 0)
        halves = next((g for g in range(min(GROUP, inputs), 15, -1) if inputs % g == 0 and g % 16 == 0), 0)  # two fours in a byte, in each half
        if precision == "int4" and halves:
            data, scale = self.room(rows * inputs // 2, np.uint8), self.room(rows, np.float32)
            factors = self.room(rows // LANES * (inputs // halves) * FACTOR_BYTES, np.uint8)
            self.library.pack_nibbles(self.pool, *_told(plain), outputs, inputs, halves, *_told(data, factors, scale))
            return Matrix(at(data), at(scale), at(factors), bias_at, INT4, outputs, inputs, halves)
        if precision != "float32" and group:
            data, scale = self.room(rows * inputs, np.uint8), self.room(rows, np.float32)
            self.library.pack_bytes(self.pool, *_told(plain), outputs, inputs, *_told(data, scale))
            return Matrix(at(data), at(scale), None, bias_at, INT8, outputs, inputs, group)
        data = self.room(rows * inputs, np.float32)
        self.library.pack_float(*_told(plain), outputs, inputs, *_told(data))
        return Matrix(at(data), None, None, bias_at, FLOAT32, outputs, inputs, inputs)

    def side_by_side(self, projections: Sequence[Projection], precision: Precision) -> Matrix:
        """Projections of one input as one matrix."""
        biases = [torch.zeros(p.out_features) if p.bias is None else p.bias for p in projections]
        bias = None if all(p.bias is None for p in projections) else torch.cat([b.detach().float() for b in biases])
        return self.matrix(torch.cat([p.whole() for p in projections]), bias, precision)

    def low_rank(self, projections: Sequence[Projection], adapters: Sequence[Adapter | None], precision: Precision) -> LowRank:
        """What one adapter changes of projections side by side; in bfloat16 where weights are rounded, too."""
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
        exact = precision == "float32"
        packed: np.ndarray[Any, Any] = np.empty(down.numel(), np.float32 if exact else np.uint16)
        plain = down.contiguous().numpy()
        pack = self.library.pack_float if exact else self.library.pack_bfloat
        pack(ctypes.c_void_p(at(plain)), padded, down.shape[1], ctypes.c_void_p(self.keep(packed)))
        ups = torch.cat(parts)
        changed_length = any(a is not None and a.magnitude is not None for a in adapters)
        return LowRank(
            at(self.kept[-1]),
            self.keep((ups if exact else ups.to(torch.bfloat16).view(torch.int16)).numpy()),
            self.keep(start),
            self.keep(first),
            self.keep(count),
            self.vector(gain) if changed_length else None,
            padded,
            exact,
        )


def _told(*arrays: np.ndarray[Any, Any]) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(at(array)) for array in arrays]
