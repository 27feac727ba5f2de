from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError
from bedplate.data.document import COMPONENTS
from bedplate.data.mixture import BLOCK, Mixture, tempered

weightings = st.dictionaries(st.sampled_from(COMPONENTS), st.floats(0.001, 1000), min_size=1)


@given(weightings, st.integers(0, 99), st.integers(0, 10**9))
def test_every_block_has_exactly_the_same_shares(weights, seed, block):
    mixture = Mixture(weights, seed)
    counts = Counter(mixture.pick(block * BLOCK + offset).component for offset in range(BLOCK))
    assert counts == {name: round(share * BLOCK) for name, share in mixture.shares.items()}
    assert sum(counts.values()) == BLOCK and set(counts) == set(weights)
    total = sum(weights.values())
    if all(weight / total * BLOCK >= 1 for weight in weights.values()):
        assert all(abs(counts[name] - weights[name] / total * BLOCK) < 1 for name in weights)


@given(weightings, st.integers(0, 99), st.integers(0, 4 * BLOCK))
def test_numbers_of_a_component_count_up_without_a_gap(weights, seed, first):
    mixture = Mixture(weights, seed)
    expected = {name: mixture.rows_before(name, first) for name in weights}
    for row in range(first, first + 300):
        component, number = mixture.pick(row)
        assert number == expected[component]
        expected[component] += 1
    assert expected == {name: mixture.rows_before(name, first + 300) for name in weights}


def test_the_seed_changes_the_order_and_nothing_else():
    one, two = (Mixture({"text": 1, "image": 1}, seed) for seed in (0, 1))
    assert [one.pick(row) for row in range(BLOCK)] != [two.pick(row) for row in range(BLOCK)]
    assert one.shares == two.shares == {"text": 0.5, "image": 0.5}


def test_a_component_without_weight_is_not_read():
    mixture = Mixture({"text": 1, "image": 0}, 0)
    assert mixture.shares == {"text": 1.0}
    assert mixture.rows_before("image", 1000) == 0


def test_tempered_shares_are_roots_of_what_there_is():
    assert tempered({"text": 900, "image": 100, "audio": 0}) == pytest.approx({"text": 0.75, "image": 0.25})


@pytest.mark.parametrize("weights", [{}, {"text": 0}, {"text": -1, "image": 3}, {"text": math.nan}, {"text": math.inf}, {"txet": 1}])
def test_weights_without_sense_are_refused(weights):
    with pytest.raises(ConfigError):
        Mixture(weights, 0)
