"""What a worker's head says of what was read: a vector, or a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from bedplate.adapt.features import pool
from bedplate.adapt.tasks import Task
from bedplate.adapt.tasks.classify import Classify
from bedplate.adapt.tasks.embed import Embed
from bedplate.core.generation import Ask, Deliver, Finish, Label, Piece, Usage
from bedplate.infer.failure import as_told
from bedplate.infer.request import Drawn
from bedplate.modality.sequence import Sequence as Positions


@dataclass
class Head:
    """Hears the states behind a question, and says what the worker's head makes of them."""

    ask: Ask
    task: Task | None
    positions: Positions
    deliver: Deliver
    text: str
    """What was asked, in words."""
    cached: int = 0

    def began(self, cached_tokens: int) -> None:
        self.cached = cached_tokens

    def read(self, drawn: Sequence[Drawn]) -> None:
        raise AssertionError("numbers were not asked for")

    def heard(self, drawn: Sequence[Drawn], finish: Finish | None) -> bool:
        if finish is not None:  # cancelled, or too late
            self.deliver(Piece(finish=finish, usage=Usage(len(self.positions), self.cached, 0)))
        return finish is not None

    def unit(self, unit: Float[np.ndarray, "p"]) -> None:
        raise AssertionError("units were not asked for")

    def state(self, state: Float[np.ndarray, "t d"]) -> None:
        pooled = pool(torch.from_numpy(np.ascontiguousarray(state))[None], torch.from_numpy(self.positions.sense)[None])
        usage = Usage(len(self.positions), self.cached, 0)
        if self.ask.want == "label":
            assert isinstance(self.task, Classify)
            found = self.task.of_pooled(pooled.to(self.task.model.head.device), [self.text])[0]
            self.deliver(Piece(finish="stop", usage=usage, label=Label(found.label or "", found.probabilities)))
            return
        if isinstance(self.task, Embed):
            vector = self.task.of_pooled(pooled.to(self.task.model.head.device), [self.text])[0].vector
        else:
            vector = tuple(torch.nn.functional.normalize(pooled, dim=1)[0].tolist())
        self.deliver(Piece(finish="stop", usage=usage, vector=vector))

    def failed(self, error: Exception) -> None:
        self.deliver(Piece(finish="error", error=as_told(error)))
