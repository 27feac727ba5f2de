"""Every task learns something real on a tiny base, and its worker says it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bedplate.adapt.loop import adapt, assemble, prepare
from bedplate.adapt.preview import preview
from bedplate.adapt.settings import AdaptSettings, EmbedSettings, ExampleSettings, MethodSettings, TrainSettings
from bedplate.adapt.tasks.rank import in_order
from bedplate.core.config import Resolved
from bedplate.core.errors import ConfigError, DataError
from bedplate.core.run import Run
from bedplate.infer.worker import Worker, as_json
from bedplate.testing.corpora import WORDS


def settings(base_folder, file, tmp_path, task, **train):
    made = TrainSettings(**{"threads": 1, "epochs": 3, "lr": 2e-3, **train})
    return AdaptSettings(base_folder, tmp_path / "adapter", task, ExampleSettings(file), train=made)


def run_of(asked):
    return Run.open(asked.to.with_name(asked.to.name + ".run"), "adapt", Resolved(asked, {}))


def done(asked):
    with run_of(asked) as run:
        return adapt(asked, run)


def sentence(rng, words=6):
    return " ".join(rng.choice(WORDS, words))


# regress


def counted(n, seed=0):
    """Texts and ten times the number of boats in them."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        boats = int(rng.integers(0, 6))
        rows.append({"text": " ".join(rng.permutation(["boats"] * boats + ["rain"] * (6 - boats))), "value": 100 + 10 * boats})
    return rows


@pytest.mark.parametrize("method", ["probe", "full"])
def test_numbers_are_learned_in_their_unit_with_an_honest_range(base_folder, jsonl, tmp_path, method):
    asked = replace(settings(base_folder, jsonl(counted(160)), tmp_path, "regress"), method=MethodSettings(method))
    scores = done(asked).about["scores"]
    assert scores["explained_share"] > 0.9 and scores["mean_error"] < 5
    worker = Worker.load(base_folder, asked.to)
    unseen = counted(60, 5)
    answers = worker.predict([row["text"] for row in unseen])
    assert np.mean([abs(a.value - row["value"]) for a, row in zip(answers, unseen)]) < 5
    assert np.mean([a.low <= row["value"] <= a.high for a, row in zip(answers, unseen)]) > 0.75
    assert set(as_json(answers[0])) == {"value", "low", "high"}


def test_numbers_that_are_none_are_refused(base, base_folder, jsonl, tmp_path):
    with pytest.raises(DataError, match="row 2.*no number"):
        prepare(settings(base_folder, jsonl([{"text": "a", "value": 1}, {"text": "b", "value": "many"}]), tmp_path, "regress"), base)
    with pytest.raises(DataError, match="all examples have the value 1"):
        prepare(settings(base_folder, jsonl([{"text": "a", "value": 1}] * 9), tmp_path, "regress"), base)


# embed


