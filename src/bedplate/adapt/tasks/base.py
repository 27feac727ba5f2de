"""What a task is: how a row becomes an item, what an item costs, and how well the held-out ones are done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bedplate.adapt.base import Base
from bedplate.adapt.encode import Item, collate, shorten
from bedplate.adapt.examples import Row
from bedplate.adapt.features import pool
from bedplate.adapt.progress import Progress, silent
from bedplate.adapt.settings import AdaptSettings
from bedplate.core.errors import ConfigError
from bedplate.core.prediction import Prediction
from bedplate.data.document import Segment
from bedplate.modality.sequence import Batch
from bedplate.modality.sequence import Sequence as Positions
from bedplate.model.batch import to_torch
from bedplate.model.config import ModelConfig
from bedplate.model.foundation import FoundationModel

JUDGED_AT_ONCE = 4096
"""Positions in memory at once where nothing is learned."""
WORTH_PRODUCTS = 512
"""Positions from which on a portion's products run at their full rate."""
LEAST_FILLED = 0.8
"""Length of the shortest item of a portion as a share of its longest, from then on (measured: docs/journal.md)."""
NOTHING = np.zeros(0, np.float32)
"""The target of an item whose sequences say all there is to learn."""


class Judged(NamedTuple):
    """How well items are done."""

    loss: float
    """The mean that training minimises."""
    scores: Mapping[str, float]
    """Name -> value of what people ask for, such as accuracy."""


class Task(ABC):
    """One job that a base can be adapted to. What it learned besides weights is in `facts`."""

    name: ClassVar[str]
    wants: ClassVar[str]
    """The columns that a row must have, in words."""
    examples_per_step: ClassVar[int] = 16
    """Examples that an update learns from where nobody says otherwise."""
    lr_share: ClassVar[float] = 1.0
    """What the method's usual learning rate is multiplied with."""

    def __init__(self, base: Base, settings: AdaptSettings) -> None:
        self.base, self.settings = base, settings
        self.head: nn.Module | None = None
        self.census: Mapping[str, int] = {}
        """Label -> examples that have it, most common first; of tasks that have labels."""
        self.progress: Progress = silent
        """Is told how far long work without steps is."""

    @property
    def model(self) -> FoundationModel:
        """The network, adapted or not."""
        return self.base.model

    @property
    def most_positions(self) -> int:
        """Longest sequence."""
        asked, held = self.settings.data.most_positions, self.model.config.max_position_embeddings
        return min(2048, held) if asked == "auto" else min(asked, held)

    def survey(self, rows: Sequence[Row]) -> None:  # noqa: B027 (most tasks learn nothing from all rows together)
        """Look at all rows once: collect the labels, find the scale of a number.

        Raises:
            DataError: the rows do not fit the task.
        """

    @abstractmethod
    def encode(self, row: Row, learn: bool = True) -> Item:
        """A row as positions and target.

        Args:
            row: one example.
            learn: it has a target; else only what to look at is read.
        Raises:
            DataError: it lacks a column, or holds something else than the task wants.
        """

    @abstractmethod
    def loss_sum(self, items: Sequence[Item]) -> Tensor:
        """Sum of the items' losses, each times its weight (a token's weight is one). Differentiable."""

    def start(self, items: Sequence[Item], held_out: Sequence[Item] = ()) -> None:  # noqa: B027
        """Make the head, and give it the best start that the frozen base allows. Nothing was trained yet.

        Args:
            items: to learn from.
            held_out: only judged; the head must not learn from them.
        """

    @abstractmethod
    def judge(self, items: Sequence[Item]) -> Judged:
        """How well the adapted network does on items. Changes nothing."""

    def calibrate(self, items: Sequence[Item]) -> Mapping[str, float]:
        """Fit what is fitted on held-out items after training; scores of what came of it."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What a worker must know besides the weights, JSON-able."""
        return {}

    def restore(self, facts: Mapping[str, Any]) -> Self:
        """Become what `facts` told; the head is made and waits for its weights."""
        return self

    def keep(self, folder: Path) -> None:  # noqa: B027
        """Write what it learned besides the network's weights, its head and its facts into an adapter folder."""

    def recall(self, folder: Path) -> None:  # noqa: B027
        """Read that back; `restore` came before.

        Raises:
            IntegrityError: it does not fit.
        """

    def target_of(self, item: Item) -> str:
        """What the head should say of an item, in words; "" where the marked tokens are all there is to learn."""
        return ""

    def regard(self, positions: Positions, states: Float[Tensor, "t d"]) -> Float[Tensor, "n d"]:
        """What the head looks at in a sequence.

        Args:
            positions: of the sequence.
            states: one for each of them, the mean of the last `layers` streams, by whoever they were computed.
        """
        return pool(states[None], torch.from_numpy(positions.sense)[None].to(states.device))

    def look(self, segments: Sequence[Segment]) -> Positions:
        """Something to be looked at, as examples are.

        Raises:
            DataError: it is nothing that the task looks at.
        """
        return self.fit(self.base.look(segments))

    def item(self, positions: Positions, text: str) -> Item:
        """Something that was read, without a target.

        Args:
            positions: of it.
            text: what it says.
        """
        return Item(0, (positions,), NOTHING, 1.0)

    def predict(self, item: Item, regarded: Float[Tensor, "n d"]) -> Prediction:
        """What the head says of an item, of what it looks at in all its sequences."""
        raise ConfigError(f"the task {self.name!r} predicts nothing", "its worker generates")

    @property
    def parents(self) -> dict[str, str]:
        """Role -> digest of what it learned from besides the base."""
        return {}

    # Shared by the tasks.

    def fit(self, positions: Positions) -> Positions:
        """At most as long as the base can hold."""
        return shorten(positions, self.most_positions)

    def batch(self, sequences: Sequence[Positions]) -> Batch:
        """Sequences as one batch on the model's device."""
        return to_torch(collate(sequences, self.base.pad_id), self.model.head.device)

    def pooled(self, sequences: Sequence[Positions]) -> Float[Tensor, "b d"]:
        """A vector a sequence: the mean over its units, or its tokens where it has none, of the upper half's streams."""
        batch = self.batch(sequences)
        return pool(self.model.hidden(batch, self.layers), batch.sense)

    @property
    def layers(self) -> int:
        """Last layers whose streams heads look at: the upper half."""
        return upper_half(self.model.config)

    def in_portions(self, items: Sequence[Item], label: str) -> Iterator[list[int]]:
        """Portions of items, each told of when it is done."""
        total, done = sum(item.positions for item in items), 0
        for part in portions(items):
            yield part
            done += sum(items[i].positions for i in part)
            self.progress(label, done, total, "positions")

    @torch.no_grad()
    def features(self, sequences: Sequence[Positions]) -> Float[np.ndarray, "n d"]:
        """Pooled features of sequences, in their order."""
        made = np.zeros((len(sequences), self.model.config.hidden_size), np.float32)
        for part in self.in_portions([Item(0, (one,), NOTHING, 1.0) for one in sequences], "features of the base"):
            made[part] = self.pooled([sequences[i] for i in part]).float().cpu().numpy()
        return made


