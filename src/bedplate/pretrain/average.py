"""The averaged weights: calmer than the last ones, and what the run gives in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """A running average of a model's parameters. Empty until the first `take` with a weight above zero."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, weight: float) -> None:
        """Move the average towards the present weights.

        Args:
            weight: share of the present weights; the first one above zero counts as one.
        """
        if weight == 0:
            return
        if not self.tensors:
            self.tensors = {name: p.detach().clone() for name, p in self.parameters.items()}
        else:
            torch._foreach_lerp_(list(self.tensors.values()), list(self.parameters.values()), weight)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Become an average that was saved."""
        self.tensors = {name: tensors[name].to(p.device, copy=True) for name, p in self.parameters.items() if name in tensors}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While entered, the model has the averaged weights, where there are any."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, tensor in self.tensors.items():
            parameter = self.parameters[name]
            kept = parameter.detach().clone()
            parameter.copy_(tensor)
            tensor.copy_(kept)
