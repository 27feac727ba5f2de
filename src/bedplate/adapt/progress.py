"""Progress of what an adaptation does besides steps: reading examples, features of the frozen base, looks at what is held out."""

from __future__ import annotations

import time
from collections.abc import Callable

from bedplate.core.run import Run

Progress = Callable[[str, int, int, str], None]
"""(what is done, how many are, of how many, of what) -> told to whoever waits."""

EVERY_S = 1.0
"""Between two words about the same thing; what takes less is not told of."""


def silent(label: str, done: int, total: int, unit: str) -> None:
    """Tells nobody."""


def told(run: Run, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Tells a run's log, sparingly.

    Args:
        run: that waits.
        clock: seconds.
    """
    at: dict[str, float] = {}
    """Label -> when it was last told of, or began."""
    spoken: set[str] = set()

    def tell(label: str, done: int, total: int, unit: str) -> None:
        now = clock()
        if now - at.setdefault(label, now) >= EVERY_S or (done >= total and label in spoken):
            at[label] = now
            spoken.add(label)
            run.events.emit("progress", done=done, total=total, unit=unit, label=label)
        if done >= total:  # the next time it is another job
            at.pop(label)
            spoken.discard(label)

    return tell
