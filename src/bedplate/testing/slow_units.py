"""The slow twin of units made by the engine: one sequence after the other, one position a step, through the model's own cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from bedplate.infer.maker import FEWEST_UNITS, noise
from bedplate.infer.request import Request
from bedplate.model.foundation import FoundationModel
from bedplate.testing.stream import Stream


@torch.inference_mode()
def units(model: FoundationModel, request: Request) -> Iterator[Float[np.ndarray, "p"]]:
    """The units that a request comes to, one after the other.

    Args:
        model: in evaluation mode.
        request: with `making`.
    """
    making = request.making
    assert making is not None
    heads: Any = model.unit_heads[making.sense]
    places = torch.from_numpy(making.grid.astype(np.int64))
    guided = making.without is not None and making.guidance != 1.0
    streams = [Stream.of(model, positions) for positions in (request.positions, making.without if guided else None) if positions is not None]
    for number in range(len(places)):
        if making.may_end and number >= FEWEST_UNITS and float(heads.end(streams[0].last)[0, 0]) > 0:
            break
        place = places[number : number + 1]
        conditions = [heads.flow.conditions(stream.last, place) for stream in streams]
        begin = torch.from_numpy(noise(making.seed, number, heads.flow.enter.in_features))[None]
        unit = heads.flow.sample(conditions[0], begin, making.steps, conditions[1] if guided else None, making.guidance)
        yield unit[0].numpy()
        if number + 1 < len(places):
            for stream in streams:
                stream.push_units(making.sense, unit, place[0])
