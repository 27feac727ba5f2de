"""A Hugging Face folder as it lies on disk: shards, memory map, what is refused, and configs that somebody damaged."""

import json
import shutil

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bedplate.core.errors import BedplateError, DataError, IntegrityError
from bedplate.modality.specs import ImageSpec, SenseSpecs
from bedplate.model.formats import hugging_face
from bedplate.model.foundation import FoundationModel
from bedplate.testing.bases import tiny_base
from bedplate.testing.models import tiny_model

ids = torch.randint(3, 320, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    return tmp_path / "model"


@pytest.fixture
def sharded(whole, tmp_path):
    FoundationModel.read(whole).save(tmp_path / "sharded", shard_bytes=20_000)
    return tmp_path / "sharded"


def change(path, **values):
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (tree | values).items() if value is not ...}))


def test_shards_hold_the_same_model(whole, sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(shards) > 2 and set(index["weight_map"].values()) == set(shards) and not (sharded / "model.safetensors").exists()
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in FoundationModel.read(whole).parameters())
    torch.testing.assert_close(FoundationModel.load(sharded).forward_tokens(ids), FoundationModel.load(whole).forward_tokens(ids), rtol=0, atol=0)


def test_transformers_reads_the_shards(sharded):
    transformers = pytest.importorskip("transformers", reason="a part of the extra `oracle`")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(sharded).eval()
    with torch.no_grad():
        torch.testing.assert_close(FoundationModel.read(sharded).forward_tokens(ids), theirs(ids).logits, rtol=0, atol=1e-4)


def test_a_save_in_one_piece_takes_the_shards_away(sharded):
    FoundationModel.read(sharded).save(sharded)
    assert [path.name for path in sharded.glob("model*")] == ["model.safetensors"]
    FoundationModel.load(sharded)


def test_a_shard_that_is_missing_or_damaged_is_named(sharded):
    last = sorted(sharded.glob("*.safetensors"))[-1]
    kept = last.read_bytes()
    last.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(IntegrityError, match=last.name):
        FoundationModel.read(sharded)
    last.unlink()
    with pytest.raises(IntegrityError, match=f"{last.name} is missing"):
        FoundationModel.read(sharded)
    save_file({"other": torch.zeros(1)}, last)
    with pytest.raises(IntegrityError, match="which the index promises"):
        FoundationModel.read(sharded)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin", ".."])
def test_an_index_leads_nowhere_else(sharded, name):
    (sharded.parent / "model.safetensors").write_bytes(sorted(sharded.glob("*.safetensors"))[0].read_bytes())
    change(sharded / "model.safetensors.index.json", weight_map={"model.norm.weight": name})
    with pytest.raises(IntegrityError, match="leads to"):
        FoundationModel.read(sharded)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x", {"model.norm.weight": None}, {"model.norm.weight": {"a": 1}}])
def test_an_index_that_is_no_index(sharded, weight_map):
    change(sharded / "model.safetensors.index.json", weight_map=weight_map)
    with pytest.raises(IntegrityError):
        FoundationModel.read(sharded)


