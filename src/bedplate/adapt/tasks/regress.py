"""Regress: a number for a thing of any sense, with the range that it is in nine times of ten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bedplate.adapt.calibrate import FEWEST
from bedplate.adapt.encode import Item
from bedplate.adapt.examples import Row, each
from bedplate.adapt.probe import fit_linear
from bedplate.adapt.tasks.base import NOTHING, Judged, Task, linear_head
from bedplate.core.errors import DataError
from bedplate.core.prediction import Number

COVERED = 0.9
"""Share of new things whose number is between `low` and `high`."""


class Regress(Task):
    """Numbers for things of any sense. The network learns them standardised; answers have the unit of the examples."""

    name = "regress"
    wants = "value (a number), and text, image, audio, video or series"

    mean = 0.0
    spread = 1.0
    error: float | None = None
    """Half the width of the range that an answer gives."""

    def survey(self, rows: Sequence[Row]) -> None:
        values = np.array(each(rows, lambda row: row.number_of("value")))
        self.mean, self.spread = float(values.mean()), float(values.std())
        if not self.spread > 0:
            raise DataError(f"all examples have the value {values[0]:g}", "give examples of different values")

    def encode(self, row: Row, learn: bool = True) -> Item:
        positions = self.fit(self.base.look(row.inputs(self.model.config.senses)))
        target = np.array([(row.number_of("value") - self.mean) / self.spread], np.float32) if learn else NOTHING
        return Item(row.number, (positions,), target, 1.0)

    def target_of(self, item: Item) -> str:
        value = float(item.target[0]) * self.spread + self.mean
        return f"{value if abs(value) > 1e-6 * self.spread else 0.0:g}"  # what is left of a nought after scaling is no number to show

    def start(self, items: Sequence[Item], held_out: Sequence[Item] = ()) -> None:
        probe = fit_linear(self.features([item.sequences[0] for item in items]), np.stack([item.target for item in items]), "squared", self.settings.train.seed)
        self.head = linear_head(*probe.plain(), self.model.head.device)

    def numbers(self, items: Sequence[Item]) -> Float[Tensor, "b"]:
        """A standardised number for each, differentiable."""
        return self.of_features(self.pooled([item.sequences[0] for item in items]))

    def of_features(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
        """Standardised numbers of pooled features."""
        assert self.head is not None
        found: Tensor = self.head(pooled.float())[:, 0]
        return found

    def loss_sum(self, items: Sequence[Item]) -> Tensor:
        found = self.numbers(items)
        targets = torch.tensor([float(item.target[0]) for item in items], device=found.device)
        return (found - targets).square().sum() / 2

    @torch.no_grad()
    def all_numbers(self, items: Sequence[Item]) -> Float[np.ndarray, "n"]:
        """Standardised numbers of items, in their order."""
        made = np.zeros(len(items))
        for part in self.in_portions(items, "held-out examples"):
            made[part] = self.numbers([items[i] for i in part]).float().cpu().numpy()
        return made

    def errors(self, items: Sequence[Item]) -> Float[np.ndarray, "n"]:
        """Standardised number less the true one."""
        wrong: np.ndarray = self.all_numbers(items) - np.array([float(item.target[0]) for item in items])
        return wrong

    def judge(self, items: Sequence[Item]) -> Judged:
        wrong, true = self.errors(items), np.array([float(item.target[0]) for item in items])
        spread = float(true.var())
        explained = {"explained_share": 1 - float(np.square(wrong).mean()) / spread} if spread > 0 else {}
        return Judged(float(np.square(wrong).mean()) / 2, {"mean_error": float(np.abs(wrong).mean()) * self.spread, **explained})

    def calibrate(self, items: Sequence[Item]) -> Mapping[str, float]:
        """The range: the error that the right share of held-out examples stays below, rounded up for their small number.

        Source: Lei et al., Distribution-Free Predictive Inference for Regression (2018), split conformal.
        """
        if len(items) < FEWEST:
            return {}
        wrong = np.sort(np.abs(self.errors(items)))
        rank = int(np.ceil(COVERED * (len(wrong) + 1)))
        self.error = float(wrong[min(rank, len(wrong)) - 1]) * self.spread
        return {"range": self.error}

    @torch.no_grad()
    def predict(self, item: Item, regarded: Float[Tensor, "n d"]) -> Number:
        """A number in the unit of the examples, with its range."""
        value = float(self.of_features(regarded)[0]) * self.spread + self.mean
        return Number(value, None, None) if self.error is None else Number(value, value - self.error, value + self.error)

    def facts(self) -> dict[str, Any]:
        return {"mean": self.mean, "spread": self.spread, "error": self.error}

    def restore(self, facts: Mapping[str, Any]) -> Self:
        self.mean, self.spread, self.error = float(facts["mean"]), float(facts["spread"]), facts["error"]
        self.head = nn.Linear(self.model.config.hidden_size, 1).to(self.model.head.device)
        return self
