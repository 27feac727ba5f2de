"""Adapters that peft made, brought in and put to work at every door; classifiers go both ways with the same scores."""

import json

import numpy as np
import pytest
import torch
from adaptations import done, labelled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedplate.adapt.base import Base
from bedplate.adapt.foreign import bring
from bedplate.adapt.loop import restore
from bedplate.adapt.merge import merge
from bedplate.adapt.settings import AdaptSettings, ClassifySettings, ExampleSettings, MethodSettings, TrainSettings
from bedplate.cli.app import main
from bedplate.core.artifact import read_manifest, verify
from bedplate.core.errors import BedplateError, ConfigError, DataError, StateError
from bedplate.core.generation import Ask, stream
from bedplate.core.prediction import Label
from bedplate.evaluate.subject import Subject
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.speakers import Speakers
from bedplate.infer.worker import Worker
from bedplate.model.formats import peft as formats
from bedplate.model.formats.get import get
from bedplate.model.foundation import FoundationModel
from bedplate.testing.bases import tiny_base

transformers = pytest.importorskip("transformers", reason="a part of the extra `oracle`")
peft = pytest.importorskip("peft", reason="a part of the extra `oracle`")

ids = torch.randint(20, 300, (2, 20), generator=torch.Generator().manual_seed(0))
LABELS = ("busy", "quiet", "neither")
TEXTS = [row["text"] for row in labelled(9, seed=4)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def made(model, folder, **asked):
    """An adapter folder as peft leaves it, after something was learned."""
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **asked))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    theirs.save_pretrained(folder)
    return theirs.eval()


@pytest.fixture(scope="module")
def speaker(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs") / "speaker"
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    return folder, made(model, folder, task_type="CAUSAL_LM", target_modules="all-linear", use_dora=True)


@pytest.fixture(scope="module")
def labeller(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs") / "labeller"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    return folder, made(model, folder, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"])


@torch.no_grad()
def test_an_adapter_of_peft_becomes_ours(base, speaker, tmp_path):
    folder, theirs = speaker
    got = bring(str(folder), base, tmp_path / "mine")
    assert got.made and verify(got.folder, "adapter").parents["base"] == read_manifest(base).digest
    assert set(got.manifest.parents) == {"base", "adapter_config.json", "adapter_model.safetensors"}
    loaded = Base.load(base)
    restore(loaded, got.folder)
    torch.testing.assert_close(loaded.model.forward_tokens(ids), theirs(ids).logits, rtol=0, atol=1e-4)
    assert not bring(str(folder), base, tmp_path / "mine").made
    again = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), got.folder).eval()  # peft still reads it
    torch.testing.assert_close(again(ids).logits, theirs(ids).logits)


@torch.no_grad()
def test_every_door_takes_it(base, speaker, tmp_path):
    folder, theirs = speaker
    mine = bring(str(folder), base, tmp_path / "mine").folder
    said_so = Worker.load(base, mine).generate(["a cup of tea"], max_tokens=4)
    assert said_so != [] and Subject.load(base, mine).digests["adapter"] == read_manifest(mine).digest
    merge(base, [mine], tmp_path / "merged")
    merged = FoundationModel.load(tmp_path / "merged")
    torch.testing.assert_close(merged.forward_tokens(ids), theirs(ids).logits, rtol=0, atol=1e-4)
    with Speakers(base, EngineSettings(backend="torch", precision="float32", device="cpu", cache_bytes=2**20)) as speakers:
        for where in (folder, mine):  # as it came, and brought in
            generator, worker = speakers.choose(where)
            assert worker and generator is not None
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": row["text"], "completion": row["label"]}) + "\n" for row in labelled(24)))
    train = TrainSettings(threads=1, epochs=1, lr=1e-3)
    asked = AdaptSettings(base, tmp_path / "more", "generate", ExampleSettings(tmp_path / "rows.jsonl"), MethodSettings(start=mine), train=train)
    with torch.enable_grad():
        manifest = done(asked)
    assert manifest.parents["start"] == read_manifest(mine).digest and manifest.about["scores"]["loss"] < manifest.about["scores_before"]["loss"]
    config = json.loads((tmp_path / "more" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (4, 8, True)  # as it was started with
    loaded = Base.load(base)
    restore(loaded, tmp_path / "more")
    assert 0 < (loaded.model.forward_tokens(ids) - theirs(ids).logits).abs().max() < 1


@torch.no_grad()
def test_a_classifier_of_transformers_labels_here(base, labeller, tmp_path):
    folder, theirs = labeller
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(base / "tokenizer.json"))
    expected = [theirs(torch.tensor([tokenizer(text)["input_ids"]])).logits.softmax(-1)[0].tolist() for text in TEXTS]
    mine = bring(str(folder), base, tmp_path / "mine", labels=LABELS).folder
    found = Worker.load(base, mine).predict(TEXTS)
    np.testing.assert_allclose([[one.probabilities[name] for name in LABELS] for one in found], expected, atol=1e-5)
    assert len({one.label for one in found}) > 1
    assert Worker.load(base, bring(str(folder), base, tmp_path / "nameless").folder).predict(TEXTS[:1])[0].label.startswith("LABEL_")
    with pytest.raises(DataError, match="head of its own, for the task classify"):
        merge(base, [mine], tmp_path / "merged")


@torch.no_grad()
def test_transformers_labels_as_our_classifier_does(base, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled(60)))
    train = TrainSettings(threads=1, epochs=4, lr=5e-3)
    data = ExampleSettings(tmp_path / "rows.jsonl")
    asked = AdaptSettings(base, tmp_path / "ours", "classify", data, MethodSettings(rank=4), ClassifySettings(reads="last"), train=train)
    with torch.enable_grad():
        assert done(asked).about["scores"]["accuracy"] > 0.7
    assert not (tmp_path / "ours" / "head.safetensors").exists()
    worker = Worker.load(base, tmp_path / "ours")
    names = worker.task.names
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(names))
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    logits = torch.cat([theirs(torch.tensor([worker.base.encoder.whole.encode(text).ids])).logits for text in TEXTS])
    honest = (logits / worker.task.temperature).softmax(-1)  # the calibration stays beside, in task.json
    np.testing.assert_allclose([[one.probabilities[name] for name in names] for one in worker.predict(TEXTS)], honest, atol=1e-5)


