"""The public harness on our models, from local files: its numbers are ours; and its own loader of `transformers` models gives them too."""

import math
from types import SimpleNamespace

import pytest

from bedplate.core.config import load
from bedplate.core.errors import ConfigError
from bedplate.core.run import Run
from bedplate.evaluate import report, runner
from bedplate.evaluate.harness import harness_model
from bedplate.evaluate.settings import EvaluateSettings
from bedplate.evaluate.subject import Subject
from bedplate.testing.corpora import WORDS, tiny_text


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """PIQA and LAMBADA in their own form, and in one file each for the harness."""
    import json

    import numpy as np

    rng, folder = np.random.default_rng(5), tmp_path_factory.mktemp("data")
    rows = [{"goal": tiny_text(rng, 8).strip(), "sol1": tiny_text(rng, 5).strip(), "sol2": tiny_text(rng, 9).strip()} for _ in range(40)]
    labels = [int(label) for label in rng.integers(0, 2, 40)]
    (folder / "piqa").mkdir()
    (folder / "piqa" / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "piqa" / "valid-labels.lst").write_text("".join(f"{label}\n" for label in labels))
    (folder / "piqa.json").write_text("".join(json.dumps({**row, "label": label}) + "\n" for row, label in zip(rows, labels)))
    texts = [{"text": f"{tiny_text(rng, 12).strip()} {WORDS[n % len(WORDS)]}"} for n in range(25)]
    (folder / "lambada_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return folder


@pytest.fixture(scope="module")
def ours(data, base_folder, tmp_path_factory):
    to = tmp_path_factory.mktemp("run")
    given = {"model": base_folder, "data": data, "to": to, "tasks": ("piqa", "lambada"), "device": "cpu", "threads": 1}
    resolved = load(EvaluateSettings, given=given)
    with Run.open(to, "evaluate", resolved) as run:
        runner.evaluate(resolved.value, run)
    return {name: {measure: found.value for measure, found in report.scores(task, 0).items()} for name, task in report.read(to).tasks.items()}


@pytest.fixture
def harness(data, monkeypatch, tmp_path):
    """A model -> the harness's own numbers, with nothing but local files."""
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_CACHE": str(tmp_path / "hf")}.items():
        monkeypatch.setenv(name, value)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)

    def local(name, file, **config):
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
        return {"task": name, **where, **config}

    tasks = [
        local(
            "piqa_local",
            data / "piqa.json",
            output_type="multiple_choice",
            doc_to_text="Question: {{goal}}\nAnswer:",
            doc_to_target="label",
            doc_to_choice="{{[sol1, sol2]}}",
            metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
        ),
        local(
            "lambada_local",
            data / "lambada_test.jsonl",
            output_type="loglikelihood",
            doc_to_text="{{text.split(' ')[:-1]|join(' ')}}",
            doc_to_target="{{' '+text.split(' ')[-1]}}",
            metric_list=[{"metric": "perplexity"}, {"metric": "acc"}],
        ),
    ]

    def numbers(model, mark=""):
        asked = [{**task, "doc_to_text": mark + task["doc_to_text"]} for task in tasks]
        found = simple_evaluate(model=model, tasks=asked, bootstrap_iters=0, log_samples=False, task_manager=manager)["results"]
        return found["piqa_local"]["acc,none"], found["piqa_local"]["acc_norm,none"], found["lambada_local"]["perplexity,none"], found["lambada_local"]["acc,none"]

    return numbers


def test_its_numbers_are_ours(harness, ours, base_folder):
    acc, acc_norm, perplexity, lambada = harness(harness_model(Subject.load(base_folder)))
    assert acc == ours["piqa"]["accuracy"] and acc_norm == ours["piqa"]["accuracy_normalised"] and lambada == ours["lambada"]["accuracy"]
    assert math.log(perplexity) == pytest.approx(math.log(ours["lambada"]["perplexity"]), abs=1e-5)


def test_its_own_reading_of_the_same_folder_agrees(harness, ours, base_folder):
    """Nothing of ours computes here: `transformers` reads the folder, the harness cuts the tokens."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    mark = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(base_folder / "tokenizer.json"), bos_token=mark, eos_token=mark, pad_token="<|pad|>")
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=4)
    acc, acc_norm, perplexity, lambada = harness(theirs, mark)
    assert acc == ours["piqa"]["accuracy"] and acc_norm == ours["piqa"]["accuracy_normalised"] and lambada == ours["lambada"]["accuracy"]
    assert math.log(perplexity) == pytest.approx(math.log(ours["lambada"]["perplexity"]), abs=1e-4)


def test_its_three_requests(base_folder):
    subject = Subject.load(base_folder)
    model = harness_model(subject)

    def ask(*rows):
        return [SimpleNamespace(args=row) for row in rows]

    (one, greedy), (other, _) = model.loglikelihood(ask(("the quiet", " river"), ("", "boats and lamps")))
    assert one < 0 and isinstance(greedy, bool)
    assert model.loglikelihood_rolling(ask(("boats and lamps",)))[0] == pytest.approx(other, abs=1e-5)
    limits = {"until": ["."], "max_gen_toks": 5, "do_sample": False}
    assert model.generate_until(ask(("the", limits), ("a river", {**limits, "max_gen_toks": 3}))) == [*subject.answers(["the"], 5, ["."]), *subject.answers(["a river"], 3, ["."])]
    with pytest.raises(ConfigError, match="by chance"):
        model.generate_until(ask(("the", {"do_sample": True, "temperature": 0.7})))
