"""Seeds of several answers to one question: each its own, and none that somebody would ask for next."""

from __future__ import annotations

SEED_STEP = 0x9E3779B9
"""Between the seeds of a question's answers: no small number, as people count their own seeds by one."""


def seed_of(seed: int, number: int) -> int:
    """Of the answer with this number; the first has the question's own."""
    return (seed + number * SEED_STEP) % 2**63


def seeds(seed: int, n: int) -> list[int]:
    """Of n answers."""
    return [seed_of(seed, number) for number in range(n)]
