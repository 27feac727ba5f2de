"""Whether the engine's speed tells what somebody else has asked: an attacker times prompts that a victim has asked before, and others.

The engine keeps what it read of a prompt for requests that begin alike (infer/pages.py), which makes their first token come sooner. Attacked
across tenants, where nothing may be told, and within one tenant, where the attack must succeed: else it would prove nothing. AUC is the chance
that a prompt asked before comes sooner than one that was not; 0.5 is a coin.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

SIZE, VOCABULARY = "micro", 4096
PROMPT_TOKENS = 192
BATCH = 10
"""Prompts that the victim asks before the attacker looks at them, and as many others, in an order of chance."""
SEED = 0


def auc(sooner: Sequence[float], later: Sequence[float]) -> float:
    """The chance that a time of the first kind is below one of the second; equal ones count half."""
    order = np.sort(np.asarray(later))
    below = len(order) - np.searchsorted(order, sooner, side="right")
    equal = len(order) - np.searchsorted(order, sooner, side="left") - below
    return float((below + 0.5 * equal).sum() / (len(sooner) * len(order)))


def interval(sooner: Float[np.ndarray, "n"], later: Float[np.ndarray, "n"], draws: int = 1000) -> tuple[float, float]:
    """What 95% of resampled attacks come to."""
    rng = np.random.default_rng(SEED)
    n = len(sooner)
    found = [auc(sooner[rng.integers(0, n, n)], later[rng.integers(0, n, n)]) for _ in range(draws)]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


class Clock:
    """A listener that knows when the first token came."""

    def __init__(self) -> None:
        self.at = self.cached_tokens = 0.0
        self.over = threading.Event()

    def began(self, cached_tokens: int) -> None:
        self.cached_tokens = cached_tokens

    def read(self, drawn: Any) -> None:
        """Nothing was asked of the prompt."""

    def heard(self, drawn: Any, finish: Any) -> bool:
        self.at = time.perf_counter()
        self.over.set()
        return False

    def unit(self, unit: Any) -> None:
        """No units were asked for."""

    def state(self, state: Any) -> None:
        """No states were asked for."""

    def failed(self, error: Exception) -> None:
        raise error


def seconds(engine: Any, tokens: np.ndarray, tenant: str) -> float:
    """Until the first token comes."""
    from bedplate.adapt.encode import compose, said
    from bedplate.core.generation import Sampling
    from bedplate.infer.request import Request

    request, clock = Request(compose([said(tokens, False)], engine.base.model.config), Sampling(max_tokens=1), tenant=tenant), Clock()
    started = time.perf_counter()
    engine.submit(request, clock)
    clock.over.wait()
    return clock.at - started


def attack(engine: Any, victim: str, attacker: str, pairs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Times of prompts that the victim has asked before, and of prompts that nobody has."""
    times: dict[bool, list[float]] = {True: [], False: []}
    while len(times[True]) < pairs:
        prompts = rng.integers(16, VOCABULARY, (2 * BATCH, PROMPT_TOKENS))
        for asked in prompts[:BATCH]:
            seconds(engine, asked, victim)
        for number in rng.permutation(2 * BATCH):
            times[bool(number < BATCH)].append(seconds(engine, prompts[number], attacker))
    return np.array(times[True]), np.array(times[False])


def open_engine() -> Any:
    """An engine on a random model of a few million parameters."""
    from bedplate.infer.engine import Engine
    from bedplate.infer.engine_settings import EngineSettings
    from bedplate.modality.sequence import SPECIAL_TOKENS
    from bedplate.model.config import preset
    from bedplate.model.foundation import FoundationModel
    from bedplate.testing.bases import base_of

    model = FoundationModel(preset(SIZE, VOCABULARY, special_ids={name: number for number, name in enumerate(SPECIAL_TOKENS)}))
    model.initialise(SEED)
    return Engine(base_of(model.eval()), EngineSettings(threads=1, context=256, cache_bytes=2**26))


def main() -> int:
    """Attack, record; the exit code is 1 where the engine tells what it must not, or the attack is too weak to tell."""
    from benchmarks.record import append

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000)
    arguments = parser.parse_args()
    engine = open_engine()
    rng = np.random.default_rng(SEED)
    attack(engine, "a", "b", 2 * BATCH, rng)  # warms up
    across: list[np.ndarray] = [np.zeros(0), np.zeros(0)]
    within: list[np.ndarray] = [np.zeros(0), np.zeros(0)]
    while len(across[0]) < arguments.pairs:
        for found, attacker in ((across, "attacker"), (within, "victim")):
            for kind, times in enumerate(attack(engine, "victim", attacker, 5 * BATCH, rng)):
                found[kind] = np.concatenate([found[kind], times])
    name = engine.runner.name
    engine.close()
    values = {kind: (auc(*found), *interval(found[0], found[1])) for kind, found in (("between_tenants", across), ("within_a_tenant", within))}
    append(
        "cache_timing",
        conditions={
            "model": f"{SIZE}, random weights, vocabulary {VOCABULARY}",
            "runner": name,
            "threads": 1,
            "prompt": f"{PROMPT_TOKENS} random tokens, first token of the answer timed",
            "pairs": len(across[0]),
            "order": f"the victim asks {BATCH}, the attacker those and {BATCH} others in an order of chance; both attacks in turn",
            "spread": "95% of 1,000 resamplings",
        },
        metrics={
            **{f"auc_{kind}": (list(value), "AUC") for kind, value in values.items()},
            "first_token_asked_before_by_another": ((1e3 * across[0]).tolist(), "ms"),
            "first_token_never_asked": ((1e3 * across[1]).tolist(), "ms"),
            "first_token_asked_before_by_itself": ((1e3 * within[0]).tolist(), "ms"),
        },
    )
    return int(abs(values["between_tenants"][0] - 0.5) > 0.05 or values["within_a_tenant"][0] < 0.8)


if __name__ == "__main__":
    sys.exit(main())
