"""Portions of requests side by side, as one step's arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from bedplate.infer.pages import pages_for
from bedplate.infer.scheduler import Portion
from bedplate.infer.step import PAGE, Segment, Step


def assemble(portions: Sequence[Portion], table_of_tokens: Float[np.ndarray, "v d"]) -> Step:
    """The positions of portions, one portion after the other.

    Args:
        portions: those that one adapter changes stand together.
        table_of_tokens: each token as a vector.
    """
    n = sum(p.end - p.start for p in portions)
    x = np.empty((n, table_of_tokens.shape[1]), np.float32)
    sequence, position, until, slot = (np.empty(n, np.int32) for _ in range(4))
    width = max(pages_for(p.end) for p in portions)
    table = np.zeros((len(portions), width), np.int32)
    segments: list[Segment] = []
    layers: int | None = None
    at = 0
    for number, (running, start, end) in enumerate(portions):
        here = slice(at, at + end - start)
        known = running.length
        ids = running.ids[start : min(end, known)]
        if len(running.drafted) and end > known:
            ids = np.concatenate([ids, running.drafted[: end - known]])
        x[here] = table_of_tokens[ids]
        if running.embedded is not None:
            part = running.embedded[start:end]
            x[at : at + len(part)] = part
        sequence[here] = number
        places = np.arange(start, end, dtype=np.int32)
        position[here], until[here] = places, running.sees(start, end)
        pages = table[number, : len(running.pages)] = np.array(running.pages[:width], np.int32)
        slot[here] = pages[places // PAGE] * PAGE + places % PAGE
        if running.changes:
            if segments and segments[-1].adapter == running.changes:
                segments[-1] = segments[-1]._replace(end=here.stop)
            else:
                segments.append(Segment(here.start, here.stop, running.changes))
        if running.request.layers:
            layers = running.request.layers
        at = here.stop
    return Step(x, sequence, position, until, slot, table, segments, layers)


def alike(portions: Sequence[Portion]) -> list[list[Portion]]:
    """Portions that one step can compute: all but those that want the mean of another number of layers."""
    depths = sorted({portion.running.request.layers or 0 for portion in portions} - {0}) or [0]
    first = [portion for portion in portions if (portion.running.request.layers or 0) in (0, depths[0])]
    rest = [[portion for portion in portions if portion.running.request.layers == depth] for depth in depths[1:]]
    return [part for part in (first, *rest) if part]
