"""`bedplate adapt` and `predict` from the command line: flags and recipe alike, preview, answers."""

import json
import signal
import subprocess
import sys

import pytest

import bedplate
from bedplate.cli.app import main
from bedplate.core.events import EventLog
from bedplate.core.run import run_state
from bedplate.testing.bases import tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def examples(tmp_path):
    path = tmp_path / "mail.csv"
    path.write_text("body,kind\n" + "\n".join(f"{word} {word} {n},{kind}" for n in range(20) for word, kind in (("river", "calm"), ("birds", "loud"))))
    return path


COLUMNS = ("--set", "data.columns.text=body", "--set", "data.columns.label=kind")


def test_flags_and_recipe_make_the_same_adapter(base, examples, tmp_path, capsys):
    main(["adapt", str(base), "--task", "classify", "--data", str(examples), "--to", str(tmp_path / "one"), *COLUMNS, "--set", "train.epochs=1", "--json"])
    one = json.loads(capsys.readouterr().out)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'base = "{base}"\ntask = "classify"\n[data]\nfile = "{examples}"\ncolumns = {{text = "body", label = "kind"}}\n[train]\nepochs = 1.0\n')
    main(["adapt", "--recipe", str(recipe), "--to", str(tmp_path / "two"), "--json"])
    two = json.loads(capsys.readouterr().out)
    assert one["finished"] and one["scores"] == two["scores"] and one["scores"]["accuracy"] == 1
    assert (tmp_path / "one" / "adapter_model.safetensors").read_bytes() == (tmp_path / "two" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "new.jsonl").write_text('{"text": "birds birds"}\n{"text": "river river"}\n')
    main(["predict", str(base), str(tmp_path / "one"), str(tmp_path / "new.jsonl"), "--out", str(tmp_path / "said.jsonl")])
    assert [json.loads(line)["label"] for line in (tmp_path / "said.jsonl").read_text().splitlines()] == ["loud", "calm"]


def test_stopped_work_ends_as_an_interruption_and_goes_on(base, examples, tmp_path, capsys, monkeypatch):
    asked = ["adapt", str(base), "--task", "classify", "--data", str(examples), "--to", str(tmp_path / "x"), *COLUMNS, "--set", "train.epochs=4", "--json"]
    emit = EventLog.emit

    def stopping(self, event, **told):
        emit(self, event, **told)
        if event == "step":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(EventLog, "emit", stopping)
    with pytest.raises(SystemExit) as caught:
        main(asked)
    assert caught.value.code == 130 and json.loads(capsys.readouterr().out) == {"adapter": None, "finished": False}
    monkeypatch.undo()
    main(asked)
    assert json.loads(capsys.readouterr().out)["finished"]


def test_a_preview_trains_nothing(base, tmp_path, capsys):
    data = tmp_path / "chat.jsonl"
    data.write_text('{"prompt": "river", "completion": "birds"}\n' * 3)
    main(["adapt", str(base), "--data", str(data), "--to", str(tmp_path / "x"), "--preview", "2"])
    shown = capsys.readouterr().out
    assert shown.count("⟦birds<|im_end|>⟧") == 2 and not (tmp_path / "x").exists() and not (tmp_path / "x.run").exists()


def test_errors_are_for_people(base, examples, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["adapt", str(base), "--task", "clasify", "--data", str(examples), "--to", str(tmp_path / "x")])
    assert caught.value.code == 2 and "did you mean 'classify'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["adapt", str(base), "--task", "classify", "--data", str(examples), "--to", str(tmp_path / "x")])
    told = capsys.readouterr().err
    assert caught.value.code == 3 and "row 1" in told and "body, kind" in told


