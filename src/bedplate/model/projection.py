"""Projections of the trunk: plain matrices, matrices in few bits, and either with a low-rank adapter; several of one input in one product.

A plain projection is an nn.Linear and costs what one costs. With an adapter y = (W + s B A) x is computed with W frozen: no gradient of W, the
input kept once for all projections that share it, the low-rank part added into the base's product in place. The slow twin in the tests is
three matrix products of autograd's own.

Sources: Hu et al., LoRA (2021), section 4.1; Liu et al., DoRA (2024), sections 4.1 and 4.3 (the norm is held constant in the backward pass);
Kalajdzievski, rsLoRA (2023).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bedplate.model.product import product
from bedplate.model.quantise import Bits, Quantised


class Adapter(nn.Module):
    """A low-rank change of one matrix; it starts as no change at all."""

    def __init__(self, weight: Float[Tensor, "o i"], rank: int, scale: float, *, dora: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.rank, self.scale, self.dropout = rank, scale, dropout
        self.A = nn.Parameter(torch.zeros(rank, inputs, device=weight.device))
        self.B = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))
        self.magnitude = nn.Parameter(weight.detach().float().square().sum(1).sqrt_()) if dora else None

    def initialise(self, generator: torch.Generator) -> None:
        """A uniform of spread 1 / sqrt(3 inputs), B zero, as PEFT does; the magnitudes are the base's."""
        bound = 1 / math.sqrt(self.A.shape[1])
        with torch.no_grad():
            self.A.copy_((torch.rand(self.A.shape, generator=generator) * 2 - 1) * bound)
            self.B.zero_()

    @torch.no_grad()
    def changed(self, weight: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
        """The matrix that the adapter makes of `weight`."""
        direction = torch.addmm(weight.float(), self.B, self.A, alpha=self.scale)
        if self.magnitude is not None:
            direction *= (self.magnitude / direction.norm(dim=1))[:, None]
        return direction.to(weight.dtype)

    @torch.no_grad()
    def direction_norm(self, weight: Float[Tensor, "o i"]) -> Float[Tensor, "o"]:
        """Length of each row of W + s B A, without writing the sum out."""
        squares = weight.square().sum(1)
        squares += 2 * self.scale * ((weight @ self.A.t()) * self.B).sum(1)
        squares += self.scale**2 * ((self.B @ (self.A @ self.A.t())) * self.B).sum(1)
        return squares.clamp_min_(0).sqrt_()


class Projection(nn.Linear):
    """A linear map, maybe stored in few bits, maybe with an adapter."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__(inputs, outputs, bias)
        self.adapter: Adapter | None = None
        self.quantised: Quantised | None = None

    @property
    def plain(self) -> bool:
        """Whether it is nothing but its matrix."""
        return self.adapter is None and self.quantised is None

    def matrix(self, dtype: torch.dtype | None = None) -> Float[Tensor, "o i"]:
        """The base's matrix, written out where it is stored in few bits."""
        if self.quantised is not None:
            return self.quantised.dense(dtype or torch.float32)
        return self.weight if dtype is None else self.weight.to(dtype)

    def whole(self) -> Float[Tensor, "o i"]:
        """The matrix in float32, with what the adapter makes of it."""
        matrix = self.matrix(torch.float32)
        return matrix if self.adapter is None else self.adapter.changed(matrix)

    def quantise(self, bits: Bits) -> None:
        """Keep the matrix in few bits from now on; the exact one is forgotten."""
        self.quantised = Quantised(self.matrix(), bits)
        self.weight = None  # type: ignore[assignment]

    def write_out(self) -> None:
        """Keep the matrix exactly again, with the numbers that few bits left of it."""
        if self.quantised is not None:
            self.weight = nn.Parameter(self.quantised.dense(), requires_grad=False)
            self.quantised = None

    def replace(self, weight: Float[Tensor, "o i"]) -> None:
        """Put another matrix in the base's place, stored as the base's is."""
        with torch.no_grad():
            if self.quantised is not None:
                self.quantised = Quantised(weight, self.quantised.bits)
            else:
                self.weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return together(x, self)


def together(x: Float[Tensor, "... i"], *projections: Projection) -> Float[Tensor, "... o"]:
    """Several projections of `x` side by side in one product."""
    if all(p.plain for p in projections):
        if len(projections) > 1 and 4 * x.numel() < x.shape[-1] ** 2 and not _adjacent(projections):  # few rows: their results are smaller than the matrices
            return torch.cat([F.linear(x, p.weight, p.bias) for p in projections], -1)
        return F.linear(x, _side_by_side(projections), _biases(projections))
    adapters = [p.adapter for p in projections]
    dropout = max(a.dropout if a is not None and a.training else 0.0 for a in adapters)
    factors = [factor for a in adapters for factor in ((a.A, a.B) if a is not None else (None, None))]
    y: Tensor = _Adapted.apply(x, F.dropout(x, dropout) if dropout else None, tuple(projections), *factors)  # type: ignore[no-untyped-call]
    if any(a is not None and a.magnitude is not None for a in adapters):
        y = y * torch.cat([_gain(p) for p in projections]).to(y.dtype)
    bias = _biases(projections)
    return y if bias is None else y + bias.to(y.dtype)


@torch.no_grad()
def join(module: nn.Module, *names: str) -> None:
    """Lay the frozen matrices of projections that share their input one behind the other in memory, so that `together` need not copy them.

    Args:
        module: their parent.
        names: of its projections, in the order in which `together` is called.
    """
    projections = [getattr(module, name) for name in names]
    if any(p.quantised is not None or p.weight.requires_grad for p in projections) or _adjacent(projections):
        return
    whole = torch.cat([p.weight for p in projections])
    for projection, part in zip(projections, torch.split(whole, [p.out_features for p in projections])):
        projection.weight = nn.Parameter(part, requires_grad=False)


class _Adapted(torch.autograd.Function):
    """x W' + s (x A') B', of several projections side by side; W is frozen."""

    @staticmethod
    def forward(context: Any, x: Tensor, dropped: Tensor | None, projections: tuple[Projection, ...], *factors: Tensor | None) -> Tensor:
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        seen = flat if dropped is None else dropped.reshape(-1, x.shape[-1]).to(dtype)
        y = product(flat, _side_by_side(projections, dtype))
        downs = [a.to(dtype) for a in factors[::2] if a is not None]
        ups = [None if b is None else b.to(dtype) for b in factors[1::2]]
        low = torch.mm(seen, torch.cat(downs).t()) if downs else flat[:, :0]  # [n r]
        for part, piece, projection, up in _pieces(projections, y, low, ups):
            part.addmm_(piece, up.t(), alpha=_scale(projection))
        context.projections, context.dtypes = projections, (x.dtype, [f.dtype if f is not None else None for f in factors])
        context.dropped, context.shape = dropped is not None, x.shape
        context.save_for_backward(seen, low, *downs, *ups)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        projections: tuple[Projection, ...] = context.projections
        count = sum(p.adapter is not None for p in projections)
        seen, low, *saved = context.saved_tensors
        downs, ups = saved[:count], saved[count:]
        flat = gradient.reshape(-1, gradient.shape[-1])
        to_low = torch.empty_like(low)
        to_ups: list[Tensor | None] = [None] * len(projections)
        places = {id(p): n for n, p in enumerate(projections)}
        at = 0
        for part, piece, projection, up in _pieces(projections, flat, low, ups):
            scaled = up * _scale(projection)
            torch.mm(part, scaled, out=to_low[:, at : at + up.shape[1]])
            to_ups[places[id(projection)]] = torch.mm(piece.t(), part).mul_(_scale(projection)).t()  # this way round twice as fast
            at += up.shape[1]
        to_downs = list(torch.split(torch.mm(to_low.t(), seen), [d.shape[0] for d in downs])) if downs else []
        x_wanted, dropped_wanted = context.needs_input_grad[0], context.dropped and context.needs_input_grad[1]
        to_x = product(flat, _side_by_side(projections, flat.dtype).t()) if x_wanted else None
        to_dropped = None
        if downs and dropped_wanted:
            to_dropped = torch.mm(to_low, torch.cat(downs)).view(context.shape).to(context.dtypes[0])
        elif downs and to_x is not None:
            to_x.addmm_(to_low, torch.cat(downs))
        to_factors: list[Tensor | None] = []
        for number, projection in enumerate(projections):
            down = to_downs.pop(0) if projection.adapter is not None else None
            for factor, dtype in ((down, context.dtypes[1][2 * number]), (to_ups[number], context.dtypes[1][2 * number + 1])):
                to_factors.append(None if factor is None else factor.to(dtype))
        return None if to_x is None else to_x.view(context.shape).to(context.dtypes[0]), to_dropped, None, *to_factors


def _pieces(projections: Sequence[Projection], y: Tensor, low: Tensor, ups: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor, Projection, Tensor]]:
    """Of each adapted projection: its columns of the result, its columns of the low-rank product, itself, and its B."""
    found, row, column = [], 0, 0
    for projection, up in zip(projections, ups):
        if up is not None:
            found.append((y[:, row : row + projection.out_features], low[:, column : column + up.shape[1]], projection, up))
            column += up.shape[1]
        row += projection.out_features
    return found


