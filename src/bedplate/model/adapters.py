"""Adapters on a model: put on, taken off, folded into the weights and out of them again.

    attach(model, AdapterShape(rank=16), seed=0)    ->  name -> weight that is trained
    merged = Merged(model); merged.undo()           folded in, and out again
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from bedplate.core.errors import ConfigError, StateError
from bedplate.model.families import TARGETS
from bedplate.model.projection import Adapter, Projection, join
from bedplate.model.quantise import Bits, Quantised

How = Literal["linear", "ties"]
"""Ways to combine changes of one weight."""
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections that share their input."""


@dataclass(frozen=True)
class AdapterShape:
    """What all adapters of a model have in common."""

    rank: int = 16
    alpha: float = 32.0
    rslora: bool = False
    """Scale by alpha / sqrt(rank) in place of alpha / rank."""
    dora: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied with."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class MergeError(NamedTuple):
    """What storage in few bits made of a merge."""

    of_weights: float
    """Length of the error over the length of the merged weights."""
    of_change: float
    """Length of the error over the length of what the adapter changed: above 1, more is lost than was learned."""


def projections(model: nn.Module) -> Iterator[tuple[str, Projection]]:
    """Name -> projection of every layer."""
    for name, module in model.named_modules():
        if isinstance(module, Projection):
            yield name, module


def adaptable(model: nn.Module) -> Iterator[tuple[str, Projection]]:
    """Name -> projection of those that an adapter can be on: all but those of experts."""
    return ((name, projection) for name, projection in projections(model) if ".experts." not in name)


def quantise(model: nn.Module, bits: Bits) -> None:
    """Keep every projection's matrix in few bits; tables, norms and heads stay as they are."""
    for _, projection in projections(model):
        if projection.quantised is None or projection.quantised.bits != bits:
            projection.quantise(bits)


def attach(model: nn.Module, shape: AdapterShape, seed: int = 0) -> dict[str, nn.Parameter]:
    """Freeze the model and put a fresh adapter on every target outside of experts; it changes nothing until it is trained.

    Args:
        model: a FoundationModel.
        shape: of the adapters.
        seed: of A.
    Returns:
        Name -> weight that is trained.
    Raises:
        ConfigError: there is no such projection.
    """
    freeze(model)
    generator = torch.Generator().manual_seed(seed)
    if not {name.rpartition(".")[2] for name, _ in adaptable(model)} & set(shape.targets):
        hint = "those of attention can be adapted: q_proj, k_proj, v_proj, o_proj"
        raise ConfigError(f"nothing outside of experts is called {' or '.join(shape.targets)}", hint)
    for name, projection in adaptable(model):
        if name.rpartition(".")[2] in shape.targets:
            put(projection, shape.rank, shape.scale, dora=shape.dora, dropout=shape.dropout).initialise(generator)
    return trained(model)


def put(projection: Projection, rank: int, scale: float, *, dora: bool = False, dropout: float = 0.0) -> Adapter:
    """A new adapter on one projection."""
    adapter = Adapter(projection.matrix(), rank, scale, dora=dora, dropout=dropout)
    projection.adapter = adapter
    return adapter


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> weight of the adapters that are on a model."""
    return {f"{name}.adapter.{part}": p for name, projection in projections(model) if projection.adapter for part, p in projection.adapter.named_parameters()}


def freeze(model: nn.Module) -> None:
    """Train nothing of a model, and lay matrices that share their input one behind the other, which saves a copy in every pass."""
    model.requires_grad_(False)
    for module in model.modules():
        for names in GROUPS:
            if all(hasattr(module, name) for name in names):
                join(module, *names)


def detach(model: nn.Module) -> None:
    """Take all adapters off."""
    for _, projection in projections(model):
        projection.adapter = None


class _Kept(NamedTuple):
    """What it takes to fold an adapter out again."""

    adapter: Adapter
    norm: Tensor | None
    """DoRA: the row lengths that were divided by."""
    quantised: Quantised | None
    """The old codes: rounding cannot be undone."""


class Merged:
    """A model whose adapters were folded into its weights; `error` says what storage in few bits cost, `undo` folds them out again."""

    def __init__(self, model: nn.Module) -> None:
        """Fold in.

        Raises:
            StateError: there is no adapter on the model.
        """
        self._kept: list[tuple[Projection, _Kept]] = []
        sums = _Sums()
        for _, projection in projections(model):
            if (adapter := projection.adapter) is None:
                continue
            before = projection.matrix(torch.float32)
            norm = None if adapter.magnitude is None or projection.quantised is not None else adapter.direction_norm(before)
            self._kept.append((projection, _Kept(adapter, norm, projection.quantised)))
            sums.replace(projection, before, adapter.changed(before))
            projection.adapter = None
        if not self._kept:
            raise StateError("the model has no adapter to merge", "attach or load one first")
        self.error = sums.error

    @torch.no_grad()
    def undo(self) -> None:
        """Take the changes out of the weights, and put the adapters back on."""
        for projection, kept in self._kept:
            if kept.quantised is not None:
                projection.quantised = kept.quantised
            else:
                weight = projection.matrix(torch.float32)
                if kept.norm is not None and kept.adapter.magnitude is not None:
                    weight = weight * (kept.norm / kept.adapter.magnitude)[:, None]
                projection.replace(torch.addmm(weight, kept.adapter.B, kept.adapter.A, alpha=-kept.adapter.scale))
            projection.adapter = kept.adapter
        self._kept = []


Change = Mapping[str, Callable[[Tensor], Tensor]]
"""Name of a weight -> what an adaptation makes of it, given the base's."""


