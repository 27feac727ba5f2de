"""A whole evaluation: tasks from files, report, resume to the bit, comparison, refusals, and the command line."""

import json
import zipfile
from pathlib import Path

import pytest

from bedplate.cli.app import main
from bedplate.core.config import load
from bedplate.core.errors import ConfigError, DataError, IntegrityError, StateError
from bedplate.core.run import Run
from bedplate.evaluate import report, runner
from bedplate.evaluate.compare import compare
from bedplate.evaluate.settings import EvaluateSettings
from bedplate.evaluate.subject import Subject
from bedplate.evaluate.tasks import TASKS

WORDS = ("river", "boats", "lamps", "birds", "winter", "rain", "stone")


@pytest.fixture
def data(tmp_path, lines):
    """Small files of the real form for every task that scores."""
    folder = tmp_path / "data"
    lines(folder / "piqa" / "valid.jsonl", [{"goal": f"the {WORDS[n % 7]}", "sol1": WORDS[n % 5], "sol2": f"{WORDS[n % 3]} and rain"} for n in range(30)])
    (folder / "piqa" / "valid-labels.lst").write_text("".join(f"{n % 2}\n" for n in range(30)))
    choices = [{"label": "ABC"[i], "text": WORDS[i]} for i in range(3)]
    lines(
        folder / "commonsenseqa" / "dev_rand_split.jsonl",
        [{"id": f"q{n}", "answerKey": "ABC"[n % 3], "question": {"stem": f"what carries {WORDS[n % 7]}?", "choices": choices}} for n in range(12)],
    )
    lines(folder / "source" / "lambada_test.jsonl", [{"text": f"the quiet {WORDS[n % 7]} and {WORDS[n % 4]}"} for n in range(9)])
    with zipfile.ZipFile(folder / "lambada.zip", "w") as archive:
        archive.write(folder / "source" / "lambada_test.jsonl", "inside/lambada_test.jsonl")
    (folder / "source" / "lambada_test.jsonl").unlink()
    (folder / "wikitext2").mkdir()
    (folder / "wikitext2" / "test.txt").write_text("".join(f" = {word} = \n\n the quiet {word} carries boats \n" for word in WORDS))
    return folder


def run(model, data, to, tasks=("piqa", "commonsenseqa", "lambada", "wikitext2"), **given):
    resolved = load(EvaluateSettings, given={"model": model, "data": data, "to": to, "tasks": tasks, "device": "cpu", "positions": 200, "threads": 1, **given})
    with Run.open(to, "evaluate", resolved) as opened:
        return runner.evaluate(resolved.value, opened)


