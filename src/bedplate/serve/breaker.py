"""Circuit breaker: a place that keeps failing is left alone for a while, then tried with a few questions before it is trusted again.

    closed --failures in a row--> open --after open_s--> half-open --a success--> closed
                                    ^---------- a failure ----------|
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bedplate.core.errors import ConfigError

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class BreakerSettings:
    """When a place is left alone."""

    failures: int = 5
    """Failures in a row after which it is left alone."""
    open_s: float = 30.0
    """How long it is left alone."""
    probes: int = 1
    """Questions that try it at once afterwards."""

    def __post_init__(self) -> None:
        if self.failures < 1 or not self.open_s > 0 or self.probes < 1:
            raise ConfigError("a breaker needs failures and probes of at least 1 and open_s above 0", "5 failures, 30 s, 1 probe are usual")


class Pass:
    """Leave to try a place once; exactly one of its outcomes is told, further ones are ignored."""

    def __init__(self, breaker: Breaker, probe: bool) -> None:
        self._breaker, self.probe, self._open = breaker, probe, True

    def succeeded(self) -> None:
        """It answered."""
        self._told("success")

    def failed(self) -> None:
        """It is to blame for having failed."""
        self._told("failure")

    def abandoned(self) -> None:
        """Nothing was learned: cancelled, or the question was at fault."""
        self._told("nothing")

    def _told(self, outcome: str) -> None:
        self._breaker._told(self, outcome)


class Breaker:
    """Of one place. Safe from any thread; time is handed in."""

    def __init__(self, settings: BreakerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock = clock
        self._turn = threading.Lock()
        self._failures = 0
        self._opened_s: float | None = None
        self._probes = 0

    @property
    def state(self) -> State:
        """Where it stands now."""
        with self._turn:
            return self._state()

    def enter(self) -> Pass | None:
        """Leave to try the place; None: leave it alone now."""
        with self._turn:
            state = self._state()
            if state == "open" or (state == "half-open" and self._probes >= self.settings.probes):
                return None
            probe = state == "half-open"
            self._probes += probe
            return Pass(self, probe)

    @property
    def wait_s(self) -> float:
        """Seconds until it is tried again; 0: it may be tried."""
        with self._turn:
            return 0.0 if self._opened_s is None else max(0.0, self._opened_s + self.settings.open_s - self._clock())

    def _state(self) -> State:
        if self._opened_s is None:
            return "closed"
        return "open" if self._clock() - self._opened_s < self.settings.open_s else "half-open"

    def _told(self, leave: Pass, outcome: str) -> None:
        with self._turn:
            if not leave._open:
                return
            leave._open = False
            self._probes -= leave.probe
            if outcome == "success":
                if leave.probe or self._opened_s is None:  # an answer to a question of before it failed does not close it
                    self._failures, self._opened_s = 0, None
            elif outcome == "failure":
                self._failures += 1
                if leave.probe or (self._opened_s is None and self._failures >= self.settings.failures):
                    self._opened_s = self._clock()
