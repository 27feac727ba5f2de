"""Course: which examples each step learns from. A pure function of the seed and the step, so that a resumed run cannot differ."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bedplate.adapt.examples import Row
from bedplate.adapt.settings import ExampleSettings

POOL = 16
"""Steps whose examples are sorted by length together: enough for like lengths, few enough to stay mixed."""
MOST_HELD_OUT = 1000


@dataclass(frozen=True)
class Course:
    """The order of the examples and the shape of the learning rate."""

    lengths: tuple[int, ...]
    """Positions of each example."""
    examples_per_step: int
    epochs: float
    warmup_share: float
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every example comes once."""
        return math.ceil(len(self.lengths) / self.examples_per_step)

    @property
    def steps(self) -> int:
        """Steps of the whole course."""
        return max(1, round(self.epochs * self.steps_per_epoch))

    def examples(self, step: int) -> list[int]:
        """Indices of the examples that a step learns from; neighbours in length."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return _epoch(self.lengths, self.examples_per_step, self.seed, epoch)[within]

    def lr_factor(self, step: int) -> float:
        """Learning rate of a step as a share of the peak: up, then linearly down; never zero before the end."""
        warmup = round(self.warmup_share * self.steps)
        return min((step + 1) / (warmup + 1), (self.steps - step) / max(1, self.steps - warmup))


@functools.lru_cache(maxsize=2)
def _epoch(lengths: tuple[int, ...], per_step: int, seed: int, epoch: int) -> list[list[int]]:
    rng = np.random.default_rng([seed, 7, epoch])
    order = rng.permutation(len(lengths))
    pools = [order[start : start + POOL * per_step] for start in range(0, len(order), POOL * per_step)]
    ordered = np.concatenate([pool[np.argsort(np.array([lengths[i] for i in pool]), kind="stable")] for pool in pools])
    steps = [ordered[start : start + per_step].tolist() for start in range(0, len(ordered), per_step)]
    return [steps[i] for i in rng.permutation(len(steps))]


def hold_out(rows: Sequence[Row], settings: ExampleSettings, seed: int) -> tuple[list[int], list[int]]:
    """(examples to learn from, examples held out): each label by its share, groups whole.

    Args:
        rows: all examples.
        settings: share and group column.
        seed: of the choice.
    """
    wanted = min(round(settings.held_out * len(rows)), MOST_HELD_OUT)
    order = np.random.default_rng([seed, 8]).permutation(len(rows)).tolist()
    if not wanted:
        return list(range(len(rows))), []
    if settings.group:
        if missing := next((row for row in rows if settings.group not in row.values), None):
            raise missing.error(f"there is no {settings.group!r}, which data.group names")
        groups: dict[str, list[int]] = {}
        for i in order:
            groups.setdefault(str(rows[i].values[settings.group]), []).append(i)
        held: list[int] = []
        for members in groups.values():
            if len(held) + len(members) <= wanted:
                held += members
    else:
        share = wanted / len(rows)
        seen: dict[str, int] = {}
        held = []
        for i in order:  # the k-th example of a label is held out where k shares of it pass a whole number
            label = str(rows[i].values.get("label", "")).strip()
            k = seen[label] = seen.get(label, 0) + 1
            if math.floor(k * share + 0.5) > math.floor((k - 1) * share + 0.5):
                held.append(i)
    chosen = set(held)
    return [i for i in range(len(rows)) if i not in chosen], sorted(held)
