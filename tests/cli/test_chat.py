"""`bedplate chat` from a pipe, as a script drives it."""

import io
import json

import pytest

from bedplate.adapt.loop import adapt
from bedplate.adapt.settings import AdaptSettings, ExampleSettings, MethodSettings, TrainSettings
from bedplate.core.config import Resolved
from bedplate.core.console import printable
from bedplate.core.run import Run
from bedplate.infer.worker import Worker
from bedplate.testing.bases import tiny_base


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def say(run, monkeypatch, model):
    def call(lines, *words):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return run("chat", model, "--max-tokens", 8, *words)

    return call


def test_answers_and_commands(say, tmp_path):
    code, out, err = say(["the river", "/set temperature=0.5", "/system be short", "/again", "/save " + str(tmp_path / "talk.jsonl"), "/clear", "/quit", "x"])
    assert code == 0 and out.count("\n") >= 2
    for told in ("without an adapter, as the base does", "temperature=0.5", "tokens/s", "be short", "3 turns are line 1 of", "forgotten"):
        assert told in err
    kept = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert [turn["role"] for turn in kept] == ["system", "user", "assistant"] and kept[1]["content"] == "the river"
    assert set(kept[2]) == {"role", "content"}


def test_a_conversation_is_added_to_a_file_and_takes_nothing_from_it(say, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    code, _, err = say(["the river", f"/save {path}"])
    lines = path.read_text().splitlines()
    assert code == 0 and json.loads(lines[0]) == {"prompt": "a", "completion": "b"} and "messages" in json.loads(lines[1]) and "line 2 of" in err
    code, _, err = say([f"/save {path}"])
    assert code == 2 and "nothing was said" in err and len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_who_computes_is_told(say, precision):
    code, out, err = say(["the river"], "--precision", precision, "--json")
    assert code == 0 and (runner := json.loads(out)["runner"]) and runner.startswith(("cpu", "torch"))
    assert precision in runner or runner.startswith("torch"), "without a compiler torch computes"


def test_json_holds_every_answer(say):
    code, out, _ = say(["the river", "and"], "--json")
    made = json.loads(out)
    assert code == 0 and len(made["answers"]) == 2 and made["adapter"] is None and all(answer["tokens"] <= 8 for answer in made["answers"])


@pytest.mark.parametrize(("line", "told"), [("/sett", "/set"), ("/set tempature=1", "temperature"), ("/set seed=x", "no number"), ("/set top_p=0", "top_p"), ("/save", "no file")])
def test_a_script_that_asks_for_what_is_not_there_ends_with_an_error(say, line, told):
    code, _, err = say([line])
    assert code == 2 and told in err


def learned(model, to, task, method, rows, **train):
    """An adapter, as `bedplate adapt` makes one."""
    to.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = TrainSettings(device="cpu", threads=1, **train)
    made = AdaptSettings(model, to, task, ExampleSettings(to.with_suffix(".jsonl")), MethodSettings(method), train=train)
    with Run.open(to.with_suffix(".run"), "adapt", Resolved(made, {})) as opened:
        adapt(made, opened)
    return to


@pytest.mark.parametrize(("method", "lr"), [("lora", 3e-2), ("full", 3e-3)])
def test_another_adapter_answers_from_then_on(say, model, tmp_path, method, lr):
    rows = [{"prompt": f"the river {n}", "completion": "lamps lamps"} for n in range(8)]
    folder = learned(model, tmp_path / method, "generate", method, rows, epochs=6, lr=lr)
    lines = ["the river", "/clear", f"/adapter {folder}", "the river", "/clear", "/adapter none", "the river"]
    code, out, _ = say(lines, "--precision", "float32", "--json")
    first, adapted, again = (answer["answer"] for answer in json.loads(out)["answers"])
    assert code == 0 and first == again
    assert adapted == Worker.load(model, folder).generate(["the river"], max_tokens=8)[0] != first
    code, out, _ = say(["the river"], "--precision", "float32", "--adapter", folder, "--json")
    assert code == 0 and json.loads(out)["answers"][0]["answer"] == adapted


def test_an_adapter_of_another_job_is_refused(say, model, tmp_path):
    folder = learned(model, tmp_path / "a", "classify", "probe", [{"text": f"w{n * 7}", "label": str(n % 2)} for n in range(16)])
    code, _, err = say(["x"], "--adapter", folder)
    assert code == 2 and "learned to classify" in err and "bedplate predict" in err


def test_what_a_model_says_cannot_steer_the_terminal():
    assert printable("a\x1b[31mb\x07c\r\nd\te\x9bf") == "a\ufffd[31mb\ufffdc\nd\te\ufffdf"