def test_every_score_has_its_interval_conditions_and_digests(base_folder, data, tmp_path):
    manifest = run(base_folder, data, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert {name: task["examples"] for name, task in told["tasks"].items()} == {"piqa": 30, "commonsenseqa": 12, "lambada": 9, "wikitext2": 7}
    for task in told["tasks"].values():
        assert task["data"] and all(len(digest) == 64 for digest in task["data"].values())
        assert all(score["low"] <= score["value"] <= score["high"] for score in task["scores"])
    assert told["conditions"]["precision"] == "float32" and told["conditions"]["template"] == "raw"
    assert manifest.parents == {"model": json.loads((base_folder / "manifest.json").read_text())["digest"]}
    read = report.read(tmp_path / "run")
    assert set(read.tasks["piqa"].values) == {f"piqa/{n}" for n in range(30)}
    (tmp_path / "run" / "report" / "examples" / "piqa.jsonl").write_text("")
    with pytest.raises(IntegrityError):
        report.read(tmp_path / "run")


def test_a_stopped_run_goes_on_to_the_same_bits(base_folder, data, tmp_path, monkeypatch):
    whole = run(base_folder, data, tmp_path / "whole", ("piqa",))
    score, count = runner.Subject.load(base_folder).scorer.__class__.score_portion, [0]

    def dies(self, *given):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return score(self, *given)

    monkeypatch.setattr("bedplate.evaluate.scoring.Scorer.score_portion", dies)
    with pytest.raises(KeyboardInterrupt):
        run(base_folder, data, tmp_path / "cut", ("piqa",))
    judged = tmp_path / "cut" / "judged" / "piqa.jsonl"
    held = judged.read_bytes()
    assert 2 < held.count(b"\n") < 31
    judged.write_bytes(held + b'{"id": "piqa/0", "ri')  # what a killed writer leaves
    count[0] = 10
    again = run(base_folder, data, tmp_path / "cut", ("piqa",))
    assert again.digest == again.digest and again.files["examples/piqa.jsonl"] == whole.files["examples/piqa.jsonl"]
    calls = count[0]
    run(base_folder, data, tmp_path / "cut", ("piqa",))
    assert count[0] == calls, "nothing is judged twice"


def test_values_of_another_model_or_condition_are_not_taken(base_folder, other_folder, data, tmp_path):
    run(base_folder, data, tmp_path / "run", ("piqa",))
    for given in ({"model": other_folder}, {"limit": 5}):
        with pytest.raises(StateError, match="another (subject|conditions)"):
            run(given.get("model", base_folder), data, tmp_path / "run", ("piqa",), **{k: v for k, v in given.items() if k != "model"})
    (data / "piqa" / "valid-labels.lst").write_text("".join(f"{n % 3 % 2}\n" for n in range(30)))
    with pytest.raises(StateError, match="another data"):
        run(base_folder, data, tmp_path / "run", ("piqa",))


def test_two_reports_are_paired_by_example(base_folder, other_folder, data, tmp_path):
    run(base_folder, data, tmp_path / "one")
    run(other_folder, data, tmp_path / "two", limit=8)
    found = compare(report.read(tmp_path / "one"), report.read(tmp_path / "two"))
    assert {(c.task, c.difference.examples) for c in found.compared} == {("piqa", 8), ("commonsenseqa", 8), ("lambada", 8), ("wikitext2", 7)}
    assert any("one report only" in remark for remark in found.remarks)
    bits = next(c for c in found.compared if c.measure.name == "bits_per_byte")
    assert bits.difference.value == pytest.approx(bits.after - bits.before)
    assert bits.verdict == ("no clear difference" if not bits.difference.clear else "worse" if bits.difference.value > 0 else "better")
    same = compare(report.read(tmp_path / "one"), report.read(tmp_path / "one"))
    assert all(c.difference.value == 0 and c.verdict == "no clear difference" for c in same.compared)
    run(base_folder, data, tmp_path / "three", ("piqa",))
    with pytest.raises(DataError, match="no task in common"):
        compare(report.read(tmp_path / "three")._replace(tasks={}), report.read(tmp_path / "two"))


def test_what_cannot_be_measured_is_said_before_the_model_is_loaded(base_folder, data, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run(base_folder, data, tmp_path / "r", ("lambda",))
    assert "lambada" in caught.value.hint
    with pytest.raises(DataError, match=r"lambada needs a file lambada_test\.jsonl"):
        run(tmp_path / "no model", tmp_path, tmp_path / "r", ("lambada",))
    (data / "piqa" / "valid-labels.lst").write_text("1\n")
    with pytest.raises(DataError, match="do not fit"):
        run(base_folder, data, tmp_path / "r", ("piqa",))
    (data / "commonsenseqa" / "dev_rand_split.jsonl").write_text("{nothing\n")
    with pytest.raises(DataError, match="line 1"):
        run(base_folder, data, tmp_path / "r", ("commonsenseqa",))


def test_prefixes_are_shared_in_few_shots_only(base_folder, data):
    from bedplate.evaluate.files import Files

    subject = Subject.load(base_folder)
    examples = TASKS["commonsenseqa"].read(Files(data, "commonsenseqa"), 0)
    families = [TASKS["commonsenseqa"].kind.rows(subject, example) for example in examples]
    assert subject.scorer.shares(families), "five short answers to one long question"


def test_the_command_line(base_folder, other_folder, data, tmp_path, capsys):
    main(["evaluate", "run", str(base_folder), "--tasks", "piqa,lambada", "--data", str(data), "--to", str(tmp_path / "a"), "--limit", "8", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["finished"] and set(told["tasks"]) == {"piqa", "lambada"}
    main(["evaluate", "run", str(other_folder), "--tasks", "piqa,lambada", "--data", str(data), "--to", str(tmp_path / "b"), "--limit", "8"])
    assert "accuracy" in capsys.readouterr().out
    main(["evaluate", "compare", str(tmp_path / "a"), str(tmp_path / "b")])
    said = capsys.readouterr().out
    assert " points (" in said and "in piqa accuracy" in said
    main(["evaluate", "tasks", "--json"])
    assert {row["task"] for row in json.loads(capsys.readouterr().out)} == set(TASKS)


@pytest.mark.shared
def test_the_real_files_are_read(shared_data):
    from bedplate.evaluate.files import Files

    sizes = {"piqa": 1838, "commonsenseqa": 1221, "lambada": 5153, "wikitext2": 62}
    for name, size in sizes.items():
        examples = TASKS[name].read(Files(Path(shared_data) / "eval", name), 0)
        assert len(examples) == size == len({example.id for example in examples})
