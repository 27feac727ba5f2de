"""A request to the engine: positions to read, and what is wanted of the state behind them. Below this line there are tokens, no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from bedplate.core.generation import Finish, Sampling
from bedplate.modality.sequence import Sequence as Positions
from bedplate.modality.specs import ContinuousSense


class Constraint(Protocol):
    """Which tokens may come next, such as those of a JSON schema. Belongs to one request."""

    def allow(self, words: Int[np.ndarray, "w"]) -> bool:
        """Fill in the tokens that may come next as bits, 32 a word, lowest first; False: all may, and nothing was written."""
        ...

    def advance(self, token: int) -> None:
        """The token was said."""
        ...

    def kept(self, draft: Int[np.ndarray, "n"]) -> int:
        """How many tokens of a draft, from its first on, may come one after the other. Nothing moves."""
        ...

    @property
    def ended(self) -> bool:
        """Whether nothing but the end may follow."""
        ...


class Drawn(NamedTuple):
    """A token that was said."""

    token: int
    logprob: float
    """NaN where it was not asked for."""
    top: Sequence[tuple[int, float]] = ()
    """The likeliest tokens in its place with their logarithms, where they were asked for."""


class Listener(Protocol):
    """Hears what a request comes to, from the engine's thread."""

    def began(self, cached_tokens: int) -> None:
        """Reading has begun, behind so many positions that were read for an earlier request."""
        ...

    def read(self, drawn: Sequence[Drawn]) -> None:
        """The tokens of the question with their log-probabilities, where `prompt_logprobs` asks for them: one for each position, NaN for the first and for what
        is no text."""
        ...

    def heard(self, drawn: Sequence[Drawn], finish: Finish | None) -> bool:
        """Tokens of one step; the token that ends an answer is not among them. True: enough, the request ends (finish "stop" is not told again)."""
        ...

    def unit(self, unit: Float[np.ndarray, "p"]) -> None:
        """One more unit of what is made, where `making` asks for it. `heard` tells of the end."""
        ...

    def state(self, state: Float[np.ndarray, "t d"]) -> None:
        """What a request for states asked for. It is the last that is heard."""
        ...

    def failed(self, error: Exception) -> None:
        """The request came to nothing."""
        ...


@dataclass(frozen=True)
class Making:
    """Units of a sense that are wanted in place of tokens."""

    sense: ContinuousSense
    grid: Int[np.ndarray, "n 3"]
    """(frame, row, column) of each unit that is wanted, in order. Units that are known stand among the positions of the request."""
    seed: int = 0
    """Of the noise; equal seeds make equal things."""
    steps: int = 20
    """Euler steps a unit."""
    guidance: float = 1.0
    """1 follows what stands before; more exaggerates what it changes against `without`."""
    without: Positions | None = None
    """The same beginning without the caption; None: there is no guidance. Read side by side with the request: the two advance in lockstep."""
    may_end: bool = False
    """Whether the model says when it is over, as with sounds; else every place gets its unit."""


@dataclass(frozen=True)
class Request:
    """One sequence to be read and, where tokens or units are wanted, continued."""

    positions: Positions
    """What stands before, any sense."""
    sampling: Sampling = field(default_factory=Sampling)
    """n is not looked at: each answer is a request of its own; nor is stop, which is text."""
    adapter: str = ""
    """Registered name; "": the base."""
    ends: frozenset[int] = frozenset()
    """Tokens that end an answer."""
    constraint: Constraint | None = None
    tenant: str = ""
    policy: str = ""
    deadline: float | None = None
    """time.monotonic() after which nobody waits."""
    layers: int | None = None
    """None: tokens are wanted. 0: the states after the last norm. n: the mean of the last n layers' streams, each normalised."""

    prompt_logprobs: int | None = None
    """None: none; k: of each token of the question, and of the k likeliest in its place."""
    making: Making | None = None
    """None: tokens are wanted; else units."""

    @property
    def wanted(self) -> int:
        """Tokens or units that may follow."""
        if self.layers is not None:
            return 0
        return self.sampling.max_tokens if self.making is None else len(self.making.grid)
