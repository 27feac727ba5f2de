"""Tasks in which the model writes, labels or finds; tasks of one's own; generation in rows against one at a time."""

import gzip
import json
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from bedplate.cli.app import main
from bedplate.core.errors import ConfigError, DataError
from bedplate.evaluate.answering import Answer, Code, Summary
from bedplate.evaluate.files import Files
from bedplate.evaluate.kinds import Example
from bedplate.evaluate.subject import Subject
from bedplate.evaluate.tasks import TASKS
from bedplate.evaluate.tasks.answers import FINAL
from bedplate.evaluate.tasks.own import own_task
from bedplate.evaluate.working import Retrieve, ranked
from bedplate.infer.answers import Answers


def test_only_what_is_written_in_the_form_counts():
    kind = Answer(extract=FINAL)
    example = Example("x", answer="so 1,000 + 800\n#### 1,800")
    said = {"#### 1800.": True, " it is\n#### 1,800\nQ": True, "#### 180": False, "1800": False, "####1800": False, "#### 5 #### 1800": False, "": False}
    assert {text: kind.values(example, text)["right"] for text in said} == said
    assert [kind.values(example, text)["in_form"] for text in ("1800", "#### 1")] == [False, True]
    assert Answer().values(Example("x", answer="yes"), " yes\n")["right"]


def test_code_is_put_where_it_belongs():
    kind = Code()
    head = 'from typing import List\n\ndef f(x: List) -> int:\n    """Length."""\n'
    example = Example("x", head, answer="assert f([1]) == 1", cells={"head": head, "entry_point": "f"})
    for said in ("    return len(x)\n", "Sure:\n```python\ndef f(x: List) -> int:\n    return len(x)\n```\nDone.", "```\n    return len(x)\n```"):
        assert kind.values(example, said)["right"], said
    assert kind.values(example, "    return 2\n")["reason"] == "failed" and kind.values(example, "    return (\n")["reason"] == "error"


def test_rouge_is_the_packages():
    found = Summary().values(Example("x", answer="the cats sat on the mat"), "the cat sat")
    assert found["rouge1"] == pytest.approx(2 / 3) and found["rouge2"] == pytest.approx(4 / 7) and found["rougeL"] == pytest.approx(2 / 3)


def test_ranks_are_scikit_learns():
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(0)
    for _ in range(20):
        near, grades = rng.normal(size=30), rng.integers(0, 4, 30) * (rng.random(30) < 0.3)
        if not grades.any():
            continue
        relevant = {str(i): float(grade) for i, grade in enumerate(grades) if grade}
        found = ranked(near, [str(i) for i in range(30)], relevant)
        assert found["ndcg_at_10"] == pytest.approx(ndcg_score(grades[None], near[None], k=10))
    assert ranked(np.array([0.1, 0.9]), ["a", "b"], {"a": 1})["recall_at_1"] == 0


def test_own_tasks_of_every_kind(base_folder, tmp_path, lines, capsys):
    rows = [{"q": f"the {word}", "options": ["river", "boats"], "right": n % 2, "word": word, "name": word} for n, word in enumerate(("lamps", "birds", "rain"))]
    lines(tmp_path / "rows.jsonl", rows)
    lines(tmp_path / "documents.jsonl", [{"id": row["word"], "text": f"the {row['word']}"} for row in rows])
    say = {
        "bits": 'prompt = "{q} {word}"',
        "choose": 'prompt = "{q}"\nchoices = "options"\nanswer = "right"\nid = "name"',
        "continue": 'prompt = "{q}"\nanswer = "word"',
        "answer": 'prompt = "{q}"\nanswer = "word"\nmax_tokens = 4\nstops = ["."]',
        "summary": 'prompt = "{q}"\nanswer = "word"\nmax_tokens = 4',
        "retrieve": 'prompt = "{q}"\nanswer = "word"',
    }
    for kind, text in say.items():
        (tmp_path / f"my-{kind}.toml").write_text(f'kind = "{kind}"\nfile = "rows.jsonl"\n{text}\n')
    named = ",".join(str(tmp_path / f"my-{kind}.toml") for kind in say)
    main(["evaluate", "run", str(base_folder), "--tasks", named, "--to", str(tmp_path / "run"), "--json"])
    told = json.loads(capsys.readouterr().out)["tasks"]
    assert set(told) == {f"my-{kind}" for kind in say} and all(task["examples"] == 3 and task["scores"] for task in told.values())
    assert {s["name"]: s["value"] for s in told["my-retrieve"]["scores"]}["recall_at_1"] == 1, "a text lies nearest to itself"
    assert told["my-answer"]["asked"]["max_tokens"] == 4
    assert told["my-answer"]["computed_by"].endswith(" float32"), "which numbers said it"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('kind = "chose"\nfile = "rows.jsonl"', "chose"),
        ('kind = "choose"\nfile = "rows.jsonl"\nprompt = "{nothing}"', "nothing"),
        ('kind = "choose"\nfile = "rows.jsonl"\nprompt = "{q}"\nchoices = ["a", "b"]\nanswer = "q"', "none of the choices"),
        ('kind = "answer"\nfile = "rows.jsonl"\nextract = "("', "no pattern"),
        ('kind = "bits"\nfile = "gone.jsonl"', "gone.jsonl"),
        ('kind = "bits"\nfile = "rows.jsonl"\nwhat = 1', "what"),
    ],
)
def test_own_tasks_are_strict(tmp_path, lines, text, problem):
    lines(tmp_path / "rows.jsonl", [{"q": "x"}])
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises((ConfigError, DataError), match=problem):
        task = own_task(tmp_path / "mine.toml")
        task.read(Files(tmp_path, "mine"), 0)


