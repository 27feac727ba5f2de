"""One step of the engine: positions of many sequences side by side, and what computes them.

    runner = cpu.CpuRunner(base.model, ...) or torch_runner.TorchRunner(base.model, ...)
    states = runner.run(step)          # keys and values go into the pages that the step names
    logits = runner.logits(states[some])

A page holds PAGE positions of one sequence in every layer. What a page holds depends on nothing but the positions themselves, so sequences
that begin alike may share their first pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from bedplate.model.projection import Adapter

PAGE = 16
"""Positions in a page."""


class Shape(NamedTuple):
    """How large a runner's workplaces are."""

    precision: Literal["float32", "int8", "int4"]
    """Of stored weights on a processor. Below float32, activations are rounded to 8 bits and keys and values are kept in half precision."""
    context: int
    """Longest sequence."""
    pages: int
    """Of the cache."""
    positions: int
    """Most of one step."""
    rows: int
    """Most states whose logits are asked for at once."""
    threads: int
    """That compute."""
    cheap_rows: int
    """Rows of a step that cost hardly more than one."""
    block: int = 0
    """Positions of the longest picture; it is computed in one step, beyond the budget of `positions - block` where need be. A text whose words see
    what follows them may be longer: a runner makes room for it when it comes."""


class Segment(NamedTuple):
    """A stretch of a step's positions that one adapter changes."""

    start: int
    end: int
    adapter: str


@dataclass
class Step:
    """Positions to compute. Those of one sequence stand together and in order."""

    x: Float[np.ndarray, "n d"]
    """Embedded positions, float32."""
    sequence: Int[np.ndarray, "n"]
    """Row of `table`."""
    position: Int[np.ndarray, "n"]
    """Place in its sequence."""
    until: Int[np.ndarray, "n"]
    """The last position it sees: its own, or the end of the picture that it belongs to, which must be in the same step."""
    slot: Int[np.ndarray, "n"]
    """Where its key and value go: page x PAGE + place."""
    table: Int[np.ndarray, "s p"]
    """Pages of each sequence, in order; filled up with any."""
    segments: Sequence[Segment] = field(default_factory=tuple)
    """In order; positions of none are the base's."""
    layers: int | None = None
    """n: give also the mean of the last n layers' normalised streams."""


class States(NamedTuple):
    """What a step came to."""

    last: Float[np.ndarray, "n d"]
    """After the last norm. Overwritten by the next step."""
    mean: Float[np.ndarray, "n d"] | None
    """Where `Step.layers` asked for it."""


class Packed(NamedTuple):
    """An adapter as one runner computes with it."""

    bytes: int
    """That it takes."""
    parts: Any
    """The runner's own."""


class Runner(Protocol):
    """Computes steps. Not safe to share between threads, but for `pack`."""

    pages: int
    """Of the cache."""
    most_positions: int
    """Of one step, so far."""
    name: str
    """What computes, and in which numbers: "cpu int8", "torch float32 cuda"."""

    def run(self, step: Step) -> States:
        """The states of a step's positions."""
        ...

    def logits(self, states: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m v"]:
        """Logits of states. Overwritten by the next call."""
        ...

    def likeliest(self, logits: Float[np.ndarray, "m v"]) -> Int[np.ndarray, "m"]:
        """The first of the largest logits of each row."""
        ...

    def pack(self, adapters: Mapping[str, Adapter]) -> Packed:
        """Make an adapter ready to be put; from any thread, also while a step is computed.

        Args:
            adapters: projection's name -> change.
        """
        ...

    def put(self, name: str, packed: Packed) -> None:
        """Let segments name an adapter."""
        ...

    def drop(self, name: str) -> None:
        """Forget an adapter."""
        ...

    def close(self) -> None:
        """Let go of threads and memory."""
        ...