def _scale(projection: Projection) -> float:
    assert projection.adapter is not None
    return projection.adapter.scale


def _gain(projection: Projection) -> Tensor:
    """What DoRA multiplies each output with: the learned length over the length there is."""
    adapter = projection.adapter
    if adapter is None or adapter.magnitude is None:
        return torch.ones(projection.out_features, device=projection.matrix().device)
    return adapter.magnitude / adapter.direction_norm(projection.matrix(torch.float32))


def _side_by_side(projections: Sequence[Projection], dtype: torch.dtype | None = None) -> Tensor:
    """Their matrices as one: itself where there is one, a view where they lie one behind the other, else a copy (small beside the calls it saves)."""
    if len(projections) == 1:
        return projections[0].matrix(dtype)
    if _adjacent(projections):
        first = projections[0].weight
        whole = torch.as_strided(first, (sum(p.out_features for p in projections), first.shape[1]), first.stride(), first.storage_offset())
        return whole if dtype is None else whole.to(dtype)
    return torch.cat([p.matrix(dtype) for p in projections])


def _adjacent(projections: Sequence[Projection]) -> bool:
    """Whether frozen matrices lie one behind the other in memory."""
    if any(p.quantised is not None or p.weight.requires_grad or not p.weight.is_contiguous() for p in projections):
        return False
    return all(
        b.weight.untyped_storage().data_ptr() == a.weight.untyped_storage().data_ptr()
        and b.weight.storage_offset() == a.weight.storage_offset() + a.weight.numel()
        and b.weight.dtype == a.weight.dtype
        for a, b in itertools.pairwise(projections)
    )


def _biases(projections: Sequence[Projection]) -> Tensor | None:
    biases: list[Tensor] = [p.bias for p in projections if p.bias is not None]
    return None if not biases else biases[0] if len(biases) == 1 else torch.cat(biases)
