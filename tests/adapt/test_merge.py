"""Merging from folder to folder: one adapter, mixtures, PEFT's own, few bits; and what cannot be merged."""

import json

import pytest
import torch
from adaptations import done, labelled

from bedplate.adapt.base import Base
from bedplate.adapt.loop import restore
from bedplate.adapt.merge import merge
from bedplate.adapt.settings import AdaptSettings, ExampleSettings, MethodSettings, TrainSettings
from bedplate.cli.app import main
from bedplate.core.artifact import read_manifest
from bedplate.core.errors import ConfigError, DataError, IntegrityError, StateError
from bedplate.model.foundation import FoundationModel
from bedplate.testing.bases import tiny_base

ids = torch.randint(20, 300, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def workers(base, tmp_path_factory):
    """Adapters by name."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "say.jsonl").write_text("".join(json.dumps({"prompt": row["text"], "completion": row["label"]}) + "\n" for row in labelled(24)))
    (folder / "tell.jsonl").write_text("".join(json.dumps({"prompt": row["label"], "completion": row["text"]}) + "\n" for row in labelled(24)))
    (folder / "label.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled(24)))
    train = TrainSettings(threads=1, epochs=2, lr=1e-2)
    for name, file, task, method in (
        ("lora", "say", "generate", MethodSettings(rank=4)), ("dora", "tell", "generate", MethodSettings("dora", rank=4)),
        ("full", "tell", "generate", MethodSettings("full")), ("label", "label", "classify", MethodSettings(rank=4)),
    ):  # fmt: skip
        done(AdaptSettings(base, folder / name, task, ExampleSettings(folder / f"{file}.jsonl", held_out=0), method, train=train))
    return folder


@torch.no_grad()
def logits(model):
    return model.forward_tokens(ids)


def adapted(base, folder):
    loaded = Base.load(base)
    restore(loaded, folder)
    return loaded.model


@pytest.mark.parametrize("name", ["lora", "dora", "full"])
def test_a_merged_model_says_what_its_worker_says(base, workers, tmp_path, name):
    made = merge(base, [workers / name], tmp_path / "merged")
    merged = FoundationModel.load(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(adapted(base, workers / name)), rtol=0, atol=1e-5)
    assert (logits(merged) - logits(FoundationModel.load(base))).abs().max() > 0.01
    assert made.manifest.parents == {"base": read_manifest(base).digest, "adapter 1": read_manifest(workers / name).digest}
    assert made.error == (0, 0) and (tmp_path / "merged" / "tokenizer.json").is_file()
    with pytest.raises(StateError, match="already"):
        merge(base, [workers / name], tmp_path / "merged")


def test_a_mixture_lies_between(base, workers, tmp_path):
    for name, counts in (("both", [0.5, 0.5]), ("first", [1.0, 0.0])):
        merge(base, [workers / "lora", workers / "dora"], tmp_path / name, weights=counts)
    one, other = (adapted(base, workers / name) for name in ("lora", "dora"))
    torch.testing.assert_close(logits(FoundationModel.load(tmp_path / "first")), logits(one), rtol=0, atol=1e-5)
    merge(base, [workers / "lora", workers / "full"], tmp_path / "ties", how="ties", density=0.5)
    assert not torch.equal(logits(FoundationModel.load(tmp_path / "ties")), logits(FoundationModel.load(tmp_path / "both")))
    half = FoundationModel.load(tmp_path / "both").state_dict()
    plain = FoundationModel.load(base).state_dict()
    for model in (one, other):
        for name, projection in model.named_modules():
            if getattr(projection, "adapter", None) is not None:
                plain[f"{name}.weight"] = plain[f"{name}.weight"] + 0.5 * (projection.adapter.changed(projection.weight) - projection.weight)
    for name, weight in half.items():
        torch.testing.assert_close(weight, plain[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_few_bits_tell_what_they_lost(base, workers, tmp_path, bits):
    made = merge(base, [workers / "lora"], tmp_path / "merged", bits=bits)
    assert 0 < made.error.of_weights < {8: 0.01, 4: 0.12}[bits] and made.manifest.about["error_of_change"] == made.error.of_change
    exact = logits(adapted(base, workers / "lora"))
    assert 0 < (logits(FoundationModel.load(tmp_path / "merged")) - exact).norm() / exact.norm() < {8: 0.1, 4: 1.0}[bits]


def test_an_adapter_of_peft_is_merged_and_told(base, workers, tmp_path, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (foreign / name).write_bytes((workers / "lora" / name).read_bytes())
    main(["merge", str(base), str(foreign), str(workers / "dora"), "--weights", "1,0", "--to", str(tmp_path / "merged"), "--json"])
    assert json.loads(capsys.readouterr().out)["unsealed"] == ["foreign"]
    torch.testing.assert_close(logits(FoundationModel.load(tmp_path / "merged")), logits(adapted(base, workers / "lora")), rtol=0, atol=1e-5)


def test_what_cannot_be_merged_is_refused(base, workers, tmp_path):
    to = tmp_path / "merged"
    with pytest.raises(DataError, match="head of its own, for the task classify"):
        merge(base, [workers / "label"], to)
    with pytest.raises(ConfigError, match="2 weights for 1"):
        merge(base, [workers / "lora"], to, weights=[1, 2])
    with pytest.raises(ConfigError, match="density"):
        merge(base, [workers / "lora"], to, how="ties", density=0)
    with pytest.raises(DataError, match="another base"):
        merge(tiny_base(tmp_path / "other", seed=4), [workers / "lora"], to)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (workers / "lora").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "adapter_config.json").write_text((broken / "adapter_config.json").read_text().replace("32", "64"))
    with pytest.raises(IntegrityError, match="changed"):
        merge(base, [broken], to)
    with pytest.raises(SystemExit):
        main(["merge", str(base), str(workers / "lora"), "--weights", "much", "--to", str(to)])
    assert not to.exists()
