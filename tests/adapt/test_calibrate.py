"""Calibration: honest probabilities, thresholds that keep what they promise."""

import numpy as np

from bedplate.adapt.calibrate import (
    abstention_threshold,
    best_threshold,
    expected_calibration_error,
    fit_temperature,
    log_probabilities,
    macro_f1,
    micro_f1,
    one_hot,
)


def overconfident(n, factor, seed=0):
    """Logits that are `factor` times too large, and labels drawn from the honest ones."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(n, 4)) * 1.5
    p = np.exp(log_probabilities(honest, False)[0])
    labels = np.array([rng.choice(4, p=row) for row in p])
    return honest * factor, labels


def test_the_temperature_undoes_overconfidence():
    logits, labels = overconfident(4000, 3.0)
    found = fit_temperature(logits, one_hot(labels, 4), False)
    assert 2.7 < found < 3.3
    right = logits.argmax(1) == labels
    before, after = (expected_calibration_error(np.exp(log_probabilities(logits / t, False)[0]).max(1), right) for t in (1.0, found))
    assert after < 0.03 < 0.15 < before
    assert fit_temperature(logits[:5], one_hot(labels[:5], 4), False) == 1.0, "five examples tell nothing"


def test_who_was_always_right_may_still_be_wrong_the_next_time():
    for n in (10, 1000):
        labels = np.arange(n) % 3
        logits = 4.0 * one_hot(labels, 3)
        confidence = np.exp(log_probabilities(logits / fit_temperature(logits, one_hot(labels, 3), False), False)[0]).max()
        assert 1 - 2 / (n + 2) < confidence < 1 - 0.5 / (n + 2), "about one in n + 2 is left to doubt"


def test_labels_of_which_several_hold_are_calibrated_each():
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(3000, 3))
    held = (rng.random(honest.shape) < 1 / (1 + np.exp(-honest))).astype(float)
    assert 1.8 < fit_temperature(honest * 2, held, True) < 2.2


def test_answers_are_as_often_right_as_wanted():
    logits, labels = overconfident(2000, 1.0)
    confidence, right = np.exp(log_probabilities(logits, False)[0]).max(1), logits.argmax(1) == labels
    threshold = abstention_threshold(confidence, right, 0.9)
    answered = confidence >= threshold
    assert right.mean() < 0.8 and right[answered].mean() >= 0.9 and answered.mean() > 0.1
    assert abstention_threshold(confidence, right, 0.0) == 0.0
    assert abstention_threshold(confidence, np.zeros(2000, bool), 0.5) > 1, "nothing it says is right, so it says nothing"


def test_f1_equals_its_definition():
    given, held = np.array([[1, 0], [1, 1], [0, 0]], bool), np.array([[1, 0], [0, 1], [0, 1]], bool)
    assert micro_f1(given, held) == 2 * 2 / (3 + 3) and abs(macro_f1(given, held) - 2 / 3) < 1e-12
    probabilities = np.array([[0.3], [0.35], [0.1], [0.05]] * 5)
    assert 0.1 < best_threshold(probabilities, np.array([[1.0], [1], [0], [0]] * 5)) <= 0.3
