"""Probes and label efficiency: they learn what is there, from labels alone, and never look at the test part."""

import numpy as np
import pytest

from bedplate.adapt.encode import collate
from bedplate.adapt.features import features, look_at
from bedplate.adapt.label_efficiency import Recipe, balanced_draw, best_rate, label_efficiency
from bedplate.adapt.probe import PENALTIES, fit_probe
from bedplate.data.corpus import StoredSegment
from bedplate.testing.corpora import tiny_specs
from bedplate.testing.models import tiny_model


def blobs(n, seed, spread=0.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    centres = np.array([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]], float)
    return centres[labels] + spread * rng.normal(size=(n, 4)), labels


def test_a_probe_finds_what_is_linear():
    x, y = blobs(120, 0)
    probe = fit_probe(x, y, 3)
    x2, y2 = blobs(500, 1)
    assert (probe.predict(x2) == y2).mean() > 0.93 and probe.penalty in PENALTIES


def test_noise_is_met_with_a_stronger_penalty():
    rng = np.random.default_rng(0)
    noise = fit_probe(rng.normal(size=(60, 200)), rng.integers(0, 3, 60), 3).penalty
    x, y = blobs(300, 0, 0.3)
    assert fit_probe(x, y, 3).penalty <= noise


def test_a_probe_equals_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model", reason="a part of the extra `oracle`")
    x, y = blobs(200, 0, 1.0)
    probe = fit_probe(x, y, 3)
    standard = (x - x.mean(0)) / (x.std(0) + 1e-6)
    theirs = linear.LogisticRegression(C=1 / (len(x) * probe.penalty), max_iter=1000).fit(standard, y)
    assert (probe.predict(x) == theirs.predict(standard)).mean() > 0.99


@pytest.mark.parametrize("size", [3, 10, 29])
def test_labels_are_drawn_evenly(size):
    labels = np.random.default_rng(0).integers(0, 3, 300)
    drawn = balanced_draw(labels, size, 3, seed=1)
    counts = np.bincount(labels[drawn], minlength=3)
    assert len(set(drawn)) == size and counts.max() - counts.min() <= 1
    assert not np.array_equal(drawn, balanced_draw(labels, size, 3, seed=2))


def drawings(n, seed):
    """Bright above or bright below, in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    pictures = rng.integers(0, 60, (n, 16, 16, 1))
    for picture, label in zip(pictures, labels):
        picture[8 * label : 8 * label + 8] += 180
    return [[StoredSegment("image", p.astype(np.uint8))] for p in pictures], labels


def test_every_method_learns_and_the_base_stays_as_it_is():
    model = tiny_model(senses=tiny_specs(), random=True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    train, train_labels = drawings(60, 0)
    test, test_labels = drawings(40, 1)
    results = label_efficiency(model, train, train_labels, test, test_labels, sizes=(10, 1000), seeds=(0,))
    assert [(r.method, r.labels) for r in results] == [("probe", 10), ("finetune", 10), ("scratch", 10)]
    assert all(r.mean > 0.8 for r in results)
    assert all((before[name] == p).all() for name, p in model.named_parameters())


def test_the_rate_is_the_one_that_is_right_on_things_not_learned_from():
    model = tiny_model(senses=tiny_specs(), random=True)
    train, labels = drawings(40, 0)
    judged, judged_labels = drawings(40, 1)
    recipe = Recipe({"finetune": (3e-3, 1e-12)}, batch=8, steps={40: 30})
    assert best_rate(model, "finetune", train, labels, judged, judged_labels, 2, 0, recipe) == 3e-3


def test_steps_are_those_of_the_next_larger_number_of_labels():
    recipe = Recipe(steps={1000: 9, 50: 3})
    assert [recipe.steps_for(n) for n in (10, 50, 51, 1000, 5000)] == [3, 3, 9, 9, 9]


def test_features_do_not_depend_on_their_neighbours():
    model = tiny_model(senses=tiny_specs(), random=True)
    pictures, _ = drawings(5, 0)
    together = features(model, pictures)
    np.testing.assert_allclose(together[3], features(model, pictures[3:4])[0], rtol=1e-4, atol=1e-5)
    text = [StoredSegment("text", np.arange(20, 60, dtype=np.uint16))]
    mixed = features(model, [pictures[0], text])
    np.testing.assert_allclose(mixed[0], together[0], rtol=1e-4, atol=1e-5)


def test_a_picture_that_is_looked_at_is_one_block():
    model = tiny_model(senses=tiny_specs())
    batch = collate([look_at(model, drawings(1, 0)[0][0])], 1)
    assert (batch.block[batch.sense == 1] == 1).all() and not batch.unit_loss["image"].any()