TASKS = {
    "regress": ({"text": "river", "value": 3}, {"text": "birds", "value": 5}, {"value", "low", "high"}),
    "embed": ({"text": "river", "positive": "water"}, {"text": "birds", "positive": "air"}, {"vector"}),
    "rank": ({"query": "river", "positive": "water", "negative": "air"}, {"query": "birds", "positive": "air", "negative": "water"}, {"order", "scores"}),
    "extract": ({"text": "the river", "spans": [{"start": 4, "end": 9, "label": "way"}]}, {"text": "birds", "spans": []}, {"spans"}),
    "prefer": ({"prompt": "river", "chosen": "water", "rejected": "air"}, {"prompt": "birds", "chosen": "air", "rejected": "rain"}, {"answer"}),
    "distill": ({"prompt": "river", "completion": "water"}, {"prompt": "birds", "completion": "air"}, {"answer"}),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_learned_and_predicted(base, tmp_path, capsys, task):
    *rows, keys = TASKS[task]
    data = tmp_path / "examples.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 8))
    more = ["--set", f"distill.teacher={base}"] if task == "distill" else []
    command = ["adapt", str(base), "--task", task, "--data", str(data), "--to", str(tmp_path / "x"), "--set", "train.epochs=1", *more]
    main([*command, "--preview", "1"])
    assert "⟦" in capsys.readouterr().out
    main([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["finished"]
    new = tmp_path / "new.jsonl"
    new.write_text(json.dumps({**rows[0], "texts": ["water", "air"]}) + "\n")
    main(["predict", str(base), str(tmp_path / "x"), str(new), "--max-tokens", "4"])
    assert set(json.loads(capsys.readouterr().out)) == {"row", *keys}


def test_a_base_that_reads_on_is_a_base(base, tmp_path, capsys):
    files = tmp_path / "files"
    files.mkdir()
    for number in range(12):
        (files / f"{number}.txt").write_text(f"{number} lamps and birds return before the winter rain past stone bridges. " * 3 + f"\nriver {number}\n")
    command = ["adapt", str(base), "--task", "continue", "--data", str(files), "--to", str(tmp_path / "more")]
    small = ["--set", "train.epochs=0.1", "--set", "train.examples_per_step=1", "--set", "train.threads=1", "--set", "data.most_positions=64"]
    main([*command, *small, "--preview", "1"])
    assert "64 positions" in capsys.readouterr().out
    main([*command, *small, "--json"])
    assert json.loads(capsys.readouterr().out)["finished"]
    main(["generate", str(tmp_path / "more"), "the river", "--plain"])
    assert capsys.readouterr().out


def test_a_refused_setting_leaves_a_finished_run_as_it_was(base, examples, tmp_path, capsys):
    asked = ["adapt", str(base), "--task", "classify", "--data", str(examples), "--to", str(tmp_path / "x"), *COLUMNS, "--set", "train.epochs=1"]
    main(asked)
    written = (tmp_path / "x.run" / "run.toml").read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*asked, "--set", "train.lr=0.5"])
    told = capsys.readouterr().err
    assert caught.value.code == 6 and 'train.lr = "auto", not 0.5' in told
    assert (tmp_path / "x.run" / "run.toml").read_bytes() == written and run_state(tmp_path / "x.run") == "finished"
    examples.write_text(examples.read_text() + "\nriver,calm")
    with pytest.raises(SystemExit):
        main(asked)
    assert "mail.csv held something else" in capsys.readouterr().err and run_state(tmp_path / "x.run") == "finished"


def test_a_folder_that_cannot_be_written_is_said_in_words(base, examples, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        main(["adapt", str(base), "--task", "classify", "--data", str(examples), "--to", str(tmp_path / "file" / "x"), *COLUMNS])
    told = capsys.readouterr().err
    assert caught.value.code == 3 and "not a directory" in told and "foreseen" not in told


def test_without_a_base_nothing_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["adapt", "--task", "classify"])
    assert caught.value.code == 2 and "bedplate get" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_shares_carry_their_interval(base, examples, tmp_path, capsys):
    main(["adapt", str(base), "--task", "classify", "--data", str(examples), "--to", str(tmp_path / "x"), *COLUMNS, "--set", "train.epochs=1", "--plain"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["accuracy", "1.000", "1.000", "0.610", "to", "1.000"] in lines, lines


def test_the_package_is_a_command_as_well():
    told = subprocess.run([sys.executable, "-m", "bedplate", "--version"], check=False, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0 and told.stdout.strip() == bedplate.__version__
