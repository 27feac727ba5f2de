"""Prefer: of two answers make the one that people chose likelier than the one that they rejected, without leaving the base further than needed.

The base's own log-probabilities of both answers are computed once, before the first step.
Source: Rafailov et al., Direct Preference Optimization (2023), equation 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bedplate.adapt.chunks import log_probabilities
from bedplate.adapt.encode import Item
from bedplate.adapt.examples import Row
from bedplate.adapt.tasks.base import NOTHING, Judged
from bedplate.adapt.tasks.generate import Generate
from bedplate.modality.sequence import Sequence as Positions


class Prefer(Generate):
    """Answers that people prefer. Its worker generates."""

    name = "prefer"
    wants = "prompt (or messages), chosen and rejected; or chosen and rejected as whole conversations"
    lr_share = 0.05

    def encode(self, row: Row, learn: bool = True) -> Item:
        if not learn:
            return super().encode(row, learn)
        chosen, rejected = (super(Prefer, self).encode(_answered(row, name)).sequences[0] for name in ("chosen", "rejected"))
        if row.values["chosen"] == row.values["rejected"]:
            raise row.error("'chosen' and 'rejected' are the same", "leave out pairs between which nobody chose")
        return Item(row.number, (chosen, rejected), NOTHING, 1.0)

    def target_of(self, item: Item) -> str:
        return "the first rather than the second"

    def start(self, items: Sequence[Item], held_out: Sequence[Item] = ()) -> None:
        """Remember what the base says of every pair."""
        self._reference: dict[int, Tensor] = {}  # by identity: the items live as long as the training, and rows of two files share their numbers
        for some in (items, held_out):
            for part in self.in_portions(some, "what the base says of the pairs"):
                with torch.no_grad():
                    found = self.log_ratios([some[i] for i in part])
                self._reference |= {id(some[i]): one for i, one in zip(part, found)}

    def said(self, sequences: Sequence[Positions]) -> Float[Tensor, "s"]:
        """Log-probability of all marked tokens of each, differentiable."""
        marked = self.marked(self.batch(sequences))
        logs = log_probabilities(marked.states, self.model.head, marked.tokens)
        return torch.zeros(len(sequences), device=logs.device).index_add(0, marked.rows, logs)

    def log_ratios(self, items: Sequence[Item]) -> Float[Tensor, "b"]:
        """By how much each chosen answer is likelier than the rejected one, as a logarithm."""
        logs = self.said([one for item in items for one in item.sequences])
        return logs[::2] - logs[1::2]

    def margins(self, items: Sequence[Item]) -> Float[Tensor, "b"]:
        """By how much more than the base it prefers what was chosen."""
        found = self.log_ratios(items)
        return found - torch.stack([self._reference[id(item)] for item in items])

    def loss_sum(self, items: Sequence[Item]) -> Tensor:
        return -F.logsigmoid(self.settings.prefer.beta * self.margins(items)).sum()

    @torch.no_grad()
    def judge(self, items: Sequence[Item]) -> Judged:
        margins = torch.cat([self.margins([items[i] for i in part]) for part in self.in_portions(items, "held-out examples")])
        loss = float(-F.logsigmoid(self.settings.prefer.beta * margins).mean())
        return Judged(loss, {"preferred": float((margins > 0).float().mean()), "margin": float(margins.mean())})


def _answered(row: Row, name: str) -> Row:
    """The row as an example of `generate` whose answer is the cell `name`."""
    said: Any = row.values.get(name)
    kept = {key: value for key, value in row.values.items() if key not in ("chosen", "rejected", "completion")}
    if isinstance(said, list):
        return Row(row.number, {**kept, "messages": said}, row.beside)
    text = row.text(name)
    if "messages" in kept:
        return Row(row.number, {**kept, "messages": [*row.list_of("messages"), {"role": "assistant", "content": text}]}, row.beside)
    return Row(row.number, {**kept, "completion": text}, row.beside)
