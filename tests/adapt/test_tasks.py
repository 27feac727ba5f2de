"""Every task learns something real on a tiny base, and its worker says it."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from bedplate.adapt.base import Base
from bedplate.adapt.loop import adapt, assemble, prepare
from bedplate.adapt.preview import preview
from bedplate.adapt.settings import (
    AdaptSettings,
    DistillSettings,
    EmbedSettings,
    ExampleSettings,
    ExtractSettings,
    MethodSettings,
    PreferSettings,
    TrainSettings,
)
from bedplate.adapt.tasks.rank import in_order
from bedplate.core.config import Resolved
from bedplate.core.errors import ConfigError, DataError
from bedplate.core.files import write_text
from bedplate.core.prediction import as_json
from bedplate.core.run import Run
from bedplate.infer.worker import Worker
from bedplate.testing.bases import tiny_base
from bedplate.testing.corpora import WORDS, tiny_specs, tiny_tokenizer
from bedplate.testing.models import tiny_model


def settings(base_folder, file, tmp_path, task, **train):
    made = TrainSettings(**{"threads": 1, "epochs": 3, "lr": 2e-3, **train})
    return AdaptSettings(base_folder, tmp_path / "adapter", task, ExampleSettings(file), MethodSettings("full"), train=made)


def run_of(asked):
    return Run.open(asked.to.with_name(asked.to.name + ".run"), "adapt", Resolved(asked, {}))


def done(asked):
    with run_of(asked) as run:
        return adapt(asked, run)


def sentence(rng, words=6):
    return " ".join(rng.choice(WORDS, words))


# generate


def test_loss_and_gradients_are_those_of_plain_autograd_over_all_positions(base_folder, jsonl, tmp_path):
    rng = np.random.default_rng(0)
    file = jsonl([{"prompt": sentence(rng, n), "completion": sentence(rng, 3)} for n in (9, 4, 6)])
    asked = replace(settings(base_folder, file, tmp_path, "generate"), method=MethodSettings("lora", rank=4))
    base = Base.load(base_folder)
    prepared = prepare(asked, base)
    with run_of(asked) as run:
        training = assemble(asked, prepared, run, torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in base.model.named_parameters():
            if "adapter" in name or "o_proj" in name or "down_proj" in name:  # else the layers write nothing
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    loss = prepared.task.loss_sum(prepared.items)
    fast = torch.autograd.grad(loss, list(training.trained.values()))
    batch = prepared.task.batch([one for item in prepared.items for one in item.sequences])
    logits = base.model.logits(base.model.model(base.model.embed(batch)))
    targets = torch.where(batch.token_loss, batch.tokens, -100)[:, 1:]
    slow_loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    slow = torch.autograd.grad(slow_loss, list(training.trained.values()))
    torch.testing.assert_close(loss, slow_loss, rtol=1e-5, atol=1e-5)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


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


# extract


def named(n, seed=0):
    """Texts in which the word before "boats" is a place, before "count" none, and two words after "past" are a way."""
    rng = np.random.default_rng(seed)
    fillers = [word for word in WORDS if word not in ("boats", "past", "count")]
    rows = []
    for _ in range(n):
        text, spans = str(rng.choice(fillers)), []
        for _ in range(int(rng.integers(1, 4))):
            a, b = rng.choice(fillers, 2)
            kind = rng.integers(3)
            if kind == 0:
                text += f" {a} count, {b}."
            elif kind == 1:
                spans.append({"start": len(text) + 1, "end": len(text) + 1 + len(a), "label": "place"})
                text += f" {a} boats, {b}."
            else:
                spans.append({"start": len(text) + 6, "end": len(text) + 7 + len(a) + len(b), "label": "way"})
                text += f" past {a} {b} rain"
        rows.append({"text": text, "spans": spans})
    return rows


def test_stretches_are_found_to_the_character(base_folder, jsonl, tmp_path):
    asked = settings(base_folder, jsonl(named(300)), tmp_path, "extract", epochs=16, lr=1e-2, patience=0)
    about = done(asked).about
    assert about["scores"]["f1"] > 0.85 > about["scores_before"]["f1"]
    worker = Worker.load(base_folder, asked.to)
    right = given = wanted = 0
    for row, said in zip(unseen := named(40, 7), worker.predict([row["text"] for row in unseen])):
        found = {(s.start, s.end, s.label) for s in said.spans}
        true = {(s["start"], s["end"], s["label"]) for s in row["spans"]}
        right, given, wanted = right + len(found & true), given + len(found), wanted + len(true)
        assert all(s.text == row["text"][s.start : s.end] and 0 < s.probability <= 1 for s in said.spans)
    assert 2 * right / (given + wanted) > 0.85  # 0.66 where a word sees the past only
    assert set(as_json(said)["spans"][0]) == {"start", "end", "label", "text", "probability"}


def test_long_texts_are_read_in_windows_and_marked_words_shown(base, base_folder, jsonl, tmp_path):
    text = " ".join(f"{word}-{n}" for n, word in enumerate(WORDS * 4))
    start = text.index("rain-37")
    rows = [{"text": text, "spans": [{"start": start, "end": start + 7, "label": "rain"}]}, {"text": "no", "spans": []}]
    asked = settings(base_folder, jsonl(rows), tmp_path, "extract")
    asked = replace(asked, data=ExampleSettings(asked.data.file, held_out=0, most_positions=64))
    prepared = prepare(asked, base)
    item = prepared.items[0]
    assert len(item.sequences) > 3 and item.length <= 64 and item.weight == len(item.words) == sum(int(s.token_loss.sum()) for s in item.sequences)
    assert [text[slice(*item.words[i])] for i in np.flatnonzero(item.target)] == ["rain", "-", "37"]
    prepared.task.start(prepared.items)
    logits = np.zeros((len(item.words), 3), np.float32)
    logits[np.arange(len(item.words)), item.target.astype(int)] = 9
    (found,) = prepared.task.read(item, logits)
    assert found[:4] == (start, start + 7, "rain", "rain-37")
    shown = preview(prepared.items[1], base, prepared.task.target_of(prepared.items[1]))
    assert shown.endswith("n⟦o⟧<|endoftext|>\nthe head learns: ⟦no span⟧")


@pytest.mark.parametrize(("span", "told"), [
    ({"start": 0, "end": 99, "label": "x"}, "not within the text"),
    ({"start": 3, "end": 4, "label": "x"}, "holds no word"),
    ({"start": 0, "label": "x"}, "is no span"),
])  # fmt: skip
def test_spans_that_are_none_are_refused(base, base_folder, jsonl, tmp_path, span, told):
    good = {"text": "the river", "spans": [{"start": 4, "end": 9, "label": "x"}]}
    with pytest.raises(DataError, match=f"row 2.*{told}"):
        prepare(settings(base_folder, jsonl([good, {"text": "the river", "spans": [span]}]), tmp_path, "extract"), base)
    twice = {"text": "the river", "spans": [{"start": 4, "end": 9, "label": "x"}, {"start": 0, "end": 6, "label": "x"}]}
    with pytest.raises(DataError, match="shares a word"):
        prepare(settings(base_folder, jsonl([twice] * 9, "b.jsonl"), tmp_path, "extract"), base)


# prefer


def chosen(n, seed=0):
    rng = np.random.default_rng(seed)
    return [{"prompt": sentence(rng, 3), "chosen": f"boats {rng.choice(WORDS)}", "rejected": f"rain {rng.choice(WORDS)}"} for _ in range(n)]


def test_what_people_chose_becomes_likelier_than_for_the_base(base_folder, jsonl, tmp_path):
    asked = settings(base_folder, jsonl(chosen(100)), tmp_path, "prefer", epochs=4)
    about = done(asked).about
    assert abs(about["scores_before"]["loss"] - np.log(2)) < 1e-5 and about["scores_before"]["preferred"] == 0
    assert about["scores"]["preferred"] > 0.95 and about["scores"]["loss"] < 0.5
    worker = Worker.load(base_folder, asked.to)
    assert isinstance(worker.generate(["the river"], max_tokens=4)[0], str)


def test_log_probabilities_are_those_of_all_logits(base, base_folder, jsonl, tmp_path):
    rows = [*chosen(5), {"messages": [{"role": "user", "content": "river"}], "chosen": "boats", "rejected": "rain"}]
    rows.append({"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]})
    file = jsonl(rows)
    prepared = prepare(replace(settings(base_folder, file, tmp_path, "prefer"), data=ExampleSettings(file, held_out=0)), base)
    sequences = [s for item in prepared.items for s in item.sequences]
    found = prepared.task.said(sequences)
    for one, sequence in zip(found, sequences):
        logits = base.model.forward_tokens(torch.from_numpy(sequence.tokens[None]).long())
        logs = torch.log_softmax(logits[0, :-1], 1)[torch.arange(len(sequence) - 1), torch.from_numpy(sequence.tokens[1:]).long()]
        torch.testing.assert_close(one, logs[torch.from_numpy(sequence.token_loss[1:])].sum(), rtol=1e-5, atol=1e-4)
    shown = preview(prepared.items[5], base, prepared.task.target_of(prepared.items[5]))
    assert "assistant\n⟦boats<|im_end|>⟧" in shown and "assistant\n⟦rain<|im_end|>⟧" in shown and shown.endswith("⟦the first rather than the second⟧")
    with pytest.raises(DataError, match="row 1.*are the same"):
        prepare(settings(base_folder, jsonl([{"prompt": "a", "chosen": "b", "rejected": "b"}], "b.jsonl"), tmp_path, "prefer"), base)


# distill


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A model that says what another seed of weights says, of the same tokens."""
    return tiny_base(tmp_path_factory.mktemp("teacher"), tiny_specs(), seed=3)


