"""What a worker's head says of what was read: a label, a number, a vector, a ranking, stretches of text; of the base, a plain vector.

A question may have several sequences, such as a query with each of its texts. Of each only what the head looks at is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bedplate.adapt.features import pool
from bedplate.adapt.tasks import Task
from bedplate.core.generation import Deliver, Finish, Piece, Ticket, Usage
from bedplate.core.prediction import Prediction, Vector
from bedplate.infer.failure import as_told
from bedplate.infer.reading import Question
from bedplate.infer.request import Drawn


class Head:
    """The prediction to one question, and the ticket of all its sequences. Calls come from the engine's thread alone, but for `cancel` and `abandon`."""

    def __init__(self, task: Task | None, question: Question, deliver: Deliver) -> None:
        """Nothing was read yet.

        Args:
            task: of the worker; None: the base's, or one's that generates.
            question: what is read.
            deliver: takes the one piece.
        """
        self.question = question
        self.tickets: list[Ticket] = []
        self.listeners = [_Sequence(self, number) for number in range(len(question.sequences))]
        self._task, self._deliver = task, deliver
        self._regarded: list[Tensor | None] = [None] * len(question.sequences)
        self._cached = 0
        self._over = False

    def cancel(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()

    def abandon(self) -> None:
        """Some of the sequences could not begin: none is told of."""
        self._over = True
        self.cancel()

    def began(self, cached_tokens: int) -> None:
        """A sequence has begun."""
        self._cached += cached_tokens

    def read(self, number: int, state: Float[np.ndarray, "t d"]) -> None:
        """The states of a sequence are there; after the last one the prediction leaves."""
        if self._over:
            return
        positions, item = self.question.sequences[number], self.question.item
        states = torch.from_numpy(np.ascontiguousarray(state))
        if item is None or self._task is None:
            self._regarded[number] = pool(states[None], torch.from_numpy(positions.sense)[None])
        else:
            self._regarded[number] = self._task.regard(positions, states.to(self._task.model.head.device))
        if all(one is not None for one in self._regarded):
            self._tell(Piece(finish="stop", usage=self._usage, prediction=self._say(torch.cat([one for one in self._regarded if one is not None]))))

    def ended(self, finish: Finish) -> None:
        """A sequence was given up, so all are."""
        self._tell(Piece(finish=finish, usage=self._usage))

    def failed(self, error: Exception) -> None:
        """A sequence came to nothing, so all have."""
        self._tell(Piece(finish="error", error=as_told(error)))

    def _say(self, regarded: Float[Tensor, "n d"]) -> Prediction:
        if self.question.item is None or self._task is None:
            return Vector(tuple(torch.nn.functional.normalize(regarded, dim=1)[0].tolist()))
        return self._task.predict(self.question.item, regarded)

    @property
    def _usage(self) -> Usage:
        return Usage(self.question.positions, self._cached, 0)

    def _tell(self, piece: Piece) -> None:
        if not self._over:
            self._over = True
            self._deliver(piece)
            self.cancel()


@dataclass
class _Sequence:
    """Hears the states of one sequence."""

    head: Head
    number: int

    def began(self, cached_tokens: int) -> None:
        self.head.began(cached_tokens)

    def read(self, drawn: Sequence[Drawn]) -> None:
        raise AssertionError("numbers were not asked for")

    def heard(self, drawn: Sequence[Drawn], finish: Finish | None) -> bool:
        if finish is not None:  # cancelled, or too late
            self.head.ended(finish)
        return finish is not None

    def unit(self, unit: Float[np.ndarray, "p"]) -> None:
        raise AssertionError("units were not asked for")

    def state(self, state: Float[np.ndarray, "t d"]) -> None:
        try:
            self.head.read(self.number, state)
        except Exception as error:  # a head's failure is its question's
            self.head.failed(error)

    def failed(self, error: Exception) -> None:
        self.head.failed(error)
