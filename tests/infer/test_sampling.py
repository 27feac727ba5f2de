"""Draws: every setting has its effect, shares come out as computed, and only logits, settings, seed and place decide."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import StateError
from bedplate.core.generation import Sampling
from bedplate.infer.sampling import draw, logprobs, plain

V = 200
LOGITS = (2.5 * np.random.default_rng(0).standard_normal(V)).astype(np.float32)
NONE = np.zeros(0, np.int64)
DRAWS = 4000


def drawn(sampling, logits=LOGITS, count=DRAWS, prompt=NONE, said=NONE, constraint=None):
    return np.bincount([draw(logits, sampling, place, prompt, said, constraint).token for place in range(count)], minlength=len(logits))


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def kept(probabilities, top_k=0, top_p=1.0, min_p=0.0):
    """The plain way: order all, keep the k likeliest and renormalise, of those the first that reach the probability and a share of the first."""
    order = np.argsort(-probabilities, kind="stable")[: top_k or None]
    shares = probabilities[order] / probabilities[order].sum()
    stays = (np.cumsum(shares) - shares < top_p) & (shares >= min_p * shares[0])
    result = np.zeros_like(probabilities)
    result[order[stays]] = shares[stays] / shares[stays].sum()
    return result


def chi_square_fits(counts, probabilities):
    """Whether counts are such as one draw in a million exceeds; cells of few expected draws are one cell."""
    expected = probabilities * counts.sum()
    assert not counts[probabilities == 0].any(), "a token that cannot come came"
    large = expected >= 5
    seen, wanted = [*counts[large], counts[~large].sum()], [*expected[large], expected[~large].sum()]
    cells = [(a, b) for a, b in zip(seen, wanted) if b > 0]
    statistic, freedom = sum((a - b) ** 2 / b for a, b in cells), len(cells) - 1
    # Wilson and Hilferty's cube root: nearly normal.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom)) if freedom else 0.0
    return z < 4.75


@pytest.mark.parametrize("asked", [
    {}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 7}, {"top_k": 1}, {"top_p": 0.9}, {"top_p": 0.3}, {"min_p": 0.1}, {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.8}, {"top_k": 20, "top_p": 0.95, "min_p": 0.05, "temperature": 1.5}, {"temperature": 50.0, "top_p": 0.99},
], ids=str)  # fmt: skip
def test_shares_come_out_as_computed(asked):
    sampling = Sampling(**{"temperature": 1.0, "seed": 5, **asked})
    filters = {name: value for name, value in asked.items() if name != "temperature"}
    expected = kept(softmax(LOGITS / sampling.temperature), **filters)
    assert chi_square_fits(drawn(sampling), expected)
    if filters:
        assert not chi_square_fits(drawn(Sampling(temperature=sampling.temperature, seed=5)), expected + 1e-12), "the setting has an effect"


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.floats(0.05, 5), st.integers(0, 30), st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 2**40))
def test_only_what_may_come_comes(seed, temperature, top_k, top_p, min_p, place):
    logits = np.random.default_rng(seed).standard_normal(60).astype(np.float32) * 4
    logits[:5] = -np.inf
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    token = draw(logits, sampling, place, NONE, NONE).token
    # At a border that rounding decides, a neighbour may come.
    generous = kept(softmax(logits / temperature), top_k, min(1.0, top_p + 1e-4), max(0.0, min_p - 1e-4))
    assert generous[token] > 0 and token == draw(logits, sampling, place, NONE, NONE).token


def test_the_likeliest_comes_at_no_temperature_and_nearly_at_a_tiny_one():
    assert drawn(Sampling(), count=20).argmax() == LOGITS.argmax() and drawn(Sampling(), count=20).max() == 20
    assert drawn(Sampling(temperature=1e-9, seed=1), count=200)[LOGITS.argmax()] == 200


def test_seed_and_place_decide_and_nothing_else():
    sampling = Sampling(temperature=1.0, seed=3)
    first = [draw(LOGITS, sampling, place, NONE, NONE).token for place in range(100)]
    assert first == [draw(LOGITS.copy(), sampling, place, np.arange(9), np.arange(3)).token for place in reversed(range(100))][::-1]
    for seed in (4, -3, 2**63, 2**64 + 4):
        assert first != [draw(LOGITS, Sampling(temperature=1.0, seed=seed), place, NONE, NONE).token for place in range(100)]
    # Neighbouring seeds and places are not alike.
    grid = np.array([[draw(LOGITS, Sampling(temperature=1.0, seed=s), p, NONE, NONE).token for p in range(40)] for s in range(40)])
    usual = (softmax(LOGITS) ** 2).sum()
    for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (grid[1:, 1:], grid[:-1, :-1])):
        assert abs((a == b).mean() - usual) < 5 * math.sqrt(usual / a.size)


def test_penalties_are_what_they_are_defined_as():
    prompt, said = np.array([1, 2, 2, 3]), np.array([3, 4, 4, 4])
    for asked, change in (
        ({"repetition_penalty": 1.7}, lambda x, i: (x / 1.7 if x > 0 else x * 1.7) if i in (1, 2, 3, 4) else x),
        ({"repetition_penalty": 0.6}, lambda x, i: (x / 0.6 if x > 0 else x * 0.6) if i in (1, 2, 3, 4) else x),
        ({"presence_penalty": 1.5}, lambda x, i: x - 1.5 * (i in (3, 4))),
        ({"frequency_penalty": 0.9}, lambda x, i: x - 0.9 * {3: 1, 4: 3}.get(i, 0)),
        ({"frequency_penalty": -0.5, "presence_penalty": -1.0}, lambda x, i: x + {3: 1.5, 4: 2.5}.get(i, 0)),
        ({"logit_bias": {2: 3.0, 4: -2.5, 9999: 50.0, -1: 50.0}}, lambda x, i: x + {2: 3.0, 4: -2.5}.get(i, 0)),
        ({"logit_bias": {int(LOGITS.argmax()): -100}}, lambda x, i: -np.inf if i == LOGITS.argmax() else x),
    ):
        expected = np.array([change(float(x), i) for i, x in enumerate(LOGITS)], np.float32)
        before = LOGITS.copy()
        assert chi_square_fits(drawn(Sampling(temperature=1.0, seed=8, **asked), prompt=prompt, said=said), softmax(expected)), asked
        assert np.array_equal(LOGITS, before), "what others read stays as it is"
        assert draw(LOGITS, Sampling(**asked), 0, prompt, said).token == expected.argmax()
    forced = int(LOGITS.argmin())
    assert drawn(Sampling(temperature=1.0, logit_bias={forced: 100}), count=50)[forced] == 50


def test_a_forced_token_is_not_said_where_nobody_may_say_it():
    logits = LOGITS.copy()
    logits[7] = -np.inf  # such as the mark of a picture
    assert drawn(Sampling(temperature=1.0, logit_bias={7: 100}), logits, 200)[7] == 0


class Only:
    """A constraint that lets some tokens come."""

    ended = False

    def __init__(self, tokens):
        self.tokens = tokens

    def allow(self, words):
        if self.tokens is None:
            return False
        bits = np.zeros(len(words) * 32, np.uint8)
        bits[list(self.tokens)] = 1
        words[:] = np.packbits(bits, bitorder="little").view(np.int32)
        return True


def test_a_constraint_leaves_what_may_come():
    for tokens in ([0], [31, 32, 63, 64], [V - 1, 5], range(V)):
        allowed = np.where(np.isin(np.arange(V), list(tokens)), LOGITS, -np.inf)
        assert chi_square_fits(drawn(Sampling(temperature=1.0), constraint=Only(tokens)), softmax(allowed))
        assert draw(LOGITS, Sampling(), 0, NONE, NONE, Only(tokens)).token == allowed.argmax()
    assert draw(LOGITS, Sampling(), 0, NONE, NONE, Only(None)).token == LOGITS.argmax()
    forced = drawn(Sampling(temperature=1.0, logit_bias={3: 100}), constraint=Only([1, 2]), count=100)
    assert forced[3] == 0 and forced.sum() == 100, "a bias does not break a constraint"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_nothing_may_come_nothing_is_made_up(temperature):
    logits = LOGITS.copy()
    logits[[0, 9]] = -np.inf
    for tokens in ([], [0, 9]):
        with pytest.raises(StateError, match="no token"):
            draw(logits, Sampling(temperature=temperature), 0, NONE, NONE, Only(tokens))


@pytest.mark.parametrize("most", [0, 1, 5, 20])
def test_logarithms_are_the_unchanged_distributions(most):
    expected = np.log(softmax(LOGITS))
    one = draw(LOGITS, Sampling(temperature=0.3, top_k=3, presence_penalty=2.0, logprobs=most), 4, NONE, np.array([int(LOGITS.argmax())]))
    assert one.logprob == pytest.approx(expected[one.token], abs=1e-5)
    order = np.argsort(-LOGITS, kind="stable")[:most]
    assert [token for token, _ in one.top] == order.tolist()
    assert [value for _, value in one.top] == pytest.approx(expected[order].tolist(), abs=1e-5)
    assert len(logprobs(LOGITS[:3], 0, 20).top) == 3 and math.isnan(draw(LOGITS, Sampling(), 0, NONE, NONE).logprob)


def test_only_what_changes_nothing_is_plain():
    assert plain(Sampling(), None) and plain(Sampling(top_k=3, seed=4, top_p=0.5), None)
    for asked in ({"temperature": 0.1}, {"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": -0.1}, {"logit_bias": {1: 1.0}}, {"logprobs": 0}):
        assert not plain(Sampling(**asked), None), asked
    assert not plain(Sampling(), Only([1]))
