"""Examples to adapt to, and whole adaptations."""

import numpy as np

from bedplate.adapt.loop import adapt
from bedplate.core.config import Resolved
from bedplate.core.run import Run
from bedplate.testing.corpora import WORDS

QUIET, BUSY = WORDS[:6], WORDS[8:14]


def labelled(n, seed=0):
    """Texts of two vocabularies."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        label = int(rng.integers(2))
        rows.append({"text": " ".join(rng.choice((QUIET, BUSY)[label], int(rng.integers(2, 12)))), "label": ("quiet", "busy")[label]})
    return rows


def run_of(asked):
    return Run.open(asked.to.with_name(asked.to.name + ".run"), "adapt", Resolved(asked, {}))


def done(asked):
    with run_of(asked) as run:
        return adapt(asked, run)
