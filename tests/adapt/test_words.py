"""The spelling of texts: what is counted, how it multiplies, what it learns, and how it is weighed against the base."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from adaptations import done, labelled
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from bedplate.adapt import words
from bedplate.adapt.probe import unseen_scores
from bedplate.adapt.settings import AdaptSettings, ClassifySettings, ExampleSettings, MethodSettings, TrainSettings
from bedplate.adapt.weigh import FOLDS, folds, weigh
from bedplate.adapt.words import Rows, Spelling, WordScores, fit_words, pieces
from bedplate.core.errors import DataError, IntegrityError
from bedplate.infer.worker import Worker

TEXTS = ["The loader calls VirtualAlloc,  then VirtualProtect.", "It calls virtualalloc", "a bb ccc", "schtasks /create /tn «Über»", "", "the the the"]


def test_texts_are_weighed_as_scikit_learn_does():
    counted = pytest.importorskip("sklearn.feature_extraction.text", reason="a part of the extra `oracle`")
    theirs = counted.TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)
    expected = theirs.fit_transform(TEXTS * 2 + ["once only"]).toarray()
    ours = Spelling.of(TEXTS * 2 + ["once only"]).rows(TEXTS * 2 + ["once only"])
    assert ours.width == expected.shape[1]
    np.testing.assert_allclose(ours.dense() @ ours.dense().T, expected @ expected.T, atol=1e-5)


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_any_text_is_cut_and_has_length_one_or_none(texts):
    rows = Spelling.of(texts).rows(texts).dense()
    lengths = np.linalg.norm(rows, axis=1)
    assert rows.shape[0] == len(texts) and (np.isclose(lengths, 1, atol=1e-5) | (lengths == 0)).all()
    found = pieces(texts)
    for row, text in enumerate(texts):
        spaced = " " + " ".join(text.lower().split()) + " "
        inside = {spaced[i : i + n] for n in words.LENGTHS for i in range(len(spaced) - n + 1) if " " not in spaced[i + 1 : i + n - 1]} - {"  "}
        assert (found.rows == row).sum() == len(inside)


def test_case_and_space_do_not_matter_and_the_unknown_is_nothing():
    spelling = Spelling.of(TEXTS)
    np.testing.assert_array_equal(*(spelling.rows([text]).dense() for text in ("It  Calls\nVirtualAlloc", "it calls virtualalloc")))
    assert not spelling.rows(["ωψχ"]).dense().any() and spelling.rows([]).dense().shape == (0, len(spelling.known))


def test_only_what_most_texts_have_is_kept(monkeypatch):
    monkeypatch.setattr(words, "MOST_PIECES", 3)
    spelling = Spelling.of(["ab", "ab", "ab", "abx", "cd", "cd"])
    assert len(spelling.known) == 3 and spelling.rows(["ab"]).dense().any() and not spelling.rows(["cd"]).dense().any()


def test_rows_multiply_like_their_dense_twin():
    rng = np.random.default_rng(0)
    dense = (rng.random((7, 5)) * (rng.random((7, 5)) < 0.4)).astype(np.float32)
    dense[2], dense[:, 3] = 0, 0
    row, column = np.nonzero(dense)
    sparse = Rows(row, column, dense[row, column], 7, 5)
    left, right = torch.from_numpy(rng.random((5, 3)).astype(np.float32)), torch.from_numpy(rng.random((7, 3)).astype(np.float32))
    np.testing.assert_allclose(sparse.times(left), dense @ left.numpy(), rtol=1e-5)
    np.testing.assert_allclose(sparse.transposed_times(right), dense.T @ right.numpy(), rtol=1e-5)
    chosen = np.array([True, False, True, True, False, False, True])
    np.testing.assert_array_equal(sparse.take(chosen).dense(), dense[chosen])
    assert not Rows(*(np.zeros(0, int),) * 2, np.zeros(0, np.float32), 2, 4).times(torch.ones(4, 3)).any()


def hot(rows):
    return np.eye(2, dtype=np.float32)[[int(row["label"] == "busy") for row in rows]]


def test_scores_are_those_of_scikit_learns_machine(monkeypatch):
    machine = pytest.importorskip("sklearn.svm", reason="a part of the extra `oracle`")
    rows = labelled(60)
    texts, targets, weights = [row["text"] for row in rows], hot(rows), np.linspace(0.5, 2, 60)
    monkeypatch.setattr(words, "ITERATIONS", 300)
    scorer, _ = fit_words(texts, targets, "softmax", np.arange(60) % 2, weights, (1e-2,))
    # Theirs holds the bias back too, unless it is counted in large units.
    theirs = machine.LinearSVC(C=1 / (60 * 1e-2), intercept_scaling=100, tol=1e-5, max_iter=100_000)
    theirs.fit(Spelling.of(texts).rows(texts).dense(), targets[:, 1], sample_weight=weights / weights.mean())
    expected = theirs.decision_function(Spelling.of(texts).rows(texts).dense())
    np.testing.assert_allclose(scorer.scores(texts)[:, 1], expected, atol=0.01)
    np.testing.assert_allclose(scorer.scores(texts)[:, 0], -expected, atol=0.01)


def test_unseen_scores_are_of_the_other_folds_alone():
    rows = labelled(80)
    texts, targets, fold = [row["text"] for row in rows], hot(rows), np.arange(80) % 4
    wrong = targets.copy()
    wrong[fold == 2] = 1 - wrong[fold == 2]  # what a fold's own labels say must not reach its own scores
    features = np.random.default_rng(0).normal(size=(80, 3))
    for unseen in (
        lambda y: fit_words(texts, y, "softmax", fold, np.ones(80), (1e-2,))[1],
        lambda y: unseen_scores(features, y, "softmax", fold, 0.1, np.ones(80)),
    ):
        before, after = unseen(targets), unseen(wrong)
        assert np.abs(before[fold == 1] - after[fold == 1]).max() > 0.01
        np.testing.assert_allclose(before[fold == 2], after[fold == 2], atol=1e-3)


def test_folds_keep_groups_whole_and_are_about_equal():
    groups = [f"g{i % 23}" for i in range(200)] + [""] * 50
    fold = folds(groups, 0)
    assert all(len({f for f, g in zip(fold, groups) if g == name}) == 1 for name in set(groups) - {""})
    sizes = np.bincount(fold, minlength=FOLDS)
    assert sizes.max() - sizes.min() <= 2 and len(set(fold[200:])) == FOLDS and (fold != folds(groups, 1)).any()


def test_a_scorer_counts_as_much_as_it_tells():
    rng = np.random.default_rng(0)
    targets = np.eye(3)[rng.integers(0, 3, 400)]
    good, noise = 2 * targets + rng.normal(size=(400, 3)), rng.normal(size=(400, 3))
    scales = weigh([good, noise], targets, "softmax", np.ones(400))
    assert scales[0] > 1 and 0 <= scales[1] < 0.2
    twice = weigh([good / 2, noise], targets, "softmax", np.ones(400))
    np.testing.assert_allclose(twice[0], 2 * scales[0], rtol=0.01)


def asked(base_folder, file, folder, method="probe", **choices):
    return AdaptSettings(
        base_folder, folder / "to", "classify", ExampleSettings(file), MethodSettings(method), ClassifySettings(**choices),
        train=TrainSettings(threads=1, epochs=1, lr=1e-3),
    )  # fmt: skip


def spelled(n, seed=0):
    """Random letters, and a label that one name among them tells."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    noise = ["".join(rng.choice(list("abcdefgh"), 12)) for _ in range(n)]
    return [{"text": f"{one} {('Xqzw', 'Vkjy')[which]} {one[::-1]}", "label": ("x", "v")[which]} for one, which in zip(noise, label)]