def test_a_worker_is_measured_by_its_labels(base_folder, tmp_path, lines, capsys):
    rows = [{"body": f"{word} {word} {n}", "kind": kind} for n in range(20) for word, kind in (("river", "calm"), ("birds", "loud"))]
    lines(tmp_path / "mail.jsonl", rows)
    columns = ("--set", "data.columns.text=body", "--set", "data.columns.label=kind")
    main(["adapt", str(base_folder), "--task", "classify", "--data", str(tmp_path / "mail.jsonl"), "--to", str(tmp_path / "worker"), "--method", "probe", *columns])
    (tmp_path / "spam.toml").write_text('kind = "label"\nfile = "mail.jsonl"\nanswer = "kind"\ncolumns = {text = "body"}\n')
    capsys.readouterr()
    asked = ["evaluate", "run", str(base_folder), "--tasks", str(tmp_path / "spam.toml"), "--to", str(tmp_path / "run"), "--json"]
    main([*asked, "--adapter", str(tmp_path / "worker")])
    told = json.loads(capsys.readouterr().out)
    found = {s["name"]: s for s in told["tasks"]["spam"]["scores"]}
    assert found["accuracy"]["value"] == 1 and found["macro_f1"]["value"] == 1 and found["accuracy"]["low"] > 0.9 and told["model"]["name"] == "worker"
    assert set(told["model"]["digests"]) == {"model", "adapter"}
    with pytest.raises(SystemExit) as caught:
        main([*asked[:-2], str(tmp_path / "bare")])
    assert caught.value.code == 2 and "--adapter" in capsys.readouterr().err


def test_a_worker_that_embeds_is_measured_by_its_own_vectors(base_folder, tmp_path, lines):
    words = ("lamps", "birds", "rain", "stone")
    pairs = [{"text": f"the {word} {n}", "positive": f"{word} and {word}"} for word in words for n in range(4)]
    lines(tmp_path / "pairs.jsonl", pairs)
    main(["adapt", str(base_folder), "--task", "embed", "--data", str(tmp_path / "pairs.jsonl"), "--to", str(tmp_path / "worker"), "--set", "train.epochs=1"])
    bare, worker = Subject.load(base_folder).vectors(list(words)), Subject.load(base_folder, tmp_path / "worker").vectors(list(words))
    assert bare.shape == worker.shape and np.allclose(np.linalg.norm(worker, axis=1), 1, atol=1e-5) and not np.allclose(bare, worker)


def test_tasks_that_write_end_to_end(base_folder, tmp_path, lines, capsys):
    solved = [{"question": f"the {n} boats", "answer": f"so {n}\n#### {n}"} for n in range(6)]
    lines(tmp_path / "gsm8k" / "train.jsonl", solved)
    lines(tmp_path / "gsm8k" / "test.jsonl", solved[:2])
    row = {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f):\n    assert f() == 1\n"}
    (tmp_path / "humaneval").mkdir()
    with gzip.open(tmp_path / "humaneval" / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    main(["evaluate", "run", str(base_folder), "--tasks", "gsm8k,humaneval", "--data", str(tmp_path), "--to", str(tmp_path / "run"), "--set", "max_tokens=4", "--json"])
    told = json.loads(capsys.readouterr().out)["tasks"]
    assert told["gsm8k"]["asked"]["shots"] == 5 and told["humaneval"]["scores"][0]["value"] == 0
    example = TASKS["gsm8k"].read(Files(tmp_path, "gsm8k"), 2)[0]
    assert example.prompt.count("#### ") == 2 and example.prompt.endswith("Question: the 0 boats\nAnswer:")
    with pytest.raises(DataError, match="6 solved examples"):
        TASKS["gsm8k"].read(Files(tmp_path, "gsm8k"), 7)
    assert asdict(TASKS["gsm8k"].kind)["max_tokens"] == 400


def test_a_conversation_is_asked_by_the_template(base_folder, monkeypatch):
    subject = Subject.load(base_folder, template="chat")
    seen = []
    monkeypatch.setattr(Answers, "texts", lambda self, asked, *rest: seen.extend(self.base.decode(one.tokens) for one in asked) or ["x"])
    subject.answers(["hello"], 4)
    assert "<|im_start|>user\nhello<|im_end|>" in seen[0] and seen[0].endswith("<|im_start|>assistant\n")


def test_relevant_documents_must_be_there(base_folder):
    kind = Retrieve()
    with pytest.raises(DataError, match="not there"):
        kind.prepare(Subject.load(base_folder), [Example("x", "q", cells={"documents": {"a": "text"}, "relevant": {"b": 1.0}})])


@pytest.mark.shared
@pytest.mark.parametrize(("name", "stride"), [("humaneval", 8), ("mbpp-plus", 20)])
def test_published_solutions_pass_in_the_sandbox(shared_data, name, stride):
    folder = Path(shared_data) / "eval"
    examples = TASKS[name].read(Files(folder, name), 0)
    files = Files(folder, name)
    rows = files.rows("HumanEval.jsonl.gz") if name == "humaneval" else files.rows("MbppPlus-OriginFmt.jsonl.gz")
    kind = TASKS[name].kind
    assert len(examples) == len(rows) == {"humaneval": 164, "mbpp-plus": 378}[name]
    for example, row in list(zip(examples, rows))[::stride]:
        found = kind.values(example, row.get("canonical_solution") or row["code"])
        assert found["right"], (example.id, found["reason"], found["detail"])


def test_a_label_counts_where_the_worker_abstains():
    from bedplate.evaluate.working import Label

    said = namedtuple("Said", "label probabilities")(None, {"a": 0.6, "b": 0.4})
    assert Label().values(Example("x", answer="a"), said) == {"label": "a", "said": "a", "right": True, "confidence": 0.6, "answered": False}