def test_a_student_comes_to_say_what_its_teacher_says(base_folder, teacher, jsonl, tmp_path):
    rng = np.random.default_rng(0)
    file = jsonl([{"prompt": sentence(rng, 3), "completion": sentence(rng, 8)} for _ in range(100)])
    asked = replace(settings(base_folder, file, tmp_path, "distill", epochs=8, lr=4e-3), distill=DistillSettings(teacher))
    manifest = done(asked)
    before, after = manifest.about["scores_before"], manifest.about["scores"]
    assert after["loss"] < 0.6 * before["loss"] and after["agreement"] > before["agreement"] + 0.1
    assert manifest.parents["teacher"] == Base.load(teacher).digest
    assert isinstance(Worker.load(base_folder, asked.to).generate(["the river"], max_tokens=4)[0], str)


def test_a_teacher_against_itself_has_nothing_to_teach(base, base_folder, jsonl, tmp_path):
    file = jsonl([{"prompt": "the river", "completion": "carries boats"}] * 3)
    asked = replace(settings(base_folder, file, tmp_path, "distill"), data=ExampleSettings(file, held_out=0), distill=DistillSettings(base_folder, temperature=1.5))
    prepared = prepare(asked, base)
    judged = prepared.task.judge(prepared.items)
    assert abs(judged.loss) < 1e-6 and judged.scores["agreement"] == 1


