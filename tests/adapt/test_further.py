"""`continue` and `grow`: a base learns more, or gains a sense, in the loop of pre-training; what it was stays when nothing is trained."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bedplate.adapt.base import Base
from bedplate.adapt.further import FURTHER, preview_rows
from bedplate.adapt.loop import adapt
from bedplate.adapt.settings import AdaptSettings, ExampleSettings, FurtherSettings, TrainSettings
from bedplate.core.artifact import verify
from bedplate.core.config import Resolved
from bedplate.core.errors import ConfigError, DataError
from bedplate.core.events import read_events
from bedplate.core.files import read_json
from bedplate.core.run import Run
from bedplate.data.corpus import Corpus
from bedplate.model.foundation import FoundationModel
from bedplate.pretrain.checkpoint import CheckpointSettings
from bedplate.pretrain.start import config_from, model_from
from bedplate.testing.bases import tiny_base
from bedplate.testing.corpora import tiny_corpus, tiny_specs, tiny_text


@pytest.fixture(scope="module")
def text_base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number in range(60):
        (folder / f"{number}.txt").write_text("".join(tiny_text(np.random.default_rng([5, number, line]), 12) for line in range(12)))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of two kinds with their captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(80):
        pixels, name = picture(number)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"the {name} number {number}")
    return folder


def picture(number):
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 40, (16, 16)).astype(np.uint8)
    if number % 2:
        pixels[:, 4 + number % 5 : 8 + number % 5] += 180
    else:
        pixels[4 + number % 5 : 8 + number % 5] += 180
    return pixels, ("river", "bridges")[number % 2]


def settings(base, data, to, task, **train):
    made = TrainSettings(**{"threads": 1, "epochs": 3, "device": "cpu", **train})
    return AdaptSettings(base, to, task, ExampleSettings(data, most_positions=64), train=made, checkpoint=CheckpointSettings(every_s=0))


def done(asked):
    with Run.open(asked.to.with_name(asked.to.name + ".run"), "adapt", Resolved(asked, {})) as run:
        return adapt(asked, run)


def test_a_base_reads_on_and_keeps_its_own_tokens(text_base, texts, tmp_path):
    asked = settings(text_base, texts, tmp_path / "more", "continue", lr=0.01, examples_per_step=8)
    manifest = done(asked)
    before, after = manifest.about["scores_before"], manifest.about["scores"]
    assert after["bits_per_byte"] < 0.7 * before["bits_per_byte"] and manifest.about["held_out"] > 0
    assert manifest.digest == verify(asked.to, "model").digest and manifest.parents["base"] == Base.load(text_base).digest
    assert (asked.to / "tokenizer.json").exists() and Base.load(asked.to).encoder.size == Base.load(text_base).encoder.size
    assert done(asked).digest == manifest.digest  # finished before
    assert not FoundationModel.load(asked.to).config.senses.present()


def test_a_text_model_gains_a_sense(text_base, pictures, tmp_path):
    asked = settings(text_base, pictures, tmp_path / "seeing", "grow", epochs=6, examples_per_step=8)
    manifest = done(asked)
    before, after = manifest.about["scores_before"], manifest.about["scores"]
    assert after["image_regression"] < 0.8 * before["image_regression"] and after["image_flow"] < before["image_flow"]
    assert set(FoundationModel.load(asked.to).config.senses.present()) == {"image"}
    with pytest.raises(DataError, match="no sense that the base lacks"):
        done(settings(asked.to, pictures, tmp_path / "x", "grow"))


def test_what_is_new_leaves_text_as_it_was(text_base, tmp_path):
    base = FoundationModel.load(text_base)
    config = replace(base.config, vocab_size=330, senses=tiny_specs())
    grown = model_from(text_base, config, 0).eval()
    tokens = torch.arange(20, 60)[None]
    torch.testing.assert_close(grown.forward_tokens(tokens)[..., :320], base.forward_tokens(tokens))
    table = grown.model.embed_tokens.weight
    torch.testing.assert_close(table[320:], base.model.embed_tokens.weight.mean(0).expand(10, -1))


def test_a_corpus_is_taken_as_it_is_and_must_fit(text_base, tmp_path):
    corpus = tiny_corpus(tmp_path / "corpus", ("text", "image"), 8)
    grown = config_from(text_base, corpus)
    assert grown.senses.image == corpus.specs.image and grown.hidden_size == 32
    with pytest.raises(DataError, match="holds image, which the base does not know"):
        done(settings(text_base, corpus.folder, tmp_path / "a", "continue"))
    with pytest.raises(DataError, match="cuts image in another way"):
        config_from(tiny_base(tmp_path / "other", replace(tiny_specs(), image=replace(tiny_specs().image, size=32))), corpus)
    with pytest.raises(DataError, match="other tokens"):
        config_from(text_base, tiny_corpus(tmp_path / "few", ("text",), 8, vocabulary=300))


@pytest.mark.parametrize("task", FURTHER)
def test_a_stopped_run_ends_with_the_same_weights(text_base, texts, pictures, tmp_path, task):
    weights = []
    for name in ("whole", "stopped"):
        asked = settings(text_base, texts if task == "continue" else pictures, tmp_path / name, task, epochs=0.5, examples_per_step=4)
        if name == "stopped":
            with Run.open(tmp_path / "stopped.run", "adapt", Resolved(asked, {})) as run:
                run.events._listeners += (lambda event: signal.raise_signal(signal.SIGTERM) if event["event"] == "step" and event["step"] == 7 else None,)
                assert adapt(asked, run) is None
        done(asked)
        weights.append((asked.to / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert [event["step"] for event in read_events(tmp_path / "stopped.run" / "events.jsonl", ("run_resumed",))] == [7]


def test_the_shares_of_learning_rates(text_base, texts, pictures, tmp_path):
    told = {}
    for name, task, share in (("gentle", "continue", 0.1), ("bold", "continue", 1.0), ("grown", "grow", 0.1)):
        asked = settings(text_base, texts if task == "continue" else pictures, tmp_path / name, task, epochs=0.01, examples_per_step=1)
        done(replace(asked, further=FurtherSettings(lr_share=share)))
        told[name] = read_json(tmp_path / f"{name}.run" / "resolved.json")["resolved"]["optim"]
    assert abs(told["bold"]["lr_matrix"] - 10 * told["gentle"]["lr_matrix"]) < 1e-9
    assert abs(told["grown"]["lr_matrix"] - told["gentle"]["lr_matrix"]) < 1e-9 and told["grown"]["lr_head"] == told["bold"]["lr_head"]
    with pytest.raises(ConfigError, match="not a share"):
        FurtherSettings(lr_share=0.0)


def test_a_preview_shows_rows_and_leaves_nothing(text_base, texts, pictures, tmp_path):
    base = Base.load(text_base)
    (tmp_path / "a").mkdir()
    shown = preview_rows(settings(text_base, texts, tmp_path / "x", "continue"), base, 2, tmp_path / "a")
    assert len(shown) == 2 and "⟦" in shown[0] and shown[0].startswith("row 1: 64 positions")
    (tmp_path / "b").mkdir()
    assert "[16 units of image]" in preview_rows(settings(text_base, pictures, tmp_path / "x", "grow"), base, 1, tmp_path / "b")[0]
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.run").exists()


def test_a_base_and_a_size_exclude_each_other(text_base, tmp_path):
    from bedplate.pretrain.derive import derive
    from bedplate.pretrain.settings import DataSettings, ModelSettings, PretrainSettings

    corpus = tiny_corpus(tmp_path / "corpus", ("text",), 8)
    asked = PretrainSettings(ModelSettings(size="nano", base=text_base), DataSettings(corpus.folder))
    with pytest.raises(ConfigError, match="brings its own shape"):
        derive(asked, Corpus.open(corpus.folder))
    derived = derive(replace(asked, model=ModelSettings(base=text_base, context=32), run=replace(asked.run, steps=5)), corpus)
    assert derived.config == FoundationModel.load(text_base).config and derived.settings.model.size == "nano"