def test_pickled_weights_are_never_opened(folder):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    torch.save({"model.norm.weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="may run code") as caught:
        FoundationModel.load(folder)
    assert "safetensors" in caught.value.hint
    FoundationModel.read(folder)  # beside safetensors it is left alone
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"pytorch_model\.bin only") as caught:
        FoundationModel.read(folder)
    assert "safetensors" in caught.value.hint


def test_quantised_weights_are_refused(folder):
    change(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(DataError, match="gptq") as caught:
        FoundationModel.read(folder)
    assert "GGUF" in caught.value.hint
    change(folder / "config.json", quantization_config=...)
    held = load_file(folder / "model.safetensors")
    save_file(held | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, folder / "model.safetensors")
    with pytest.raises(DataError, match="int8"):
        FoundationModel.read(folder)


def test_a_tied_head_may_be_stored_twice_but_not_differ(folder):
    held = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    want = FoundationModel.read(folder).forward_tokens(ids)
    save_file(held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    torch.testing.assert_close(FoundationModel.read(folder).forward_tokens(ids), want, rtol=0, atol=0)
    save_file(held | {"lm_head.weight": held["model.embed_tokens.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match="they differ"):
        FoundationModel.read(folder)


def test_text_only_leaves_every_other_sense_behind(tmp_path):
    model = tiny_model(senses=SenseSpecs(image=ImageSpec(size=16, patch=8)), random=True)
    hugging_face.write(tmp_path, model.config, model.state_dict(), text_only=True)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.startswith("unit_")]
    alone = FoundationModel.read(tmp_path)
    assert not alone.config.senses.present()
    torch.testing.assert_close(alone.forward_tokens(ids), model.forward_tokens(ids), rtol=0, atol=0)


def test_weights_stay_in_the_mapped_file(tmp_path):
    """Opening reads nothing: resident memory grows by the pages used, and writing to a weight leaves the file alone."""
    rows = 400_000  # 51 MB
    model = tiny_model(vocab_size=rows)
    hugging_face.write(tmp_path, model.config, model.state_dict())
    del model
    process = psutil.Process()
    private = lambda: process.memory_info().rss - process.memory_info().shared  # noqa: E731
    before = private()
    opened = FoundationModel.read(tmp_path)
    grown = private() - before
    assert grown < 20e6, f"{grown / 1e6:.0f} MB"
    kept = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        opened.model.embed_tokens.weight[5] = 7.0
    assert (tmp_path / "model.safetensors").read_bytes() == kept


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_a_shape_is_made_of_finite_numbers(folder, key):
    change(folder / "config.json", **{key: float("inf")})
    with pytest.raises(IntegrityError, match=f"{key} = inf"):
        FoundationModel.read(folder)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
KEYS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta", "rope_scaling",
    "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "attention_bias", "use_sliding_window", "sliding_window", "layer_types", "bos_token_id", "eos_token_id", "pad_token_id", "bedplate",
    "quantization_config", "hidden_act", "max_window_layers", "no_rope_layers", "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "mlp_only_layers", "decoder_sparse_step",
)  # fmt: skip
fuzz = examples(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def only_our_errors(folder):
    try:
        FoundationModel.read(folder)
    except BedplateError as error:
        assert error.message and error.hint


@fuzz
@given(key=st.sampled_from(KEYS), value=ANYTHING, family=st.sampled_from(["qwen3", "qwen2", "llama", "mistral", "smollm3", "qwen3_moe", "mixtral"]), foreign=st.booleans())
def test_any_value_in_a_config_gives_our_errors_only(folder, whole, key, value, family, foreign):
    shutil.copy(whole / "config.json", folder / "config.json")
    values = {"model_type": family, key: value} | ({"bedplate": ...} if foreign and key != "bedplate" else {})
    change(folder / "config.json", **values)
    only_our_errors(folder)


@fuzz
@given(name=st.sampled_from(["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"]), data=st.data())
def test_damaged_bytes_give_our_errors_only(folder, whole, name, data):
    change(folder / "config.json", bedplate=...)
    good = (whole / name).read_bytes()
    at = data.draw(st.integers(0, min(len(good), 3000) - 1))
    wrong = data.draw(st.binary(min_size=0, max_size=6))
    (folder / name).write_bytes(good[:at] + wrong + good[at + data.draw(st.integers(0, 6)) :])
    try:
        only_our_errors(folder)
    finally:
        (folder / name).write_bytes(good)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("content", ["[]", "{", "null", '{"added_tokens": 3}', '{"added_tokens": [3, {"content": 5}]}', '{"eos_token_id": [[]]}', "[" * 100_000])
def test_json_that_is_something_else(folder, name, content):
    change(folder / "config.json", bedplate=...)
    (folder / name).write_text(content)
    only_our_errors(folder)