@pytest.mark.parametrize("method", ["probe", "lora"])
def test_a_worker_reads_names_and_says_so_again_from_disk(base_folder, jsonl, tmp_path, method):
    file = jsonl(spelled(120))
    manifest = done(asked(base_folder, file, tmp_path, method, words=True))
    assert manifest.about["scores"]["accuracy"] == 1.0 and "words.safetensors" in json.dumps(json.loads((tmp_path / "to/manifest.json").read_text()))
    unseen = spelled(40, seed=7)
    answers = Worker.load(base_folder, tmp_path / "to").predict([row["text"] for row in unseen])
    assert [answer.label for answer in answers] == [row["label"] for row in unseen]


def test_several_labels_can_be_spelled(base_folder, jsonl, tmp_path):
    rows = [{"text": row["text"], "labels": ["any", row["label"]]} for row in spelled(120)]
    manifest = done(asked(base_folder, jsonl(rows), tmp_path, words=True))
    assert manifest.about["scores"]["micro_f1"] > 0.98


def test_what_cannot_be_spelled_or_counted_is_refused(base_folder, jsonl, tmp_path):
    series = [{"series": [1.0, 2.0, 3.0, float(n)], "label": "ab"[n % 2]} for n in range(20)]
    with pytest.raises(DataError, match="no 'text'"):
        done(asked(base_folder, jsonl(series, "series.jsonl"), tmp_path, words=True))
    rows = [row | {"counts": 0 if n == 3 else 1} for n, row in enumerate(labelled(20))]
    with pytest.raises(DataError, match="counts for nothing"):
        done(asked(base_folder, jsonl(rows, "rows.jsonl"), tmp_path / "rows", weight_column="counts"))


def test_damaged_scores_are_refused(tmp_path):
    rows = labelled(30)
    scorer, _ = fit_words([row["text"] for row in rows], hot(rows), "softmax", np.arange(30) % 2, np.ones(30))
    path = tmp_path / "words.safetensors"
    scorer.times(2.0).save(path)
    again = WordScores.load(path, 2)
    np.testing.assert_allclose(again.scores(["kettle"]), 2 * scorer.scores(["kettle"]), rtol=1e-6)
    with pytest.raises(IntegrityError, match="3 labels"):
        WordScores.load(path, 3)
    parts = load_file(path)
    for changed in (parts | {"known": parts["known"][::-1].copy()}, parts | {"rarity": parts["rarity"][1:]}, {k: v for k, v in parts.items() if k != "bias"}):
        save_file(changed, path, metadata={"penalty": "1.0"})
        with pytest.raises(IntegrityError, match="does not fit"):
            WordScores.load(path, 2)
    path.write_bytes(b"nothing")
    with pytest.raises(IntegrityError):
        WordScores.load(path, 2)


def test_an_example_counts_as_its_column_says(base_folder, jsonl, tmp_path):
    """Every row twice, with labels that contradict: the worker says those that count more, whichever they are."""
    other, unseen = {"quiet": "busy", "busy": "quiet"}, labelled(40, seed=3)
    for trusted in (True, False):
        counts = (1, 0.05) if trusted else (0.05, 1)
        rows = [row | {"label": label, "counts": count} for row in labelled(80) for label, count in zip((row["label"], other[row["label"]]), counts)]
        made = asked(base_folder, jsonl(rows, f"{trusted}.jsonl"), tmp_path / str(trusted), weight_column="counts")
        done(replace(made, data=replace(made.data, held_out=0.0)))
        said = Worker.load(base_folder, made.to).predict([row["text"] for row in unseen])
        assert np.mean([(one.label == row["label"]) == trusted for one, row in zip(said, unseen)]) > 0.85
