"""Every setting of an adaptation has its effect; tests/project/test_effects.py holds the list against the settings."""

import numpy as np
import pytest
import torch
from adaptations import done, labelled, run_of
from safetensors.torch import load_file

from bedplate.adapt.base import Base
from bedplate.adapt.loop import assemble, place, prepare
from bedplate.adapt.settings import AdaptSettings
from bedplate.core.config import from_mapping, to_mapping
from bedplate.core.errors import ConfigError, DataError
from bedplate.core.events import read_events
from bedplate.testing.bases import tiny_base


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Labelled texts with a column for every setting to look at."""
    import json

    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [
        row | {"prompt": row["text"], "completion": row["label"], "theme": str(rng.integers(2)), "source": str(number // 6), "counts": 1 + number % 3, "positive": row["text"][::-1]}
        for number, row in enumerate(labelled(60))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.with_name("other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[10:50]))
    return path


def asked_for(base_folder, file, folder, *changes):
    """Settings of a short run; each change is (dotted key, value)."""
    tree = {
        "base": str(base_folder), "to": str(folder / "adapter"), "task": "classify", "data": {"file": str(file)}, "method": {"name": "full"},
        "train": {"epochs": 1, "examples_per_step": 8, "lr": 1e-3, "threads": 1, "evaluate_every": 2},
    }  # fmt: skip
    for key, value in changes:
        *tables, last = key.split(".")
        at = tree
        for table in tables:
            at = at.setdefault(table, {})
        at[last] = value
    return from_mapping(AdaptSettings, tree)


def outcome(asked):
    """What a run leaves: its tensors, and what its worker is told."""
    done(asked)
    told = (asked.to / "task.json").read_text()
    return {name: t.tolist() for path in sorted(asked.to.glob("*.safetensors")) for name, t in load_file(path).items()}, told


@pytest.fixture(scope="module")
def usual(base_folder, file, tmp_path_factory):
    """What comes out by task, nothing changed."""
    return {task: outcome(asked_for(base_folder, file, tmp_path_factory.mktemp(task), ("task", task))) for task in ("classify", "generate", "embed")}


@pytest.mark.parametrize(("task", "key", "value"), [
    ("classify", "data.held_out", 0.4), ("classify", "data.columns", {"label": "theme"}), ("classify", "data.group", "source"),
    ("classify", "data.most_positions", 8), ("generate", "data.template", "raw"), ("classify", "method.name", "probe"),
    ("classify", "classify.weights", "balanced"), ("classify", "classify.words", True),
    ("classify", "classify.weight_column", "counts"), ("classify", "classify.accuracy", 0.99), ("classify", "train.epochs", 2),
    ("classify", "train.examples_per_step", 5), ("classify", "train.lr", 2e-3), ("classify", "train.weight_decay", 0.5),
    ("classify", "train.warmup_share", 0.6), ("classify", "train.clip", 1e-3), ("classify", "train.seed", 1),
    ("classify", "train.precision", "bfloat16"),
    ("embed", "embed.temperature", 0.5), ("classify", "base", None), ("generate", "task", None), ("classify", "data.file", None), ("classify", "data.held_out_file", None),
])  # fmt: skip
def test_every_setting_of_learning_changes_the_adapter(base_folder, file, usual, tmp_path, task, key, value):
    other = {"base": lambda: str(tiny_base(tmp_path / "b", seed=3)), "task": lambda: task, "data.file": lambda: str(file.with_name("other.jsonl"))}
    other["data.held_out_file"] = other["data.file"]
    changed = outcome(asked_for(base_folder, file, tmp_path, ("task", task), (key, value if value is not None else other[key]())))
    assert changed != (usual["classify"] if key == "task" else usual[task])


@pytest.fixture(scope="module")
def low_rank(base_folder, file, tmp_path_factory):
    return outcome(asked_for(base_folder, file, tmp_path_factory.mktemp("lora"), ("method.name", "lora")))[0]


@pytest.mark.parametrize(("key", "value"), [
    ("method.name", "dora"), ("method.rank", 8), ("method.alpha", 8.0), ("method.rslora", True), ("method.targets", ["q_proj", "v_proj"]),
    ("method.dropout", 0.3), ("method.base_bits", 8), ("method.base_bits", 4),
])  # fmt: skip
def test_every_setting_of_a_low_rank_change_changes_the_tensors(base_folder, file, low_rank, tmp_path, key, value):
    asked = asked_for(base_folder, file, tmp_path, ("method.name", "lora"), (key, value))
    assert outcome(asked)[0] != low_rank


def test_reading_the_last_token_and_starting_from_an_adapter(base_folder, file, low_rank, tmp_path):
    first = asked_for(base_folder, file, tmp_path / "first", ("method.name", "lora"), ("classify.reads", "last"), ("method.rank", 4))
    tensors, told = outcome(first)
    assert tensors.keys() != low_rank.keys() and '"reads": "last"' in told
    asked = asked_for(base_folder, file, tmp_path / "second", ("method.name", "lora"), ("method.start", str(first.to)))
    second = outcome(asked)[0]
    factor = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert np.shape(second[factor]) == np.shape(tensors[factor]) != np.shape(low_rank[factor])  # its rank is the other's
    assert np.abs(np.array(second[factor]) - np.array(tensors[factor])).max() < 0.01
    for changes, word in (
        ((("classify.reads", "last"),), "no place beside"), ((("classify.reads", "last"), ("classify.words", True)), "more than the last"),
        ((("method.start", "x"),), "does not go on"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=word):
            asked_for(base_folder, file, tmp_path, *changes)
    other = asked_for(tiny_base(tmp_path / "b", seed=3), file, tmp_path / "third", ("method.name", "lora"), ("method.start", str(first.to)))
    with pytest.raises(DataError, match="another base"):
        done(other)


@pytest.mark.parametrize(("key", "value", "said"), [
    ("rank", 0, "rank"), ("alpha", 0.0, "alpha"), ("dropout", 1.0, "dropout"), ("targets", [], "names nothing"), ("targets", ["q_prj"], "q_prj"),
    ("base_bits", 4, "few bits"), ("base_bits", 5, "base_bits"),
])  # fmt: skip
def test_methods_that_cannot_be_are_refused(base_folder, file, tmp_path, key, value, said):
    with pytest.raises(ConfigError, match=said):
        asked_for(base_folder, file, tmp_path, (f"method.{key}", value))


def told(asked, kind):
    return list(read_events(asked.to.with_name("adapter.run") / "events.jsonl", (kind,)))


def test_settings_of_looking_change_what_is_told(base_folder, file, tmp_path):
    looks = {}
    for every in (2, 3):
        asked = asked_for(base_folder, file, tmp_path / str(every), ("train.evaluate_every", every))
        done(asked)
        looks[every] = [event["step"] for event in told(asked, "evaluated")]
    assert looks[2] != looks[3]
    changes = ("train.patience", 1), ("train.lr", 1.0), ("train.epochs", 5), ("train.evaluate_every", 1)
    hasty, patient = asked_for(base_folder, file, tmp_path / "a", *changes), asked_for(base_folder, file, tmp_path / "b", *changes[1:])
    done(hasty), done(patient)
    assert len(told(hasty, "step")) < len(told(patient, "step"))


@pytest.mark.parametrize(("changes", "kept"), [
    ([("checkpoint.every_steps", 2), ("checkpoint.every_s", 0.0), ("checkpoint.keep_last", 2)], [4, 6]),
    ([("checkpoint.every_steps", 3), ("checkpoint.every_s", 0.0), ("checkpoint.keep_last", 1)], [6]),
    ([("checkpoint.every_steps", 2), ("checkpoint.every_s", 0.0), ("checkpoint.keep_last", 1), ("checkpoint.keep_every_steps", 2)], [2, 4, 6]),
    ([("checkpoint.every_s", 1e-6), ("checkpoint.keep_last", 1)], [7]),
])  # fmt: skip
def test_settings_of_saving_change_what_is_kept(base_folder, file, tmp_path, changes, kept):
    asked = asked_for(base_folder, file, tmp_path, *changes)
    done(asked)
    found = sorted(int("".join(filter(str.isdigit, path.name))) for path in (tmp_path / "adapter.run" / "checkpoints").iterdir())
    assert found == kept and (asked.to / "manifest.json").is_file()


def test_settings_of_the_machine(base_folder, file, tmp_path):
    before = torch.get_num_threads()
    asked = asked_for(base_folder, file, tmp_path, ("train.threads", before + 1), ("train.device", "meta"), ("train.positions_per_micro", 64))
    try:
        assert place(asked)[0] == "meta" and torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    with run_of(asked) as run:
        assert assemble(asked, prepare(asked, Base.load(base_folder)), run, torch.float32).positions_per_micro == 64
    assert to_mapping(asked)["train"]["threads"] == before + 1