def test_a_teachers_own_answers_are_learned_and_asked_for_once(base, base_folder, teacher, jsonl, tmp_path):
    asked_of = []

    def answerer(base, positions, ends, most):
        asked_of.append(most)
        text = base.decode(positions.tokens)
        return "" if "silent" in text else "birds return" if "river" in text else "lamps"

    file = jsonl([{"prompt": word} for word in ("river", "rain", "silent")] * 8)
    asked = replace(settings(base_folder, file, tmp_path, "distill", epochs=30, lr=3e-3, patience=0), distill=DistillSettings(teacher, by="text", most_tokens=9))
    with run_of(asked) as run:
        manifest = adapt(asked, run, answerer)
    assert manifest.about["scores"]["loss"] < 0.1 and manifest.about["examples"] + manifest.about["held_out"] == 16
    assert asked_of == [9, 9, 9]
    assert Worker.load(base_folder, asked.to).generate(["river", "rain"], max_tokens=12) == ["birds return", "lamps"]
    taught = tmp_path / "adapter.run" / "taught.jsonl"
    taught.write_text(taught.read_text()[:-3])  # torn
    items = prepare(asked, base, answerer=answerer).items
    assert asked_of == [9] * 4 and any("assistant\n⟦birds return<|im_end|>⟧" in preview(item, base) for item in items)
    with pytest.raises(ConfigError, match="answerer"):
        prepare(replace(asked, to=tmp_path / "other"), base)