def test_refusals_name_what_is_not_computed(base, speaker, labeller, tmp_path, capsys):
    folder, _ = speaker
    with pytest.raises(ConfigError, match="--base") as told:
        get(str(folder))
    assert "an adapter" in told.value.message
    with pytest.raises(DataError, match="made by PEFT") as told:
        Worker.load(base, folder)
    assert f"bedplate get {folder} --base {base}" in told.value.hint
    with pytest.raises(ConfigError, match="2 labels for a classifier of 3"):
        bring(str(labeller[0]), base, tmp_path / "x", labels=("a", "b"))
    with pytest.raises(ConfigError, match="no classifier"):
        bring(str(folder), base, tmp_path / "x", labels=("a", "b"))
    for change, word in (({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"), ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "lm_head")):
        made(transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / word, task_type="CAUSAL_LM", **change)
        with pytest.raises(DataError, match=word):
            bring(str(tmp_path / word), base, tmp_path / "x")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    (pickled / "adapter_model.bin").write_bytes(b"anything")
    with pytest.raises(DataError, match="may run code") as told:
        bring(str(pickled), base, tmp_path / "x")
    assert "safe_serialization" in told.value.hint and not (tmp_path / "x").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(StateError, match="not empty"):
        bring(str(folder), base, tmp_path / "full")
    main(["get", str(folder), "--base", str(base), "--to", str(tmp_path / "mine"), "--json"])
    assert json.loads(capsys.readouterr().out)["made"] is True
    patterned = tmp_path / "patterned"
    made(transformers.AutoModelForCausalLM.from_pretrained(base), patterned, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2})
    mine = bring(str(patterned), base, tmp_path / "brought").folder
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    with pytest.raises(DataError, match="rank_pattern"):
        done(AdaptSettings(base, tmp_path / "more", "generate", ExampleSettings(tmp_path / "rows.jsonl"), MethodSettings(start=mine)))


def test_a_classifier_of_transformers_is_served(base, labeller, tmp_path):
    mine = bring(str(labeller[0]), base, tmp_path / "mine", labels=LABELS).folder
    with Speakers(base, EngineSettings(backend="torch", precision="float32", device="cpu", cache_bytes=2**20)) as speakers:
        native, _ = speakers.choose(None)
        native.register("labeller", mine)
        for text, wanted in zip(TEXTS, Worker.load(base, mine).predict(TEXTS)):
            for prompt in (text, tuple(Base.load(base).encoder.encode(text).tolist())):
                (piece,) = stream(native, Ask("labeller", prompt=prompt, want="prediction"))
                assert isinstance(piece.prediction, Label) and piece.prediction.label == wanted.label
                assert dict(piece.prediction.probabilities) == pytest.approx(dict(wanted.probabilities), abs=1e-5)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5,
)  # fmt: skip
KEYS = ("peft_type", "r", "lora_alpha", "use_dora", "use_rslora", "lora_dropout", "rank_pattern", "alpha_pattern", "bias", "modules_to_save", "init_lora_weights", "target_parameters")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=ANYTHING | st.dictionaries(st.text("(q_proj)|[.^$", max_size=8), st.integers(-3, 9), max_size=2))
def test_any_value_in_their_config_gives_our_errors_only(base, speaker, held, key, value):
    folder, model = held
    folder.mkdir(exist_ok=True)
    config = json.loads((speaker[0] / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {key: value}))
    (folder / "adapter_model.safetensors").write_bytes((speaker[0] / "adapter_model.safetensors").read_bytes())
    try:
        formats.read(folder, model, scores=True)
    except BedplateError as error:
        assert error.message and error.hint


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
def test_damaged_bytes_give_our_errors_only(base, speaker, held, data, name):
    folder, model = held
    folder.mkdir(exist_ok=True)
    for each in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / each).write_bytes((speaker[0] / each).read_bytes())
    good = (folder / name).read_bytes()
    at = data.draw(st.integers(0, min(len(good), 3000) - 1))
    (folder / name).write_bytes(good[:at] + data.draw(st.binary(max_size=6)) + good[at + data.draw(st.integers(0, 6)) :])
    try:
        formats.read(folder, model, scores=True)
    except BedplateError as error:
        assert error.message and error.hint


@pytest.fixture(scope="module")
def held(base, tmp_path_factory):
    return tmp_path_factory.mktemp("held"), FoundationModel.load(base)
