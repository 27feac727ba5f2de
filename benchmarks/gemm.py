"""This machine's matrix-product peak: the yardstick for a training step."""

from __future__ import annotations

import time

import torch


def gemm_peak(seconds: float = 4.0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """Best rate seen over several large shapes, in FLOP/s; the peak of what the library can do here, not of the data sheet."""
    shapes = [(2048, 2048, 2048), (4096, 1024, 1024), (8192, 1024, 256)] if device == "cpu" else [(8192, 8192, 8192)]
    best = 0.0
    for rows, inner, columns in shapes:
        a = torch.randn(rows, inner, dtype=dtype, device=device)
        b = torch.randn(inner, columns, dtype=dtype, device=device)
        out = torch.empty(rows, columns, dtype=dtype, device=device)
        end = time.perf_counter() + seconds / len(shapes)
        while time.perf_counter() < end:
            started = time.perf_counter()
            torch.mm(a, b, out=out)
            if device != "cpu":
                torch.cuda.synchronize()
            best = max(best, 2.0 * rows * inner * columns / (time.perf_counter() - started))
    return best