def paired(n, seed=0):
    """Two texts about the same word, in other company."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        about, other = rng.choice(WORDS, 2, replace=False)
        rows.append({"text": f"{about} {about} {sentence(rng, 2)}", "positive": f"{sentence(rng, 2)} {about} {about}", "negative": f"{other} {other} {sentence(rng, 2)}"})
    return rows


def test_what_belongs_together_comes_near(base_folder, jsonl, tmp_path):
    asked = settings(base_folder, jsonl(paired(240)), tmp_path, "embed", epochs=10, examples_per_step=32)
    about = done(asked).about
    assert about["scores"]["reciprocal_rank"] > about["scores_before"]["reciprocal_rank"] + 0.15
    assert about["scores"]["loss"] < about["scores_before"]["loss"]
    worker = Worker.load(base_folder, asked.to)
    texts = [[f"{word} {word} {end}" for word in WORDS] for end in ("and birds", "the rain")]
    one, other = (np.array([answer.vector for answer in worker.predict(side)]) for side in texts)
    assert np.allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    assert ((one @ other.T).argmax(1) == np.arange(len(WORDS))).mean() > 0.5  # by chance one in nineteen


def test_a_joint_loss_does_not_see_how_a_step_was_cut(base, base_folder, jsonl, tmp_path):
    asked = settings(base_folder, jsonl(paired(40)), tmp_path, "embed")
    prepared = prepare(asked, base)
    gradients = []
    with run_of(asked) as run:
        training = assemble(asked, prepared, run, torch.float32)
        for most in (10_000, 200, 1):
            training.positions_per_micro = most
            loss = training.gradients(prepared.items[:16])
            gradients.append((loss, [p.grad.clone() for p in training.trained.values() if p.grad is not None]))
    for loss, found in gradients[1:]:
        assert abs(loss - gradients[0][0]) < 1e-5
        for a, b in zip(found, gradients[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_text_that_is_ones_own_positive_is_no_negative(base, base_folder, jsonl, tmp_path):
    rows = [{"text": "river", "positive": "water"}, {"text": "rain", "positive": "water"}, {"text": "lamps", "positive": "light", "negatives": ["water", "dark"]}]
    asked = settings(base_folder, jsonl(rows), tmp_path, "embed")
    prepared = prepare(replace(asked, data=ExampleSettings(asked.data.file, held_out=0)), base)
    prepared.task.start(prepared.items)
    scores = prepared.task.scores(prepared.task.all_vectors(prepared.items), prepared.items)
    assert scores.shape == (3, 5)
    assert torch.isinf(scores).tolist() == [[False, True, False, True, False], [True, False, False, True, False], [False] * 5]
    with pytest.raises(ConfigError, match="divides by nothing"):
        EmbedSettings(0.0)


# rank


def test_the_text_that_answers_comes_first(base_folder, jsonl, tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"query": sentence(rng, 3), "positive": "boats " * int(rng.integers(1, 3)) + sentence(rng, 2), "negatives": ["rain " + sentence(rng, 2), "lamps " + sentence(rng, 3)]} for _ in range(120)]
    asked = settings(base_folder, jsonl(rows), tmp_path, "rank")
    about = done(asked).about
    assert about["scores"]["first_is_right"] > 0.8
    worker = Worker.load(base_folder, asked.to)
    (said,) = worker.predict([{"query": "the quiet", "texts": ["rain the", "boats boats the", "lamps and"]}])
    assert said.order[0] == 1 and len(said.scores) == 3 and as_json(said)["order"][0] == 1


def test_scores_are_learned_in_their_unit(base_folder, jsonl, tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"query": "the", "text": f"{word} {word} {sentence(rng, 2)}", "score": score} for word, score in (("boats", 5), ("lamps", 3), ("rain", 1)) for _ in range(50)]
    asked = settings(base_folder, jsonl(rows), tmp_path, "rank", epochs=4)
    assert done(asked).about["scores"]["pairs_in_order"] > 0.9
    worker = Worker.load(base_folder, asked.to)
    good, bad = (worker.predict([{"query": "the", "text": text}])[0].scores[0] for text in ("boats boats the river", "rain rain the river"))
    assert 1 <= bad < 2.5 < 3.5 < good <= 5
    assert in_order(np.array([3.0, 1.0, 2.0]), np.array([1.0, 0.0, 0.0])) == 1 and in_order(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == 0


def test_a_preview_says_what_the_head_learns(base, base_folder, jsonl, tmp_path):
    rows = {
        "regress": [{"text": "river", "value": 3}, {"text": "rain", "value": 5}],
        "embed": [{"text": "river", "positive": "water", "negative": "light"}],
        "rank": [{"query": "river", "positive": "water", "negative": "light"}],
        "classify": [{"text": "river", "label": "a"}, {"text": "rain", "label": "b"}],
    }
    told = {}
    for task, examples in rows.items():
        file = jsonl(examples, f"{task}.jsonl")
        prepared = prepare(replace(settings(base_folder, file, tmp_path, task), data=ExampleSettings(file, held_out=0)), base)
        told[task] = preview(prepared.items[0], base, prepared.task.target_of(prepared.items[0])).split("\n")[-1]
    assert told == {
        "regress": "the head learns: ⟦3⟧",
        "embed": "the head learns: ⟦near the second, far from the rest and those of other rows⟧",
        "rank": "the head learns: ⟦the first is the best⟧",
        "classify": "the head learns: ⟦a⟧",
    }
