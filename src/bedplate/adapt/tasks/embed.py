"""Embed: vectors whose nearness means what the examples say belongs together. Pairs, or triplets with texts that do not belong.

Each step's positives stand against those of all its other examples.
Source: van den Oord et al., Representation Learning with Contrastive Predictive Coding (2018), section 2.3 (InfoNCE).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bedplate.adapt.encode import Item
from bedplate.adapt.examples import Row
from bedplate.adapt.tasks.base import Joint, Judged, linear_head
from bedplate.core.prediction import Vector
from bedplate.data.document import Segment
from bedplate.modality.specs import CONTINUOUS


class Embed(Joint):
    """Vectors of things of any sense, near to those of the things that belong to them."""

    name = "embed"
    wants = (
        "text, image, audio, video or series, and what belongs to it: positive (a text) or positive_image, positive_audio and so on; negative or negatives"
        " (a list of texts), negative_image and so on where known"
    )
    examples_per_step = 64

    def encode(self, row: Row, learn: bool = True) -> Item:
        others = [self._belonging(row, "positive"), *self._negatives(row)] if learn else []
        looked = [self.base.look(row.inputs(self.model.config.senses)), *map(self.base.look, others)]
        names = np.array([_name(one) for one in others], np.float32)
        return Item(row.number, tuple(map(self.fit, looked)), names, 1.0)

    def _belonging(self, row: Row, role: str) -> tuple[Segment, ...]:
        """What a row gives as its positive or negative: a text, things of other senses, or both."""
        columns = {role: "text"} | {f"{role}_{sense}": sense for sense in CONTINUOUS}
        if not columns.keys() & row.values.keys():
            raise row.error(f"there is no {role!r}, nor {f'{role}_image'!r} or the like")
        own = {name: row.values[column] for column, name in columns.items() if column in row.values}
        return Row(row.number, own, row.beside).inputs(self.model.config.senses)

    def _negatives(self, row: Row) -> list[tuple[Segment, ...]]:
        if any(name == "negative" or name.startswith("negative_") for name in row.values):
            return [self._belonging(row, "negative")]
        found = row.list_of("negatives") if "negatives" in row.values else []
        if not all(isinstance(text, str) and text.strip() for text in found):
            raise row.error("'negatives' holds something that is no text")
        return [(Segment("text", text),) for text in found]

    def target_of(self, item: Item) -> str:
        return f"near the second, far from {'the rest and ' * (len(item.sequences) > 2)}those of other rows"

    def start(self, items: Sequence[Item], held_out: Sequence[Item] = ()) -> None:
        """The head first centres and scales: raw features of all texts point into nearly one direction."""
        found = self.features([one for item in items for one in item.sequences])
        mean, spread = found.mean(0), found.std(0) + 1e-6
        self.head = linear_head(np.diag(1 / spread), -mean / spread, self.model.head.device)

    def vectors(self, items: Sequence[Item]) -> Float[Tensor, "s d"]:
        return self.turned(self.pooled([one for item in items for one in item.sequences]))

    def turned(self, pooled: Float[Tensor, "s d"]) -> Float[Tensor, "s d"]:
        """Vectors of length one, of pooled features."""
        assert self.head is not None
        return F.normalize(self.head(pooled.float()), dim=1)

    @torch.no_grad()
    def predict(self, item: Item, regarded: Float[Tensor, "n d"]) -> Vector:
        return Vector(tuple(self.turned(regarded)[0].tolist()))

    def joint_loss_sum(self, vectors: Float[Tensor, "s d"], items: Sequence[Item]) -> Tensor:
        scores = self.scores(vectors, items) / self.settings.embed.temperature
        return F.cross_entropy(scores, torch.arange(len(items), device=vectors.device), reduction="sum")

    def scores(self, vectors: Float[Tensor, "s d"], items: Sequence[Item]) -> Float[Tensor, "b c"]:
        """Cosine of each example with all positives, then all negatives; -inf for another's text that is its own positive too."""
        starts = np.cumsum([0, *(len(item.sequences) for item in items)])[:-1]
        firsts, others = starts.tolist(), [s for s, item in zip(starts, items) for s in range(s + 2, s + len(item.sequences))]
        order = torch.tensor([*(s + 1 for s in firsts), *others], dtype=torch.int64, device=vectors.device)
        cosines = vectors[torch.tensor(firsts, device=vectors.device)] @ vectors[order].T
        names = np.array([*(item.target[0] for item in items), *(name for item in items for name in item.target[1:])])
        return cosines.masked_fill(torch.from_numpy(_same(names, len(items))).to(cosines.device), -torch.inf)

    @torch.no_grad()
    def all_vectors(self, items: Sequence[Item]) -> Float[Tensor, "s d"]:
        """Vectors of all their sequences, in their order."""
        made: list[Tensor] = [torch.zeros(0)] * len(items)
        for part in self.in_portions(items, "held-out examples"):
            found = self.vectors([items[i] for i in part]).float()
            for i, one in zip(part, torch.split(found, [len(items[i].sequences) for i in part])):
                made[i] = one
        return torch.cat(made)

    def judge(self, items: Sequence[Item]) -> Judged:
        vectors = self.all_vectors(items)
        scores = self.scores(vectors, items)
        rank = (scores > scores.diagonal()[:, None]).sum(1).float() + 1
        loss = float(self.joint_loss_sum(vectors, items)) / len(items)
        return Judged(loss, {"nearest_is_right": float((rank == 1).float().mean()), "reciprocal_rank": float((1 / rank).mean())})

    def restore(self, facts: Mapping[str, Any]) -> Self:
        width = self.model.config.hidden_size
        self.head = nn.Linear(width, width).to(self.model.head.device)
        return self


def _name(segments: Sequence[Segment]) -> int:
    """A number that equal things share; of 24 bits, so that it is exact in float32."""
    found = 0
    for one in segments:
        found = zlib.crc32(one.value.encode() if isinstance(one.value, str) else np.ascontiguousarray(one.value).tobytes(), found)
    return found & 0xFFFFFF


def _same(names: Float[np.ndarray, "c"], count: int) -> Bool[np.ndarray, "b c"]:
    """Where a candidate that is not the example's own has the text of its positive; it would be no fair negative."""
    same: np.ndarray = names[:count, None] == names[None]
    same[np.arange(count), np.arange(count)] = False
    return same
