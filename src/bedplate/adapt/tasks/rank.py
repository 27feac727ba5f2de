"""Rank: how well a text answers a query, both read together.

Examples are a query with a text that fits and some that do not, or a query, a text and a score. The first learn which candidate of a list is
right (softmax over the list), the second the score itself, scaled to 0 .. 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bedplate.adapt.encode import Item, compose
from bedplate.adapt.examples import Row, each
from bedplate.adapt.probe import fit_linear
from bedplate.adapt.tasks.base import Judged, Task, linear_head
from bedplate.core.errors import DataError
from bedplate.core.prediction import Ranking
from bedplate.data.document import Segment
from bedplate.modality.sequence import Sequence as Positions


class Rank(Task):
    """Texts in the order in which they answer a query. The query may hold any sense besides."""

    name = "rank"
    wants = "query, positive and negative or negatives (a list); or query, text and score"

    low = 0.0
    high = 1.0
    """Smallest and largest score of the examples."""
    scored = False
    """Whether it learns scores, not lists."""

    def survey(self, rows: Sequence[Row]) -> None:
        self.scored = any("score" in row.values for row in rows)
        if self.scored:
            scores = each(rows, lambda row: row.number_of("score"))
            self.low, self.high = min(scores), max(scores)
            if self.low == self.high:
                raise DataError(f"all examples have the score {self.low:g}", "give examples of different scores")

    def encode(self, row: Row, learn: bool = True) -> Item:
        if not learn:
            texts, target = self._texts(row, "texts") if "texts" in row.values else [row.text("text")], []
        elif self.scored:
            texts, target = [row.text("text")], [(row.number_of("score") - self.low) / (self.high - self.low)]
            if not 0 <= target[0] <= 1:
                raise row.error(f"the score {row.number_of('score'):g} is outside of {self.low:g} .. {self.high:g}, which were learned from")
        else:
            negatives = [row.text("negative")] if "negative" in row.values else self._texts(row, "negatives")
            texts, target = [row.text("positive"), *negatives], []
        sequences = self.pairs(row.text("query"), texts, row.senses(self.model.config.senses))
        return Item(row.number, sequences, np.array(target, np.float32), 1.0)

    def pairs(self, query: str, texts: Sequence[str], seen: Sequence[Segment] = ()) -> tuple[Positions, ...]:
        """A query with each of some texts.

        Args:
            query: its words.
            texts: to be ranked.
            seen: what the query holds besides.
        """
        asked = self.base.words(query + "\n")
        sequences = [compose([self.base.ends, *seen, asked, self.base.words(text), self.base.ends], self.model.config) for text in texts]
        return tuple(map(self.fit, sequences))

    def _texts(self, row: Row, name: str) -> list[str]:
        found = row.list_of(name)
        if not found or not all(isinstance(text, str) and text.strip() for text in found):
            raise row.error(f"{name!r} is empty or holds something that is no text")
        return found

    def target_of(self, item: Item) -> str:
        return f"{float(item.target[0]) * (self.high - self.low) + self.low:g}" if self.scored else "the first is the best"

    def start(self, items: Sequence[Item], held_out: Sequence[Item] = ()) -> None:
        """The best linear scores on the frozen base; for lists on the difference of a positive to each negative, both ways round."""
        found = np.split(self.features([one for item in items for one in item.sequences]), np.cumsum([len(item.sequences) for item in items])[:-1])
        if self.scored:
            probe = fit_linear(np.concatenate(found), np.stack([item.target for item in items]), "sigmoid", self.settings.train.seed)
        else:
            better = np.concatenate([one[:1] - one[1:] for one in found])
            truth = np.repeat([[1.0], [0.0]], len(better), 0)
            probe = fit_linear(np.concatenate([better, -better]), truth, "sigmoid", self.settings.train.seed)
        self.head = linear_head(*probe.plain(), self.model.head.device)

    def scores(self, sequences: Sequence[Positions]) -> Float[Tensor, "s"]:
        """A score of each, differentiable."""
        return self.of_features(self.pooled(sequences))

    def of_features(self, pooled: Float[Tensor, "s d"]) -> Float[Tensor, "s"]:
        """Scores of pooled features."""
        assert self.head is not None
        found: Tensor = self.head(pooled.float())[:, 0]
        return found

    def loss_sum(self, items: Sequence[Item]) -> Tensor:
        return self.losses(self.scores([one for item in items for one in item.sequences]), items).sum()

    def losses(self, scores: Float[Tensor, "s"], items: Sequence[Item]) -> Float[Tensor, "b"]:
        """Loss of each item."""
        if self.scored:
            targets = torch.tensor([float(item.target[0]) for item in items], device=scores.device)
            return F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        lists = torch.split(scores, [len(item.sequences) for item in items])
        return torch.stack([one.logsumexp(0) - one[0] for one in lists])

    @torch.no_grad()
    def all_scores(self, items: Sequence[Item]) -> list[Float[np.ndarray, "s"]]:
        """Scores of each item's sequences, in their order."""
        made = [np.zeros(0)] * len(items)
        for part in self.in_portions(items, "held-out examples"):
            found = self.scores([one for i in part for one in items[i].sequences]).float().cpu()
            for i, one in zip(part, torch.split(found, [len(items[i].sequences) for i in part])):
                made[i] = one.numpy()
        return made

    def judge(self, items: Sequence[Item]) -> Judged:
        found = self.all_scores(items)
        loss = float(self.losses(torch.from_numpy(np.concatenate(found)), items).mean())
        if self.scored:
            return Judged(loss, {"pairs_in_order": in_order(np.concatenate(found), np.array([float(item.target[0]) for item in items]))})
        rank = np.array([1 + (one[1:] >= one[0]).sum() for one in found])
        return Judged(loss, {"first_is_right": float((rank == 1).mean()), "reciprocal_rank": float((1 / rank).mean())})

    @torch.no_grad()
    def predict(self, item: Item, regarded: Float[Tensor, "n d"]) -> Ranking:
        """The order of a query's texts."""
        one = self.of_features(regarded).float().cpu().numpy()
        scores = self.low + (self.high - self.low) / (1 + np.exp(-one.astype(np.float64))) if self.scored else one
        return Ranking(tuple(np.argsort(-one, kind="stable").tolist()), tuple(scores.tolist()))

    def facts(self) -> dict[str, Any]:
        return {"scored": self.scored, "low": self.low, "high": self.high}

    def restore(self, facts: Mapping[str, Any]) -> Self:
        self.scored, self.low, self.high = bool(facts["scored"]), float(facts["low"]), float(facts["high"])
        self.head = nn.Linear(self.model.config.hidden_size, 1).to(self.model.head.device)
        return self


def in_order(found: Float[np.ndarray, "n"], true: Float[np.ndarray, "n"]) -> float:
    """Share of all pairs with different true scores whose found scores are in the same order."""
    higher = true[:, None] > true[None]
    return float((found[:, None] > found[None])[higher].mean()) if higher.any() else 1.0