def test_a_teacher_is_needed_and_must_know_the_same_tokens(base, base_folder, teacher, jsonl, tmp_path):
    file = jsonl([{"prompt": "a", "completion": "b"}] * 3)
    with pytest.raises(ConfigError, match="nobody teaches"):
        prepare(settings(base_folder, file, tmp_path, "distill"), base)
    other = tmp_path / "other"
    write_text(other / "tokenizer.json", tiny_tokenizer(300).to_str())
    tiny_model(300).save(other / "base", tokenizer=other / "tokenizer.json")
    asked = replace(settings(base_folder, file, tmp_path, "distill"), distill=DistillSettings(other / "base"))
    with pytest.raises(ConfigError, match=r"different tokens, such as number 3\d\d \(none there, '.+' here\)") as told:
        prepare(asked, base)
    assert "distill.by=text" in told.value.hint
    assert prepare(replace(asked, distill=DistillSettings(other / "base", by="text")), base, answerer=lambda *_: "so").items  # as the hint says


# all of them


RESUMED = {
    "regress": counted(24),
    "embed": paired(24),
    "rank": [{"query": r["text"], "positive": r["positive"], "negative": r["negative"]} for r in paired(24)],
    "extract": named(24),
    "prefer": chosen(24),
    "distill": [{"prompt": "the", "completion": sentence(np.random.default_rng(n))} for n in range(24)],
}


@pytest.mark.parametrize("task", RESUMED)
def test_a_stopped_run_of_any_task_ends_with_the_same_weights(base_folder, teacher, jsonl, tmp_path, task):
    file = jsonl(RESUMED[task])
    weights = []
    for name, stop in (("whole", False), ("stopped", True)):
        asked = replace(settings(base_folder, file, tmp_path, task, epochs=2, examples_per_step=5), to=tmp_path / name, distill=DistillSettings(teacher))
        if stop:
            with run_of(asked) as run:
                run.events._listeners += (lambda event: signal.raise_signal(signal.SIGTERM) if event["event"] == "step" and event["step"] == 3 else None,)
                assert adapt(asked, run) is None
        done(asked)
        weights.append([(asked.to / part).read_bytes() for part in ("weights.safetensors", "head.safetensors") if (asked.to / part).exists()])
    assert weights[0] == weights[1]


def test_every_choice_of_a_task_changes_its_loss(base, base_folder, teacher, jsonl, tmp_path):
    pairs = jsonl([{"prompt": "the river", "completion": "carries boats"}, {"prompt": "birds", "completion": "return"}], "pairs.jsonl")
    kept = {"extract": jsonl(named(6), "spans.jsonl"), "prefer": jsonl(chosen(6), "chosen.jsonl"), "distill": pairs}

    def loss(task, move=0.0, **choices):
        file = kept[task]
        asked = replace(settings(base_folder, file, tmp_path, task), data=ExampleSettings(file, held_out=0), **choices)
        prepared = prepare(asked, Base.load(base_folder), answerer=lambda base, asked, ends, most: "lamps " * most)
        prepared.task.start(prepared.items)
        with torch.no_grad():
            prepared.task.model.model.embed_tokens.weight.mul_(1 + move)
            return float(prepared.task.loss_sum(prepared.items)), sum(item.weight for item in prepared.items)

    assert loss("extract", extract=ExtractSettings(sees="both")) == loss("extract") != loss("extract", extract=ExtractSettings(sees="past"))
    past = loss("extract", extract=ExtractSettings(sees="past"), method=MethodSettings("probe"))
    assert past == loss("extract", method=MethodSettings("probe"))
    assert loss("prefer", 0.5, prefer=PreferSettings(beta=0.1)) != loss("prefer", 0.5, prefer=PreferSettings(beta=0.5))
    usual = DistillSettings(teacher=teacher)
    told = [usual, replace(usual, teacher=base_folder), replace(usual, temperature=1.0), replace(usual, by="text"), replace(usual, by="text", most_tokens=3)]
    assert len({loss("distill", distill=one) for one in told}) == 5
    for wrong in (lambda: PreferSettings(beta=0.0), lambda: DistillSettings(temperature=-1.0), lambda: DistillSettings(most_tokens=0)):
        with pytest.raises(ConfigError):
            wrong()