class Joint(Task):
    """A task whose loss looks at all items of a step together, such as each one's positive among those of the others.

    Parts of a step are embedded one after the other; `train.py` gives each part its share of the joint gradient, so cutting changes nothing.
    Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (2021).
    """

    @abstractmethod
    def vectors(self, items: Sequence[Item]) -> Float[Tensor, "s d"]:
        """A vector of every sequence of every item, in their order. Differentiable."""

    @abstractmethod
    def joint_loss_sum(self, vectors: Float[Tensor, "s d"], items: Sequence[Item]) -> Tensor:
        """Sum of the items' losses, each times its weight, as each stands among all of them."""

    def loss_sum(self, items: Sequence[Item]) -> Tensor:
        return self.joint_loss_sum(self.vectors(items), items)


def upper_half(config: ModelConfig) -> int:
    """Layers in the upper half of a model."""
    return max(1, config.num_hidden_layers // 2)


def linear_head(weight: np.ndarray, bias: np.ndarray, device: torch.device) -> nn.Linear:
    """A linear layer with given numbers."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
    return head.to(device)


def portions(items: Sequence[Item], most_positions: int = JUDGED_AT_ONCE) -> Iterator[list[int]]:
    """Indices of items in portions of like length that hold at most so many positions, padding counted. Longest first.

    A portion that is worth its products ends where items become much shorter than its longest: less padding is worth more than fewer portions.
    """
    part: list[int] = []
    longest = rows = held = 0
    for index in sorted(range(len(items)), key=lambda i: -items[i].length):
        one = items[index]
        shorter = held >= WORTH_PRODUCTS and one.length < LEAST_FILLED * longest
        if part and (shorter or (rows + len(one.sequences)) * longest > most_positions):
            yield part
            part = []
        if not part:
            longest, rows, held = one.length, 0, 0
        part.append(index)
        rows, held = rows + len(one.sequences), held + one.positions
    if part:
        yield part
