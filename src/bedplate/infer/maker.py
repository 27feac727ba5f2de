"""Units of pictures, sounds, clips and series, one after the other: each is sampled from the state behind the last position, and becomes the next.

Many requests advance together. A unit does not depend on which others are made beside it: the heads compute blocks of rows that always have the same
size, and the noise of a unit is a function of its request's seed and its number alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bedplate.core.generation import Finish
from bedplate.infer.request import Drawn, Request
from bedplate.infer.sequence import Running
from bedplate.model.foundation import FoundationModel

_log = logging.getLogger(__name__)
ROWS = {"cpu": 8, "cuda": 64}
"""Of a block, by device; what is left of the last is filled up. Products of one size add up in one order, so that a unit is the same in any company.
On a GPU a block costs its launches, whatever its size."""
FEWEST_UNITS = 3
"""A sound is never ended before this many units."""


class Made(NamedTuple):
    """What a step came to for one request."""

    running: Running
    unit: Float[np.ndarray, "p"] | None
    """None: there is none; the model said that it is over."""
    finish: Finish | None
    error: Exception | None = None


def noise(seed: int, number: int, width: int) -> Float[np.ndarray, "p"]:
    """Where the unit of this number begins."""
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, number]).standard_normal(width, np.float32)


class Silent:
    """The listener of what is read beside a request: nobody needs to know."""

    def began(self, cached_tokens: int) -> None: ...

    def read(self, drawn: Sequence[Drawn]) -> None: ...

    def unit(self, unit: Float[np.ndarray, "p"]) -> None: ...

    def state(self, state: Float[np.ndarray, "t d"]) -> None: ...

    def failed(self, error: Exception) -> None: ...

    def heard(self, drawn: Sequence[Drawn], finish: Finish | None) -> bool:
        return False


def beside(request: Request) -> Request | None:
    """What is read side by side with a request, for its guidance; None where there is none."""
    making = request.making
    if making is None or making.without is None or making.guidance == 1.0:
        return None
    return replace(request, positions=making.without)


class Maker:
    """Samples units with a model's own heads."""

    def __init__(self, model: FoundationModel) -> None:
        self._model = model
        self._block = ROWS["cpu" if model.head.device.type == "cpu" else "cuda"]

    def advance(self, drawing: Sequence[tuple[Running, int]], states: Float[np.ndarray, "n d"]) -> tuple[list[Made], list[tuple[Running, int]]]:
        """(what the requests for units come to, those that want something else).

        Args:
            drawing: requests that have caught up in this step, and the row of the state behind each.
            states: of the step.
        """
        caught_up = [(running, row) for running, row in drawing if running.lead.request.making is not None]
        for running, row in caught_up:
            running.state = states[row].copy()  # kept until what is read beside has caught up, too
        others = [one for one in drawing if one[0].lead.request.making is None]
        try:
            return self.make([running for running, _ in caught_up]), others
        except Exception as error:  # the heads': theirs alone who wanted units
            _log.exception("units could not be made")
            return [Made(running, None, None, error) for running, _ in caught_up], others

    @torch.inference_mode()
    def make(self, caught_up: Sequence[Running]) -> list[Made]:
        """The next unit of each that can have one. It is appended to its request, and to what is read beside it.

        Args:
            caught_up: whose state was kept in this step.
        """
        leads = {id(one.lead): one.lead for one in caught_up}
        ready = [lead for lead in leads.values() if all(part.state is not None for part in lead.together)]
        made: list[Made] = []
        groups: dict[tuple[str, int, bool], list[Running]] = {}
        for lead in ready:
            making = lead.request.making
            assert making is not None
            groups.setdefault((making.sense, making.steps, lead.beside is not None), []).append(lead)
        for (sense, steps, _), members in groups.items():
            heads: Any = self._model.unit_heads[sense]
            for block in (members[start : start + self._block] for start in range(0, len(members), self._block)):
                over = self._over(block, heads)
                made += [Made(one, None, "stop") for one, ends in zip(block, over) if ends]
                going = [one for one, ends in zip(block, over) if not ends]
                made += self._units(going, sense, steps, heads) if going else []
        return made

    def _over(self, block: Sequence[Running], heads: Any) -> list[bool]:
        """Of each, whether its last unit ended it."""
        asking = [one.request.making is not None and one.request.making.may_end and one.said >= FEWEST_UNITS for one in block]
        if not any(asking):
            return asking
        logits = heads.end(self._rows([one.state for one in block]))[: len(block), 0]
        return [asked and logit > 0 for asked, logit in zip(asking, logits.tolist())]

    def _units(self, block: Sequence[Running], sense: str, steps: int, heads: Any) -> list[Made]:
        asked = [one.request.making for one in block]
        width = heads.flow.enter.in_features
        places = np.stack([making.grid[one.said] for one, making in zip(block, asked) if making is not None]).astype(np.int64)
        begin = np.stack([noise(making.seed, one.said, width) for one, making in zip(block, asked) if making is not None])
        grid = self._filled(torch.from_numpy(places))
        condition = heads.flow.conditions(self._rows([one.state for one in block]), grid)
        without = None
        if block[0].beside is not None:
            without = heads.flow.conditions(self._rows([one.beside.state for one in block if one.beside is not None]), grid)
        guidance = self._filled(torch.tensor([[making.guidance] for making in asked if making is not None], dtype=torch.float32))
        units = heads.flow.sample(condition, self._filled(torch.from_numpy(begin)), steps, without, guidance)
        embedding: Any = self._model.unit_embeddings[sense]
        vectors = embedding(units.to(condition.dtype), grid).float().cpu().numpy()
        values = units.float().cpu().numpy()
        made = []
        for row, one in enumerate(block):
            for part in one.together:
                part.append_vector(vectors[row])
            made.append(Made(one, values[row].copy(), "length" if one.length == one.most else None))
        return made

    def _rows(self, states: Sequence[Float[np.ndarray, "d"] | None]) -> Float[Tensor, "n d"]:
        return self._filled(torch.from_numpy(np.stack([state for state in states if state is not None]))).to(self._model.head.dtype)

    def _filled(self, rows: Tensor) -> Tensor:
        """A block of rows on the model's device."""
        whole = torch.cat([rows, rows[:1].expand(self._block - len(rows), *rows.shape[1:])])
        return whole.to(self._model.head.device)

