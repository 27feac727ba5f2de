"""Pre-training of the real model on a real corpus: from settings to a model folder, stopped and resumed to the bit, planned and traced."""

import numpy as np
import pytest
import torch

from bedplate.core.config import from_mapping, load
from bedplate.core.errors import ConfigError, DataError, IntegrityError, StateError
from bedplate.core.events import read_events
from bedplate.core.run import Run
from bedplate.data.corpus import Corpus
from bedplate.data.loader import Loader
from bedplate.model.foundation import FoundationModel
from bedplate.pretrain import training
from bedplate.pretrain.derive import Budget, derive, parse_budget
from bedplate.pretrain.loop import pretrain, token_bytes
from bedplate.pretrain.measure import Speed, measure, synthetic_batch
from bedplate.pretrain.plan import plan
from bedplate.pretrain.settings import PretrainSettings
from bedplate.pretrain.trace import trace
from bedplate.testing.corpora import tiny_corpus
from bedplate.testing.models import tiny_config

SMALL = [
    "model.size=nano", "model.context=64", "model.overrides={hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8, flow_blocks=1}",
    "run.rows_per_step=6", "run.rows_per_micro=4", "run.threads=1", "run.steps=12", "evaluate.rows=4", "checkpoint.every_s=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpora") / "c", documents=30)


def resolved(corpus, *more):
    return load(PretrainSettings, given={"data.corpus": str(corpus.folder)}, overrides=[*SMALL, *more])


def run(corpus, folder, *more):
    asked = resolved(corpus, *more)
    with Run.open(folder, "pretrain", asked) as opened:
        return pretrain(asked.value, opened)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "r"
    run(corpus, folder)
    return folder


def test_a_run_ends_with_a_model_of_every_sense_and_its_lineage(corpus, finished):
    model = FoundationModel.load(finished / "model")
    assert set(model.config.senses.present()) == {"image", "audio", "video", "series"}
    from bedplate.core.artifact import read_manifest

    assert read_manifest(finished / "model").parents == {"corpus": corpus.manifest.digest}
    steps = list(read_events(finished / "events.jsonl", ("step",)))
    evaluated = list(read_events(finished / "events.jsonl", ("evaluated",)))
    assert [s["step"] for s in steps] == list(range(1, 13)) and {"loss_text", "lr", "gradient_norm", "units_per_s"} <= set(steps[-1])
    assert evaluated[-1]["loss"] < evaluated[0]["loss"] or len(evaluated) == 1
    assert evaluated[-1]["bits_per_byte"] > 0