@torch.no_grad()
def merge_several(model: nn.Module, changes: Sequence[Change], weights: Sequence[float], how: How = "linear", density: float = 0.2) -> MergeError:
    """Fold a mixture of adaptations into a model's weights.

    Args:
        model: the base; its weights become the merged ones.
        changes: one adaptation each.
        weights: how much of each change counts.
        how: how changes of one weight are combined.
        density: ties: share of each change that is kept.
    Returns:
        What storage in few bits made of it; zeros where there is none.
    """
    held = dict(projections(model))
    sums = _Sums()
    for name in dict.fromkeys(name for change in changes for name in change):
        projection = held.get(name.removesuffix(".weight"))
        before = model.get_parameter(name) if projection is None else projection.matrix()
        exact = before.float()
        parts = [change[name](exact) - exact if name in change else torch.zeros_like(exact) for change in changes]
        after = exact + combine(parts, weights, how, density)
        if projection is None:
            before.copy_(after)
        else:
            sums.replace(projection, exact, after)
    return sums.error


def combine(parts: Sequence[Tensor], weights: Sequence[float], how: How, density: float = 0.2) -> Tensor:
    """Changes of one weight as one change.

    linear: the weighted sum. ties: each change keeps its largest entries, each entry elects the sign with the greater sum, and the mean of the
    weighted changes that agree with it is taken.

    Source: Yadav et al., TIES-Merging (2023), section 4, a matrix at a time as PEFT does.
    """
    if how == "linear":
        return sum((part * weight for part, weight in zip(parts, weights)), torch.zeros_like(parts[0]))
    trimmed = torch.stack([_largest(part, density) for part in parts])
    sign = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0)
    agrees = trimmed.sign() == sign
    scaled = trimmed * torch.tensor(weights, device=trimmed.device).view(-1, *[1] * parts[0].ndim)
    return (scaled * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def _largest(part: Tensor, density: float) -> Tensor:
    """The given share of entries, largest first; zero elsewhere."""
    flat = part.flatten()
    kept = flat.abs().topk(int(density * len(flat))).indices
    return torch.zeros_like(flat).index_copy_(0, kept, flat[kept]).view(part.shape)


class _Sums:
    """Squares of what was changed, and of what was stored wrongly."""

    def __init__(self) -> None:
        self.wrong = self.change = self.length = 0.0

    def replace(self, projection: Projection, before: Tensor, after: Tensor) -> None:
        projection.replace(after)
        self.change += float((after - before).square().sum())
        self.length += float(after.square().sum())
        if projection.quantised is not None:
            self.wrong += float((projection.matrix(torch.float32) - after).square().sum())

    @property
    def error(self) -> MergeError:
        tiny = 1e-30
        return MergeError((self.wrong / max(self.length, tiny)) ** 0.5, (self.wrong / max(self.change, tiny)) ** 0.5)
