"""A listener that keeps everything it hears of a request to the engine."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from bedplate.core.generation import Finish
from bedplate.infer.request import Drawn


class Heard:
    """What a request came to."""

    def __init__(self, enough: int | None = None) -> None:
        """Nothing yet.

        Args:
            enough: tokens after which it wants no more.
        """
        self.enough = enough
        self.drawn: list[Drawn] = []
        self.prompt: list[Drawn] = []
        self.units: list[Float[np.ndarray, "p"]] = []
        self.states: Float[np.ndarray, "t d"] | None = None
        self.cached_tokens: int | None = None
        self.finish: Finish | None = None
        self.error: Exception | None = None
        self.ends = 0
        """How often it was told that it is over; once is right."""
        self._over = threading.Event()

    def began(self, cached_tokens: int) -> None:
        assert self.cached_tokens is None and not self.ends
        self.cached_tokens = cached_tokens

    def read(self, drawn: Sequence[Drawn]) -> None:
        assert not self.ends
        self.prompt += drawn

    def heard(self, drawn: Sequence[Drawn], finish: Finish | None) -> bool:
        assert not self.ends
        self.drawn += drawn
        self.finish = finish
        enough = self.enough is not None and len(self.drawn) >= self.enough
        if finish is not None or enough:
            self._end()
        return enough

    def unit(self, unit: Float[np.ndarray, "p"]) -> None:
        assert not self.ends
        self.units.append(unit)

    def state(self, state: Float[np.ndarray, "t d"]) -> None:
        self.states = state
        self._end()

    def failed(self, error: Exception) -> None:
        self.error = error
        self._end()

    @property
    def tokens(self) -> list[int]:
        """Said so far."""
        return [one.token for one in self.drawn]

    def wait(self, timeout_s: float = 60.0) -> Heard:
        """Itself, once the request has ended.

        Raises:
            TimeoutError: it does not end.
        """
        if not self._over.wait(timeout_s):
            raise TimeoutError(f"nothing more came after {len(self.drawn)} tokens")
        return self

    def _end(self) -> None:
        self.ends += 1
        self._over.set()