def test_an_interrupted_run_ends_with_the_same_weights(corpus, finished, tmp_path, monkeypatch):
    original = training.Training.take_step

    def crash(self):
        if self.progress.step == 7:
            raise RuntimeError("power cut")
        original(self)

    monkeypatch.setattr(training.Training, "take_step", crash)
    with pytest.raises(RuntimeError):
        run(corpus, tmp_path / "r", "checkpoint.every_steps=3")
    monkeypatch.setattr(training.Training, "take_step", original)
    run(corpus, tmp_path / "r", "checkpoint.every_steps=3")
    assert list(read_events(tmp_path / "r" / "events.jsonl", ("run_resumed",)))
    whole, parts = (FoundationModel.load(folder / "model").state_dict() for folder in (finished, tmp_path / "r"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_accumulation_equals_one_big_batch(corpus):
    """Of the real model with every sense: the same noise needs the same generator per batch, so noise is compared by its mean over the text loss only."""
    loader = Loader(corpus, resolved(corpus).value.data.loader(0))
    from bedplate.pretrain.optim import Optimiser, OptimSettings
    from bedplate.pretrain.step import Stepper
    from bedplate.testing.models import tiny_model

    norms = []
    for most_rows in (6, 2, 1):
        model = tiny_model(vocab_size=corpus.vocabulary, senses=corpus.specs)
        text_only = list(Loader(corpus, from_mapping(type(loader.settings), {"mixture": {"text": 1.0}})).batches(0, 6, 64, most_rows))
        stepper = Stepper(model, Optimiser(model.named_parameters(), OptimSettings(clip_norm=0.0)), torch.device("cpu"))
        norms.append((stepper.gradients(0, text_only).loss, stepper.gradients(0, text_only).gradient_norm))
    assert np.allclose(norms[0], norms[1], rtol=1e-4) and np.allclose(norms[0], norms[2], rtol=1e-4)


def test_other_settings_or_another_corpus_do_not_resume(corpus, finished, tmp_path):
    with pytest.raises(StateError, match="seed"):
        run(corpus, finished, "run.seed=5")
    other = tiny_corpus(tmp_path / "other", seed=9)
    with pytest.raises(StateError, match="another corpus"):
        run(other, finished)


def test_the_trace_names_what_a_step_saw(corpus, finished, tmp_path):
    found = trace(finished, 3)
    assert {d.row for d in found} == set(range(12, 18))
    assert found == Loader(corpus, resolved(corpus).value.data.loader(0)).documents(12, 6, 64)
    with pytest.raises(ConfigError, match="12"):
        trace(finished, 13)
    with pytest.raises(DataError):
        trace(tmp_path, 1)
    with pytest.raises(IntegrityError):
        trace(finished, 1, tiny_corpus(tmp_path / "other", seed=9).folder)


@pytest.mark.parametrize(
    ("text", "budget"),
    [("20m", Budget(seconds=1200)), ("1e19 FLOPs", Budget(flops=1e19)), ("5 epochs", Budget(epochs=5)), ("2B tokens", Budget(positions=2e9)), ("$50", Budget(seconds=90_000))],
)
def test_budgets(text, budget):
    assert parse_budget(text, price_per_hour=2.0) == budget


@pytest.mark.parametrize("text", ["", "soon", "$5", "5", "-3m", "1e19"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ConfigError):
        parse_budget(text)


def derived(corpus, *overrides, speed=5000.0):
    settings = load(PretrainSettings, given={"data.corpus": str(corpus.folder)}, overrides=list(overrides)).value
    return derive(settings, corpus, measurer=lambda *_, **__: Speed(speed, speed, speed, 4))


def test_everything_is_derived_with_a_reason(corpus):
    made = derived(corpus, "run.budget=1h")
    assert not any(v == "auto" for table in (made.settings.model, made.settings.run, made.settings.evaluate, made.settings.sample) for v in vars(table).values())
    assert all(choice.reason for choice in made.choices)
    run_settings = made.settings.run
    used = run_settings.steps * run_settings.rows_per_step * made.settings.model.context / 5000.0
    assert 0.85 * 3600 < used < 3600


@pytest.mark.parametrize(("budget", "size"), [("1e12 FLOPs", "nano"), ("1e16 FLOPs", "mini"), ("1.5e18 FLOPs", "small"), ("1e21 FLOPs", "3b")])
def test_more_compute_means_a_larger_model(corpus, budget, size):
    assert derived(corpus, f"run.budget={budget}").settings.model.size == size


@pytest.mark.slow
def test_a_compiled_run_saves_the_same_tensors(corpus, finished, tmp_path):
    run(corpus, tmp_path / "r", "run.compile=on", "run.steps=2")
    assert set(FoundationModel.load(tmp_path / "r" / "model").state_dict()) == set(FoundationModel.load(finished / "model").state_dict())


def test_what_is_given_is_not_derived(corpus):
    made = derived(corpus, "run.steps=7", "run.rows_per_step=3", "model.size=micro", "model.context=128", "run.compile=on")
    asked = made.settings
    assert (asked.run.steps, asked.run.rows_per_step, asked.model.size, asked.model.context, asked.run.compile) == (7, 3, "micro", 128, "on")


def test_settings_of_the_whole_run_have_an_effect(corpus, finished, tmp_path):
    def weights(folder):
        return {name: tensor.tolist() for name, tensor in FoundationModel.load(folder / "model").state_dict().items()}

    other = tiny_corpus(tmp_path / "other", documents=20)
    usual = weights(finished)
    changes = {
        "mixture": "data.mixture={text = 1.0}",
        "precision": "run.precision=bfloat16",
        "overrides": "model.overrides.rope_theta=500.0",
    }
    run(other, tmp_path / "corpus")
    for name, change in changes.items():
        run(corpus, tmp_path / name, change)
    for name in ("corpus", *changes):
        assert weights(tmp_path / name) != usual, name
    run(corpus, tmp_path / "rows", "evaluate.rows=9")
    losses = [[event["loss"] for event in read_events(folder / "events.jsonl", ("evaluated",))] for folder in (finished, tmp_path / "rows")]
    assert losses[0] != losses[1] and weights(tmp_path / "rows") == usual


def test_a_plan_counts_and_measures_and_trains_nothing(corpus, tmp_path):
    made = plan(resolved(corpus, "run.steps=50").value, corpus, measure_s=0.2)
    assert made.positions == 50 * 6 * 64 and made.flops > 0 and made.largest_rows > 6
    assert made.seconds_range[0] <= made.seconds <= made.seconds_range[1]
    assert made.parameters.total == sum(p.numel() for p in FoundationModel(derive(resolved(corpus).value, corpus).config).parameters())
    assert not list(tmp_path.iterdir())


def test_measuring_handles_text_alone_and_units_alone(corpus):
    from bedplate.pretrain.optim import OptimSettings

    for senses, share in ((corpus.specs, 1.0), (None, 0.0), (corpus.specs, 0.5)):
        config = tiny_config(corpus.vocabulary, senses)
        batch = synthetic_batch(config, 2, 64, share)
        assert (batch.sense[:, 0] == 0).all()
        speed = measure(config, OptimSettings(), rows=2, context=64, unit_share=share, seconds=0.1, device="cpu", dtype=torch.float32, threads=1)
        assert speed.slowest <= speed.positions_per_s <= speed.fastest


def test_bytes_of_tokens_add_up_to_the_text(corpus):
    counts = token_bytes(corpus.tokenizer, corpus.special_ids, corpus.vocabulary)
    text = "the quiet river: grün, 早\n"
    assert counts[corpus.tokenizer.encode(text).ids].sum() == len(text.encode())
    assert Corpus.open(corpus.folder).vocabulary == len(counts)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(corpus, finished, tmp_path):
    """torchrun with two Gloo processes: the same weights to rounding (noise differs by rank only in the continuous senses, so text alone is trained)."""
    import subprocess
    import sys

    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from bedplate.core.config import load\n"
        "from bedplate.core.run import Run\n"
        "from bedplate.pretrain.loop import pretrain\n"
        "from bedplate.pretrain.settings import PretrainSettings\n"
        "corpus, folder, *overrides = sys.argv[1:]\n"
        "asked = load(PretrainSettings, given={'data.corpus': corpus}, overrides=overrides)\n"
        "rank = os.environ.get('RANK', '0')\n"
        "with Run.open(Path(folder) / rank, 'pretrain', asked) as run:\n"
        "    pretrain(asked.value, run)\n"
    )
    arguments = [str(corpus.folder), str(tmp_path / "two"), *SMALL, "data.mixture={text=1.0}", "run.device=cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), *arguments]
    done = subprocess.run(launch, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    run(corpus, tmp_path / "one", "data.mixture={text=1.0}", "run.device=cpu")
    one, two = (FoundationModel.load(folder / "model").state_dict() for folder in (tmp_path / "one", tmp_path / "two" / "0"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=2e-2, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}")
