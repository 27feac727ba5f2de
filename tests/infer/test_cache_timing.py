"""The benchmark that times the cache: its measure is right, and what it attacks is there to be attacked."""

import numpy as np
import pytest
from benchmarks.cache_timing import PROMPT_TOKENS, VOCABULARY, auc, interval, open_engine, seconds


def test_the_measure_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40), rng.integers(1, 11, 30)
    plainly = np.mean([1.0 if x < y else 0.5 if x == y else 0.0 for x in a for y in b])
    assert auc(a, b) == pytest.approx(plainly) and auc(b, a) == pytest.approx(1 - plainly)
    assert auc([1, 2], [3, 4]) == 1 and auc([1], [1]) == 0.5
    low, high = interval(rng.normal(size=200), rng.normal(size=200), draws=100)
    assert low < 0.5 < high and high - low < 0.2


def test_what_is_timed_is_whether_pages_are_found():
    engine = open_engine()
    positions = []
    run = engine.runner.run
    engine.runner.run = lambda step: positions.append(len(step.x)) or run(step)
    prompt = np.random.default_rng(0).integers(16, VOCABULARY, PROMPT_TOKENS)
    for tenant in ("victim", "attacker", "victim"):
        assert seconds(engine, prompt, tenant) > 0
    engine.close()
    assert positions == [PROMPT_TOKENS, PROMPT_TOKENS, 16]
