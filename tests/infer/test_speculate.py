"""Guesses are those of the slow twin whatever way the sequence grew, and are kept exactly as far as they came true."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bedplate.infer.speculate import Lookup, accepted, draft

TOKENS = st.lists(st.integers(0, 3), max_size=40)


@given(TOKENS, TOKENS, st.integers(0, 9))
def test_a_lookup_guesses_what_its_slow_twin_guesses(first, more, most):
    lookup = Lookup(np.array(first, np.int64))
    for token in more:
        lookup.extend([token])
    assert lookup.draft(most).tolist() == draft(np.array(first + more), most).tolist() == Lookup(first + more).draft(most).tolist()
    assert len(lookup.draft(most)) in (0, most)


def test_the_longest_match_counts_and_of_equals_the_last():
    assert draft(np.array([1, 2, 3, 4, 9, 3, 4, 8, 1, 2, 3, 4]), 1).tolist() == [9]
    assert draft(np.array([3, 4, 9, 3, 4, 8, 3, 4]), 2).tolist() == [8, 3]


def test_what_goes_round_is_guessed_to_go_on():
    assert draft(np.array([7, 5, 6, 5, 6, 5, 6]), 5).tolist() == [5, 6, 5, 6, 5]


@given(TOKENS, TOKENS)
def test_what_came_true_is_the_beginning_that_is_equal(guess, drawn):
    count = accepted(np.array(guess, np.int64), drawn)
    assert guess[:count] == drawn[:count] and (count == min(len(guess), len(drawn)) or guess[count] != drawn[count])


@given(st.integers(0, 10_000))
def test_a_guess_that_is_compared_with_the_draw_changes_no_distribution(seed):
    """A model of three tokens that depend on the one before, drawn with noise that is a function of the place: with guesses and without, the same sequence."""
    table = np.random.default_rng(1).dirichlet([1, 1, 1], 3)

    def token(before, place):
        return int(np.random.default_rng([seed, place]).choice(3, p=table[before]))

    plain = [0]
    while len(plain) < 30:
        plain.append(token(plain[-1], len(plain)))
    fast, steps = [0], 0
    while len(fast) < 30:
        guess = draft(np.array(fast), 4)
        drawn = []
        for number in range(len(guess) + 1):
            drawn.append(token(([*fast, *guess.tolist()])[len(fast) + number - 1], len(fast) + number))
        fast += drawn[: accepted(guess, drawn) + 1]
        steps += 1
    assert fast[:30] == plain and steps <= 29
