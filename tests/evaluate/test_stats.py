"""Intervals and comparisons: against scipy and scikit-learn, their laws, and how often they hold what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.adapt.calibrate import expected_calibration_error
from bedplate.evaluate.stats import STATISTICS, difference, mcnemar, newcombe, score, wilson, words

COUNTS = st.integers(0, 60)


@given(COUNTS, st.integers(1, 60))
def test_wilson_and_mcnemar_are_scipys(right, more):
    from scipy.stats import binomtest

    of = right + more
    theirs = binomtest(right, of).proportion_ci(method="wilson")
    assert wilson(right, of) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert mcnemar(right, more) == pytest.approx(min(1.0, binomtest(right, of, 0.5).pvalue), rel=1e-9)


def test_wilson_ends_at_the_ends():
    assert wilson(0, 9)[0] == 0 and wilson(9, 9)[1] == 1 and wilson(0, 9)[1] > 0.2


def test_newcombe_stays_as_it_is():
    """Two tables of 50 pairs, one without and one with the correction of phi."""
    assert newcombe(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert newcombe(20, 12, 2, 16) == pytest.approx((0.0562, 0.3292), abs=5e-5)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_newcombe_holds_the_difference_and_turns_with_its_models(both, first, second, neither):
    n = both + first + second + neither
    if not n:
        return
    low, high = newcombe(both, first, second, neither)
    assert -1 <= low <= (first - second) / n <= high <= 1
    assert newcombe(both, second, first, neither) == pytest.approx((-high, -low), abs=1e-12)
    assert low < high, "two models that agree on a few examples may still differ"


def test_bootstrap_is_scipys():
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).exponential(3, 80)
    ours = score("mean", {"value": values})
    theirs = bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=1).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.06)
    perplexity = score("perplexity", {"nats": values})
    assert perplexity.value == pytest.approx(math.exp(values.mean()))
    assert (math.log(perplexity.low), math.log(perplexity.high)) == pytest.approx((theirs.low, theirs.high), abs=0.06)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40))
def test_macro_f1_is_scikit_learns(pairs):
    from sklearn.metrics import f1_score

    label, said = map(list, zip(*pairs))
    assert STATISTICS["macro_f1"](np.array(label), np.array(said)).value == pytest.approx(f1_score(label, said, average="macro"))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=120))
def test_calibration_is_the_one_of_adaptation(pairs):
    confidence, right = np.array([c for c, _ in pairs]), np.array([r for _, r in pairs])
    assert STATISTICS["calibration"](confidence, right).value == pytest.approx(expected_calibration_error(confidence, right))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=60), st.integers(0, 3))
def test_intervals_are_in_order_and_the_same_every_time(values, seed):
    for how in ("mean", "perplexity"):
        first = score(how, {"value": values}, seed)
        assert first.low <= first.high and first == score(how, {"value": values}, seed)
        assert min(values) - 1e-9 <= score("mean", {"value": values}).low


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_difference_turns_with_its_models(pairs):
    a, b = np.array(pairs).T
    one, other = difference("share", {"right": a}, {"right": b}), difference("share", {"right": b}, {"right": a})
    assert one.value == pytest.approx(-other.value) and one.p == other.p and one.low == pytest.approx(-other.high, abs=1e-12)


def test_pairs_find_what_two_intervals_hide():
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 5, 200)
    worse, better = hard + rng.normal(0, 0.3, 200), hard + 0.2 + rng.normal(0, 0.3, 200)
    found = difference("mean", {"value": better}, {"value": worse})
    assert found.clear and found.low > 0.1 and found.high < 0.3 and found.p is None
    apart = score("mean", {"value": better}).low - score("mean", {"value": worse}).high
    assert apart < 0, "their own intervals overlap"


def test_intervals_hold_what_they_promise():
    """Of 300 samples with a known truth, about 95 in 100 intervals hold it."""
    rng = np.random.default_rng(2)
    held = {"share": 0, "mean": 0, "pair": 0}
    for _ in range(300):
        right, other = rng.random(40) < 0.8, rng.random(40) < 0.6
        low, high = score("share", {"right": right})[1:3]
        held["share"] += low <= 0.8 <= high
        value = score("mean", {"value": rng.normal(1, 2, 40)})
        held["mean"] += value.low <= 1 <= value.high
        pair = difference("share", {"right": right}, {"right": other})
        held["pair"] += pair.low <= 0.2 <= pair.high
    assert all(270 <= count <= 297 for count in held.values()), held


def test_too_few_say_so():
    alone = score("mean", {"value": [2.0]})
    assert alone.value == 2 and math.isnan(alone.low) and score("share", {"right": [True]}).low > 0.2
    assert score("ratio", {"above": [0.0, 0.0], "below": [0.0, 0.0]}).value != 0
    same = score("mean", {"value": [3.0] * 9})
    assert (same.low, same.high) == (3, 3)


def test_words():
    assert words(0.021, 0.004, 0.037, percent=True) == "+2.1 points (0.4 to 3.7)"
    assert words(-0.0001, -0.02, 0.02, percent=True) == "+0.0 points (-2.0 to 2.0)"
    assert words(-0.0123, -0.02, -0.004, percent=False) == "-0.0123 (-0.0200 to -0.0040)"
    assert words(0.0, 0.0, 0.0, percent=False) == "+0.00 (0.00 to 0.00)"
    assert words(3.0, math.nan, math.nan, percent=False) == "+3.00 (nan to nan)"
