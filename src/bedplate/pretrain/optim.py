"""Optimiser: Muon for the trunk's matrices, AdamW for everything else.

Muon makes each matrix's momentum orthogonal before it is applied, so that every direction learns at the same rate. Matrices of one
shape are handled as one stack [k r c]: a handful of batched products a step instead of hundreds of small ones.

Source: Muon (Jordan, 2024); the update's scale max(1, rows/cols)^0.5 as in torch.optim.Muon, which is the oracle in the tests;
cautious weight decay (arXiv 2510.12402): decay only where it and the update agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bedplate.core.errors import ConfigError, IntegrityError

Group = Literal["matrix", "embedding", "head", "vector"]

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x -> ax + bx^3 + cx^5, which pushes singular values towards 1 fastest (Jordan, 2024)."""


@dataclass(frozen=True)
class OptimSettings:
    """Learning rates and constants of both optimisers."""

    lr_matrix: float = 0.01
    """Peak learning rate of Muon, for the matrices inside the trunk's layers."""
    lr_embedding: float = 0.005
    """Peak learning rate of AdamW for tables (token embedding; a tied head counts as one)."""
    lr_head: float = 0.002
    """Peak learning rate of AdamW for matrices outside the trunk's layers: the untied head, unit embedders, flow and regression heads."""
    lr_vector: float = 0.005
    """Peak learning rate of AdamW for norms and biases."""
    weight_decay: float = 0.1
    """Decay of matrices, times the learning rate; embeddings, norms and biases have none."""
    beta1: float = 0.9
    """AdamW's memory of the gradient."""
    beta2: float = 0.95
    """AdamW's memory of the squared gradient."""
    eps: float = 1e-10
    """AdamW's guard against division by zero."""
    iterations: int = 5
    """Newton-Schulz iterations of Muon."""
    orthogonalise_in: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of Muon's iterations. auto: bfloat16 where the processor multiplies it natively."""
    clip_norm: float = 1.0
    """Gradients whose joint norm is larger are scaled down to it; 0 turns it off."""

    def __post_init__(self) -> None:
        for name in ("lr_matrix", "lr_embedding", "lr_head", "lr_vector", "weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise ConfigError(f"optim.{name} = {getattr(self, name)} is negative", f"set optim.{name} to 0 or more")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError("optim.beta1 and optim.beta2 must be within 0..1", "the usual values are 0.9 and 0.95")
        if self.iterations < 1:
            raise ConfigError(f"optim.iterations = {self.iterations} leaves Muon without a direction", "5 is usual")


def group_of(name: str, parameter: nn.Parameter) -> Group:
    """Which optimiser a parameter belongs to, by its place and shape."""
    if parameter.ndim < 2:
        return "vector"
    if ".layers." in f".{name}" and parameter.ndim == 2:
        return "matrix"
    return "embedding" if "embed_tokens" in name else "head"


def orthogonalise(x: Float[Tensor, "k r c"], iterations: int = 5, dtype: torch.dtype = torch.float32) -> Float[Tensor, "k r c"]:
    """The nearest (half-)orthogonal matrices, roughly: all singular values end up near 1.

    Args:
        x: a stack of matrices of one shape.
        iterations: Newton-Schulz iterations.
        dtype: precision of the products.
    """
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x
    y = (y / y.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)).to(dtype)
    for _ in range(iterations):
        gram = torch.bmm(y, y.mT)  # [k r r]
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        y = torch.baddbmm(y, polynomial, y, beta=a)
    return (y.mT if tall else y).to(x.dtype)


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else torch.float32


