"""Products with a frozen matrix, by the faster of torch's two libraries.

torch.mm in fp32 is MKL's, which keeps its best kernels for its maker's processors; oneDNN, the other library in torch, has its own for each. On an
EPYC with AVX-512, from 64 rows on, oneDNN takes 0.87 to 0.95 of the time with a matrix as it lies and 0.80 to 0.92 with one transposed; for a single
row 0.6 to 1.25. Sums are made in another order: results differ by rounding. The slow twin is `torch.mm`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def product(x: Float[Tensor, "n i"], matrix: Float[Tensor, "o i"]) -> Float[Tensor, "n o"]:
    """x W'. Not differentiable: for the insides of autograd functions."""
    whole = matrix.is_contiguous() or matrix.t().is_contiguous()  # of parts of a matrix oneDNN has no fast product
    if _ONEDNN and whole and x.device.type == "cpu" and x.dtype == torch.float32:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), matrix, None, "none", [], "")
        return result
    return torch.mm(x, matrix.t())
