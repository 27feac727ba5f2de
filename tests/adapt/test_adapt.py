"""Adaptation end to end, on a tiny random base: it learns, resumes bit by bit, stops in time, and its worker says what was learned."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from adaptations import done, labelled, run_of

from bedplate.adapt.course import Course, hold_out
from bedplate.adapt.encode import Item
from bedplate.adapt.examples import Row
from bedplate.adapt.loop import adapt, alike, assemble, prepare
from bedplate.adapt.preview import preview, stretches
from bedplate.adapt.settings import AdaptSettings, ClassifySettings, ExampleSettings, MethodSettings, TrainSettings
from bedplate.adapt.tasks.base import portions
from bedplate.core.errors import ConfigError, DataError, IntegrityError, StateError
from bedplate.core.events import read_events
from bedplate.infer.worker import Worker
from bedplate.pretrain.checkpoint import CheckpointSettings
from bedplate.testing.bases import tiny_base
from bedplate.testing.corpora import WORDS, tiny_specs


def settings(base_folder, file, tmp_path, task="classify", **changes):
    made = AdaptSettings(base_folder, tmp_path / "adapter", task, ExampleSettings(file), train=TrainSettings(threads=1, epochs=2, lr=1e-3))
    return replace(made, **changes)


METHODS = [MethodSettings("probe"), MethodSettings("full"), MethodSettings(), MethodSettings("dora", rank=4), MethodSettings(base_bits=8), MethodSettings(base_bits=4)]


@pytest.mark.parametrize("method", METHODS, ids=["probe", "full", "lora", "dora", "lora-8", "lora-4"])
def test_labels_are_learned_and_the_worker_says_them(base_folder, jsonl, tmp_path, method):
    asked = settings(base_folder, jsonl(labelled(120)), tmp_path, method=method)
    manifest = done(asked)
    assert manifest.kind == "adapter" and manifest.about["scores"]["accuracy"] > 0.85 and manifest.about["held_out"] == 18
    worker = Worker.load(base_folder, asked.to)
    unseen = labelled(60, seed=9)
    answers = worker.predict([row["text"] for row in unseen])
    assert np.mean([answer.label == row["label"] for answer, row in zip(answers, unseen)]) > 0.85
    assert all(abs(sum(answer.probabilities.values()) - 1) < 1e-6 for answer in answers)
    assert worker.predict([{"text": unseen[0]["text"]}])[0].label == answers[0].label
    with pytest.raises(ConfigError, match="task is classify"):
        worker.generate(["a"])


def test_answers_are_learned_and_generated(base_folder, jsonl, tmp_path):
    rows = [{"prompt": word, "completion": WORDS[-1 - number]} for number, word in enumerate(WORDS[:4])] * 12
    train = TrainSettings(threads=1, epochs=30, lr=3e-3, patience=0)
    asked = settings(base_folder, jsonl(rows), tmp_path, "generate", train=train, method=MethodSettings("full"))
    manifest = done(asked)
    assert manifest.about["scores"]["loss"] < 0.1 < manifest.about["scores_before"]["loss"]
    worker = Worker.load(base_folder, asked.to)
    assert worker.generate([row["prompt"] for row in rows[:4]], max_tokens=20) == [row["completion"] for row in rows[:4]]
    turns = [{"role": "user", "content": WORDS[0]}]
    assert worker.generate([{"messages": turns}], max_tokens=20) == [WORDS[-1]]


def test_raw_completions_have_no_chat_marks(base, base_folder, jsonl, tmp_path):
    file = jsonl([{"prompt": "the quiet ", "completion": "river"}] * 4)
    asked = settings(base_folder, file, tmp_path, "generate", data=ExampleSettings(file, template="raw", held_out=0))
    assert preview(prepare(asked, base).items[0], base).split("\n")[1] == "<|endoftext|>the quiet ⟦river<|endoftext|>⟧"


def test_a_preview_shows_pictures_turns_and_loss(base, base_folder, jsonl, tmp_path):
    rows = [{"image": {"bytes": None, "path": "a.png"}, "messages": [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "birds"}]}]
    from PIL import Image

    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "a.png")
    file = jsonl(rows)
    shown = preview(prepare(settings(base_folder, file, tmp_path, "generate", data=ExampleSettings(file, held_out=0)), base).items[0], base)
    assert "<|endoftext|><|image|>[49 units of image]<|/image|><|im_start|>user\nwhat is it<|im_end|>\n<|im_start|>assistant\n⟦birds<|im_end|>⟧\n" in shown


@pytest.mark.parametrize("row", [
    {"messages": [{"role": "user", "content": "nobody answers"}]},
    {"prompt": "no completion"},
    {"prompt": "blank", "completion": "  "},
    {"prompt": "the river " * 200, "completion": "the river " * 200, "messages": []},
])  # fmt: skip
def test_an_example_without_loss_is_an_error_with_its_row(base, base_folder, jsonl, tmp_path, row):
    file = jsonl([{"prompt": "a", "completion": "b"}, row])
    with pytest.raises(DataError, match="row 2"):
        prepare(settings(base_folder, file, tmp_path, "generate", data=ExampleSettings(file, held_out=0)), base)


@pytest.mark.parametrize("method", [MethodSettings("full"), MethodSettings(dropout=0.2), MethodSettings("dora", base_bits=4)], ids=["full", "lora", "dora-4"])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(base_folder, jsonl, tmp_path, method):
    file = jsonl(labelled(64))
    weights = []
    for name, stop in (("whole", False), ("stopped", True)):
        asked = replace(settings(base_folder, file, tmp_path, method=method), to=tmp_path / name, checkpoint=CheckpointSettings(every_s=0))
        if stop:
            with run_of(asked) as run:
                run.events._listeners += (lambda event: signal.raise_signal(signal.SIGTERM) if event["event"] == "step" and event["step"] == 5 else None,)
                assert adapt(asked, run) is None
            assert not asked.to.exists()
        done(asked)
        task = Worker.load(base_folder, asked.to)
        weights.append({n: p.clone() for n, p in task.base.model.named_parameters()} | {n: p.clone() for n, p in task.task.head.named_parameters()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    events = [event["event"] for event in read_events(tmp_path / "stopped.run" / "events.jsonl")]
    assert "run_stopped" in events and "run_resumed" in events
    with pytest.raises(StateError, match="train.lr = 0.001, not 0.005"):
        done(replace(asked, train=replace(asked.train, lr=5e-3)))


def test_micro_batches_change_nothing(base, base_folder, jsonl, tmp_path):
    asked = settings(base_folder, jsonl(labelled(40)), tmp_path, "classify", classify=ClassifySettings(weights="balanced"))
    prepared = prepare(asked, base)
    gradients = []
    with run_of(asked) as run:
        training = assemble(asked, prepared, run, torch.float32)
        for most in (10_000, 40, 1):
            training.positions_per_micro = most
            loss = training.gradients(prepared.items[:16])
            gradients.append((loss, [p.grad.clone() for p in training.trained.values() if p.grad is not None]))
    for loss, found in gradients[1:]:
        assert abs(loss - gradients[0][0]) < 1e-6
        for a, b in zip(found, gradients[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_training_stops_when_held_out_examples_say_so_and_keeps_the_best(base_folder, jsonl, tmp_path):
    rng = np.random.default_rng(0)
    noise = [{**row, "label": str(rng.integers(2))} for row in labelled(60)]  # nothing to learn but by heart
    train = TrainSettings(threads=1, epochs=60, lr=3e-3, patience=2)
    asked = settings(base_folder, jsonl(noise), tmp_path, train=train)
    manifest = done(asked)
    looks = list(read_events(asked.to.with_name("adapter.run") / "events.jsonl", ("evaluated",)))
    assert manifest.about["steps"] < 100 and manifest.about["best_step"] < manifest.about["steps"]
    assert abs(manifest.about["scores"]["loss"] - min(look["loss"] for look in looks)) < 1e-5


def test_several_labels(base_folder, jsonl, tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(160):
        chosen = [name for name, share in (("river", 0.5), ("boats", 0.4)) if rng.random() < share]
        rows.append({"text": " ".join(rng.permutation([*chosen * 3, *rng.choice(WORDS[8:], 4)])), "labels": chosen})
    asked = settings(base_folder, jsonl(rows), tmp_path, method=MethodSettings("full"))
    scores = done(asked).about["scores"]
    assert scores["micro_f1"] > 0.85
    worker = Worker.load(base_folder, asked.to)
    assert set(worker.predict(["river boats river boats river boats"])[0].labels) == {"river", "boats"}
    assert worker.predict(["children count lamps and birds return"])[0].label is None


def test_pictures_are_classified(base_folder, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(60):
        label = number % 2
        pixels = rng.integers(0, 60, (28, 28)).astype(np.uint8)
        pixels[14 * label : 14 * label + 14] += 150
        (tmp_path / "files" / "ab"[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "files" / "ab"[label] / f"{number}.png")
    asked = settings(base_folder, tmp_path / "files", tmp_path, method=MethodSettings("probe"))
    assert done(asked).about["scores"]["accuracy"] > 0.9
    worker = Worker.load(base_folder, asked.to)
    assert worker.predict([{"image": str(tmp_path / "files" / "b" / "1.png")}])[0].label == "b"


def test_an_adapter_fits_its_own_base_alone(base_folder, jsonl, tmp_path):
    asked = settings(base_folder, jsonl(labelled(40)), tmp_path)
    done(asked)
    other = tiny_base(tmp_path / "other", tiny_specs(), seed=5)
    with pytest.raises(DataError, match="another base"):
        Worker.load(other, asked.to)
    (asked.to / "task.json").write_text((asked.to / "task.json").read_text().replace("quiet", "Quiet"))
    with pytest.raises(IntegrityError, match="changed"):
        Worker.load(base_folder, asked.to)


def test_what_cannot_be_learned_is_refused(base_folder, jsonl, tmp_path):
    with pytest.raises(DataError, match="all examples have the label"):
        done(settings(base_folder, jsonl([{"text": "a", "label": "x"}] * 9), tmp_path))
    with pytest.raises(ConfigError, match="probe has nothing to learn"):
        done(settings(base_folder, jsonl([{"prompt": "a", "completion": "b"}] * 9, "b.jsonl"), tmp_path / "b", "generate", method=MethodSettings("probe")))


def test_portions_hold_like_lengths_and_little_padding():
    rng = np.random.default_rng(0)
    items = [Item(n, (np.zeros(int(length)),), np.zeros(0), 1.0) for n, length in enumerate(rng.integers(1, 200, 100))]
    parts = list(portions(items, 512))
    assert sorted(i for part in parts for i in part) == list(range(100))
    padded = sum(len(part) * max(items[i].length for i in part) for part in parts)
    assert all(len(part) * max(items[i].length for i in part) <= 512 or len(part) == 1 for part in parts)
    assert padded / sum(item.length for item in items) < 1.15


def test_the_course_sees_every_example_once_an_epoch_and_groups_lengths():
    rng = np.random.default_rng(0)
    course = Course(tuple(int(n) for n in rng.integers(1, 300, 500)), 8, 2.0, 0.1, 0)
    assert course.steps == 2 * course.steps_per_epoch == 126
    for epoch in range(2):
        seen = [i for step in range(63) for i in course.examples(epoch * 63 + step)]
        assert sorted(seen) == list(range(500))
    assert course.examples(0) != course.examples(63)
    spread = np.mean([np.ptp([course.lengths[i] for i in course.examples(step)]) for step in range(63)])
    assert spread < 60, "neighbours in length"
    factors = [course.lr_factor(step) for step in range(course.steps)]
    assert max(factors) <= 1 and max(factors) > 0.9 and min(factors) > 0 and factors.index(max(factors)) < 20


def test_what_is_held_out_is_even_and_groups_stay_together():
    rows = [Row(n + 1, {"label": "ab"[n % 3 == 0], "document": n // 7}, lambda _: b"") for n in range(210)]
    learn, held = hold_out(rows, ExampleSettings(held_out=0.2), 0)
    assert len(held) == 42 and not set(learn) & set(held) and sum(rows[i].values["label"] == "b" for i in held) == 14
    learn, held = hold_out(rows, ExampleSettings(held_out=0.2, group="document"), 0)
    documents = [{rows[i].values["document"] for i in part} for part in (learn, held)]
    assert not documents[0] & documents[1] and 30 <= len(held) <= 42
    with pytest.raises(DataError, match="row .*no 'author'"):
        hold_out(rows, ExampleSettings(group="author"), 0)


def test_facts_are_json(base_folder, jsonl, tmp_path):
    asked = settings(base_folder, jsonl(labelled(60)), tmp_path, classify=ClassifySettings(accuracy=0.9))
    scores = done(asked).about["scores"]
    facts = json.loads((asked.to / "task.json").read_text())
    assert facts["task"] == "classify" and facts["labels"] == ["busy", "quiet"] and facts["temperature"] > 0 and 0 <= facts["threshold"] <= 2
    assert scores["accuracy_of_answered"] >= 0.9 or scores["answered"] == 0


def warnings(folder):
    return [event["message"] for event in read_events(folder / "events.jsonl", ("warning",))]


def test_a_call_of_a_tool_is_learned_and_its_answer_is_not(base, base_folder, jsonl, tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    turns = [{"role": "user", "content": "river"}, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "cold"}]
    row = {"messages": [*turns, {"role": "assistant", "content": "birds"}], "tools": [{"type": "function", "function": {"name": "weather"}}]}
    prepared = prepare(settings(base_folder, jsonl([row] * 8), tmp_path, "generate"), base)
    said = [part.text for part in stretches(prepared.items[0].sequences[0], base) if part.loss]
    assert len(said) == 2 and '"name": "weather", "arguments": {"city": "Oslo"}' in said[0] and said[1].startswith("birds")
    whole = preview(prepared.items[0], base)
    assert "You may call functions" in whole and "cold" in whole


def test_blanks_around_a_label_are_no_other_label(base_folder, jsonl, tmp_path):
    rows = [{**row, "label": row["label"] + " " * (n % 3)} for n, row in enumerate(labelled(60))]
    done(settings(base_folder, jsonl(rows), tmp_path))
    told = next(event for event in read_events(tmp_path / "adapter.run" / "events.jsonl", ("counted",)) if event["what"] == "labels")
    assert set(told["counts"]) == {"quiet", "busy"} and sum(told["counts"].values()) == 60


def test_labels_that_differ_in_capitals_are_warned_about():
    assert alike({"Spam": 5, "ham": 4, "spam": 1}) == [("Spam", "spam")] and not alike({"a": 1, "b": 1})


def test_what_does_not_fit_and_what_is_held_out_twice_is_told(base, base_folder, jsonl, tmp_path):
    rows = [{"text": f"{word} " * 200, "label": word} for word in ("river", "birds")] * 20
    asked = settings(base_folder, jsonl(rows), tmp_path, method=MethodSettings("probe"))
    asked = replace(asked, data=replace(asked.data, most_positions=40))
    done(asked)
    told = warnings(tmp_path / "adapter.run")
    assert any("40 examples are longer than 40 positions and lost up to" in one for one in told), told
    assert any("6 of 6 held-out examples are the same" in one for one in told), told
    assert "more did not fit and were cut out" in preview(prepare(asked, base).items[0], base)


def test_too_few_examples_to_hold_any_out_say_so(base_folder, jsonl, tmp_path):
    done(settings(base_folder, jsonl([{"text": "river", "label": "a"}, {"text": "birds", "label": "b"}]), tmp_path))
    hint = next(event["hint"] for event in read_events(tmp_path / "adapter.run" / "events.jsonl", ("warning",)))
    assert "2 examples are too few" in hint


def test_every_row_without_a_label_is_counted_and_the_task_says_what_it_wants(base, base_folder, jsonl, tmp_path):
    rows = [{"text": "river"} if n % 3 == 0 else {"text": "birds", "label": "b"} for n in range(9)]
    with pytest.raises(DataError) as caught:
        prepare(settings(base_folder, jsonl(rows), tmp_path), base)
    assert "row 1: there is no 'label'; 3 of 9 rows cannot be used (also 4, 7)" in caught.value.message and "classify wants label" in caught.value.hint


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(base_folder, jsonl, tmp_path):
    asked = settings(base_folder, jsonl(labelled(20)), tmp_path)
    manifest = done(asked)
    path = tmp_path / "adapter.run" / "asked.json"
    before = json.loads(path.read_text())
    del before["classify"]["accuracy"]
    path.write_text(json.dumps(before))
    assert done(asked) == manifest
    with pytest.raises(StateError, match=r"classify.accuracy = 0.0, not 0.9"):
        done(replace(asked, classify=ClassifySettings(accuracy=0.9)))