class Muon:
    """Muon over matrices of one shape, kept as a stack."""

    def __init__(self, names: list[str], parameters: list[nn.Parameter], settings: OptimSettings) -> None:
        self.names, self.parameters, self.settings = names, parameters, settings
        rows, columns = parameters[0].shape
        self.scale = max(1.0, rows / columns) ** 0.5
        self.momentum = torch.zeros(len(parameters), rows, columns, device=parameters[0].device)  # [k r c]
        auto = fast_dtype(parameters[0].device)
        self.dtype = {"auto": auto, "float32": torch.float32, "bfloat16": torch.bfloat16}[settings.orthogonalise_in]

    @torch.no_grad()
    def step(self, lr: float, momentum: float) -> None:
        """Move the matrices once. A matrix without a gradient counts as one with a gradient of zeros.

        Args:
            lr: learning rate.
            momentum: share of the old momentum that is kept.
        """
        gradient = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad.float() for p in self.parameters])
        self.momentum.lerp_(gradient, 1 - momentum)
        gradient.lerp_(self.momentum, momentum)  # Nesterov: look ahead along the momentum
        update = orthogonalise(gradient, self.settings.iterations, self.dtype)
        for parameter, direction in zip(self.parameters, update):
            if self.settings.weight_decay:
                agree = (direction * parameter) > 0
                parameter.addcmul_(parameter, agree.to(parameter.dtype), value=-lr * self.settings.weight_decay)
            parameter.add_(direction, alpha=-lr * self.scale)


class Optimiser:
    """Muon and AdamW behind one `step`."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], settings: OptimSettings) -> None:
        self.settings = settings
        groups: dict[Group, dict[str, nn.Parameter]] = {"matrix": {}, "embedding": {}, "head": {}, "vector": {}}
        for name, parameter in named:
            if parameter.requires_grad:
                groups[group_of(name, parameter)][name] = parameter
        shapes: dict[tuple[int, ...], dict[str, nn.Parameter]] = {}
        for name, parameter in groups.pop("matrix").items():
            shapes.setdefault(tuple(parameter.shape), {})[name] = parameter
        self.muons = [Muon(list(part), list(part.values()), settings) for part in shapes.values()]
        self.peaks = {"embedding": settings.lr_embedding, "head": settings.lr_head, "vector": settings.lr_vector}
        self.names = {p: name for part in groups.values() for name, p in part.items()}
        decay = {"embedding": 0.0, "head": settings.weight_decay, "vector": 0.0}
        self.adamw = torch.optim.AdamW(
            [{"params": list(part.values()), "weight_decay": decay[group], "kind": group} for group, part in groups.items()],
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that is trained."""
        return [p for muon in self.muons for p in muon.parameters] + list(self.names)

    def clip(self) -> Tensor:
        """Scale the gradients down to `clip_norm` and return their joint norm before that (a scalar on the device)."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.settings.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip_norm, norm)
        return norm

    def step(self, lr_factor: float, momentum: float) -> None:
        """Move every parameter once.

        Args:
            lr_factor: share of the peak learning rates.
            momentum: Muon's momentum.
        """
        for muon in self.muons:
            muon.step(self.settings.lr_matrix * lr_factor, momentum)
        for group in self.adamw.param_groups:
            group["lr"] = self.peaks[group["kind"]] * lr_factor
        self.adamw.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """The state as named tensors (not copies)."""
        tensors = {f"momentum.{name}": muon.momentum[i] for muon in self.muons for i, name in enumerate(muon.names)}
        for parameter, name in self.names.items():
            for key, value in self.adamw.state[parameter].items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `state` gave.

        Raises:
            IntegrityError: it belongs to another model.
        """
        try:
            for muon in self.muons:
                for i, name in enumerate(muon.names):
                    muon.momentum[i].copy_(tensors[f"momentum.{name}"])
            for parameter, name in self.names.items():
                self.adamw.state.pop(parameter, None)
                if f"step.{name}" in tensors:  # absent before a parameter's first update
                    keys = ("step", "exp_avg", "exp_avg_sq")
                    self.adamw.state[parameter] = {key: tensors[f"{key}.{name}"].to(parameter.device, copy=True) for key in keys}
        except (KeyError, RuntimeError) as error:
            hint = "resume with the settings the run was started with"
            raise IntegrityError(f"the optimiser's state does not fit the model: {error}", hint) from error
