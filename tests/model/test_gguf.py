"""GGUF in and out against the real llama.cpp and the `gguf` package's own reader: numbers, shapes, tokens, and files that lie."""

import dataclasses
import json
import shutil
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from bedplate.core.errors import BedplateError, ConfigError, DataError, IntegrityError, ResourceError
from bedplate.modality.chat_template import CHATML
from bedplate.model.config import RopeScaling
from bedplate.model.formats.gguf import llama_cpp, read, tensors, vocabulary, write
from bedplate.model.formats.gguf.header import read_header
from bedplate.model.foundation import FoundationModel
from bedplate.testing.corpora import tiny_tokenizer
from bedplate.testing.models import tiny_config

gguf = pytest.importorskip("gguf", reason="a part of the extra `edge`")
pytest.importorskip("xllamacpp", reason="a part of the extra `edge`")

TEXTS = (
    "The river carries 12345 boats; it's late, don't I'LL go?", "def f(x):\n    return x**2  # ok\n\n\n\ty", "Łódź café 早上好 🌊 ½ Größe ÀB", "a  b   c \t x\r\n\r\n z ",
    "$100 <= 3.14159 ^~| 2024-05-06 != [INST] --", "HTTPServer camelCaseWord x1y2z3 1 22 333 4444", "", " ", "\n",
)  # fmt: skip


def random_model(spread=0.3, **changes):
    config = dataclasses.replace(tiny_config(), **{"max_position_embeddings": 512, "num_hidden_layers": 4} | changes)
    model = FoundationModel(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + (1.0 if parameter.ndim == 1 else 0.0))
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tiny_tokenizer().to_str())
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("gguf") / "good.gguf"
    write.write(random_model(num_hidden_layers=1), tokenizer.read_text(), path, "f16", template=CHATML)
    return path


LLAMA = {"model_type": "llama", "qk_norm": False}
FAMILIES = {
    "qwen3": {},
    "qwen3-untied-wide-heads": {"tie_word_embeddings": False, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "qk_norm": False, "attention_bias": True},
    "llama": LLAMA,
    "llama-biases-untied": LLAMA | {"attention_bias": True, "output_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "llama-llama3": LLAMA | {"head_dim": 16, "rope_theta": 500_000.0, "rope_scaling": RopeScaling("llama3", 8.0, 8192, 1.0, 4.0)},
    "llama-linear": LLAMA | {"rope_scaling": RopeScaling("linear", 3.0)},
    "qwen3-yarn": {"rope_theta": 1000.0, "rope_scaling": RopeScaling("yarn", 4.0, 128, attention_factor=0.1 * np.log(4.0) + 1.0)},
    "mistral": {"model_type": "mistral", "qk_norm": False},
    "smollm3": {"model_type": "smollm3", "qk_norm": False, "no_rope_layers": (3,)},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_we_do_and_the_file_comes_back_the_same(tmp_path, tokenizer, family):
    model = random_model(**FAMILIES[family])
    said = write.export(model, tokenizer, tmp_path / "x.gguf", "f32", template=CHATML)
    assert said.logits < 1e-4 and said.quantisation < 1e-4 and said.greedy_same == said.greedy_tokens > 0 and said.templates == 2
    back = read.read(tmp_path / "x.gguf")
    for (name, ours), (theirs, tensor) in zip(sorted(model.state_dict().items()), sorted(back.state_dict().items())):
        assert name == theirs
        torch.testing.assert_close(ours, tensor, rtol=0, atol=0)
    ids = torch.randint(3, 320, (1, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(back.forward_tokens(ids), model.forward_tokens(ids), rtol=0, atol=1e-4)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.gguf"]


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_fewer_bits_are_stored_and_judged(tmp_path, tokenizer, kind):
    model = random_model(**LLAMA, hidden_size=64, spread=0.1)
    said = write.export(model, tokenizer, tmp_path / "x.gguf", kind)
    types = {name: gguf.GGMLQuantizationType(placed.kind).name.lower() for name, placed in read_header(tmp_path / "x.gguf", tensors.block_size).tensors.items()}
    assert types["blk.0.ffn_up.weight"] == kind and types["output_norm.weight"] == "f32" and types["token_embd.weight"] == ("q8_0" if kind == "q4_0" else kind)
    assert said.logits < write.MOST_DIFFERENT[kind] and said.logits <= said.quantisation * 1.5 < {"f16": 0.02, "q8_0": 0.1, "q4_0": 1}[kind]
    assert said.templates == 0


def test_a_wrong_layout_never_gets_its_name(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(write, "in_pairs", lambda name, values, config: values)
    monkeypatch.setattr(tensors, "in_halves", lambda name, values, config: values)  # wrong both ways: only llama.cpp can tell
    with pytest.raises(IntegrityError, match="logits differ") as caught:
        write.export(random_model(**LLAMA), tokenizer, tmp_path / "x.gguf", "f16")
    assert caught.value.hint and not list(tmp_path.iterdir())


def test_without_llama_cpp_nothing_is_exported(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(llama_cpp, "BINDING", "no_such_binding")
    with pytest.raises(ResourceError, match="not at hand") as caught:
        write.export(random_model(), tokenizer, tmp_path / "x.gguf")
    assert "pip install" in caught.value.hint and not list(tmp_path.iterdir())


def test_what_llama_cpp_cannot_compute_is_refused(tmp_path, tokenizer):
    for changes in (
        LLAMA | {"rope_scaling": RopeScaling("dynamic", 2.0)},
        {"rope_scaling": RopeScaling("yarn", 4.0, 128, beta_fast=8.0)},
        {"model_type": "smollm3", "qk_norm": False, "no_rope_layers": (1,)},
        {"vocab_size": 100},
    ):
        with pytest.raises(ConfigError):
            write.export(random_model(**changes), tokenizer, tmp_path / "x.gguf")
    tree = json.loads(tokenizer.read_text())
    tree["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "t.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match="cuts text"):
        write.export(random_model(), tmp_path / "t.json", tmp_path / "x.gguf")
    with pytest.raises(ConfigError, match="no type"):
        write.export(random_model(), tokenizer, tmp_path / "x.gguf", "q2_k")
    assert list(tmp_path.iterdir()) == [tmp_path / "t.json"]


def test_a_window_limits_the_context_that_is_promised(tmp_path, tokenizer):
    model = random_model(model_type="mistral", qk_norm=False, sliding_window=200, sliding_layers=(0, 1, 2, 3))
    write.export(model, tokenizer, tmp_path / "x.gguf", "f32")
    assert read_header(tmp_path / "x.gguf", tensors.block_size).metadata["llama.context_length"] == 200


def blocks(kind, shape, rng):
    """Random blocks of a type, their scales small enough to be weights."""
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (shape[0], shape[1] // numbers, size), np.uint8)
    at = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (size - 2,)}.get(kind.name, (0, 2) if kind.name in ("Q4_1", "Q5_1") else (0,))
    for offset in at:
        scale = rng.uniform(1e-3, 2e-3 if "K" in kind.name else 3e-2, raw.shape[:2]).astype(np.float16)
        raw[..., offset : offset + 2] = scale[..., None].view(np.uint8)
    return raw.reshape(shape[0], -1)


@pytest.mark.parametrize("name", tensors.READABLE)
def test_every_type_is_read_as_llama_cpp_reads_it(tmp_path, tokenizer, name):
    model = random_model(**LLAMA, hidden_size=256, intermediate_size=256, head_dim=64, num_hidden_layers=2)
    write.write(model, tokenizer.read_text(), tmp_path / "f32.gguf", "f32")
    kind, rng = gguf.GGMLQuantizationType[name], np.random.default_rng(0)
    source = gguf.GGUFReader(tmp_path / "f32.gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for field in source.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    for tensor in source.tensors:
        if "ffn" in tensor.name and tensor.data.ndim == 2:
            plain = name in ("F32", "F16", "BF16")
            writer.add_tensor(tensor.name, gguf.quants.quantize(tensor.data, kind) if plain else blocks(kind, tensor.data.shape, rng), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = read.read(tmp_path / "x.gguf")
    theirs = {t.name: t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors}["blk.1.ffn_down.weight"]
    np.testing.assert_array_equal(ours.model.layers[1].mlp.down_proj.weight.detach().numpy(), gguf.quants.dequantize(theirs.data, kind))
    said = llama_cpp.ask(tmp_path / "x.gguf", llama_cpp.Questions(prompts=[list(range(20, 60))]))
    with torch.no_grad():
        logits = ours.forward_tokens(torch.arange(20, 60)[None])[0, -1].double().numpy()
    assert (logits - said.logprobs[0]).std() / logits.std() < (1e-4 if name == "F32" else 0.03)


def wild_tokenizer():
    """Merged across words, digits and signs, so that how text is cut first decides the tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=600, special_tokens=["<|endoftext|>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False))
    return tokenizer


@pytest.mark.parametrize("pre", [*vocabulary.CUTS, "smaug-bpe"])
def test_text_becomes_the_tokens_that_llama_cpp_makes(tmp_path, pre):
    from tokenizers import Tokenizer

    tree = json.loads(wild_tokenizer().to_str())
    tree["pre_tokenizer"] = vocabulary.CUTS[vocabulary.SAME.get(pre, pre)]
    tree["model"]["ignore_merges"] = pre in vocabulary.WHOLE_FIRST
    path = tmp_path / "x.gguf"
    model = random_model(vocab_size=len(tree["model"]["vocab"]) + 3, num_hidden_layers=1)
    write.write(model, json.dumps(tree), path, "f16")
    said = read_header(path, tensors.block_size).metadata
    assert said["tokenizer.ggml.pre"] == pre and said["tokenizer.ggml.tokens"][-1].startswith("[PAD")
    files = vocabulary.read_tokenizer(said)
    back = Tokenizer.from_str(files["tokenizer.json"])
    back.normalizer = None  # Qwen's composes characters; llama.cpp does not
    texts = [text for text in TEXTS if pre != "tekken" or text.isascii()]  # beyond a-z llama.cpp does not know large from small letters there
    theirs = llama_cpp.ask(path, llama_cpp.Questions(texts=texts)).tokens
    assert [back.encode(text, add_special_tokens=False).ids for text in texts] == theirs
    assert [back.decode(ids, skip_special_tokens=False) for ids in theirs] == texts
    assert back.encode("a<|im_end|>").ids[-1] == 1


def sentencepiece(prefixed=True):
    """A tokenizer.json of Llama 2's kind with pieces of a few words, the longer the better."""
    words = {"▁" + word for word in ["the", "quiet", "river", "carries", "boats", "small", "late", "birds", "def", "return"]} | {"ing", "er", "▁a", "ca", "▁▁", "▁▁▁▁", "ö"}
    parts = {piece[start:end] for piece in words for start in range(len(piece)) for end in range(start + 2, len(piece) + 1) if start == 0 or end - start == 2}
    letters = sorted(set("".join(words)) | set("abcdefghijklmnopqrstuvwxyz0123456789.,(){}"))
    learned = sorted(parts | words, key=lambda piece: (len(piece), piece))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned, *letters]
    tokens = list(dict.fromkeys(tokens))
    scores = [0.0] * 259 + [-float(number) for number in range(len(tokens) - 259)]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    said = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_space_prefix": prefixed}
    return {f"tokenizer.ggml.{key}": value for key, value in said.items()}


@pytest.mark.parametrize("prefixed", [True, False])
def test_sentencepieces_become_the_tokens_that_llama_cpp_makes(tmp_path, monkeypatch, prefixed):
    from tokenizers import Tokenizer

    said = sentencepiece(prefixed)
    model = random_model(**LLAMA, vocab_size=len(said["tokenizer.ggml.tokens"]), num_hidden_layers=1)
    files = vocabulary.read_tokenizer(said)
    ours = Tokenizer.from_str(files["tokenizer.json"])
    texts = [text for text in TEXTS if text] + ["the quiet river carries small boats and the birds return", "    def late(): return river", "cacarer"]
    written = vocabulary.write_tokenizer(files["tokenizer.json"], None, model.config.vocab_size)
    for name, told in (("theirs", said), ("ours", written)):  # as the file had it, and as we write it
        monkeypatch.setattr(write, "write_tokenizer", lambda *_: dict(told))
        write.write(model, files["tokenizer.json"], tmp_path / name, "f16")
        tokens = llama_cpp.ask(tmp_path / name, llama_cpp.Questions(texts=texts)).tokens
        assert [ours.encode(text, add_special_tokens=False).ids for text in texts] == tokens, name
    assert [ours.decode(each) for each in tokens] == texts
    assert written["tokenizer.ggml.add_bos_token"] and ours.encode("the").ids[0] == 1
    assert written["tokenizer.ggml.token_type"] == said["tokenizer.ggml.token_type"]
    with pytest.raises(IntegrityError, match="damaged"):
        vocabulary.read_tokenizer(said | {"tokenizer.ggml.scores": [1.0]})


def test_cuts_differ():
    """A test of the test above: its texts tell the cuts apart."""
    from tokenizers import Tokenizer

    seen = set()
    for cut in vocabulary.CUTS.values():
        tree = json.loads(wild_tokenizer().to_str())
        tree["pre_tokenizer"] = cut
        seen.add(str([Tokenizer.from_str(json.dumps(tree)).encode(text).ids for text in TEXTS]))
    assert len(seen) == len(vocabulary.CUTS)


def test_a_converted_file_is_a_model_folder(good, tmp_path, tokenizer):
    manifest = read.convert(good, tmp_path / "model")
    assert manifest.parents["gguf"] == read.sha256_file(good) and manifest.about["name"] == "good"
    model = FoundationModel.load(tmp_path / "model")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (tmp_path / "model" / "chat_template.jinja").read_text() == CHATML
    assert json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
    assert model.config.special_ids == tiny_config().special_ids and model.config.end_token_ids == (0,)
    transformers = pytest.importorskip("transformers", reason="a part of the extra `oracle`")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs("the quiet river <|im_end|>", add_special_tokens=False).input_ids == tiny_tokenizer().encode("the quiet river <|im_end|>").ids


def test_transformers_reads_the_same_numbers(good, tmp_path):
    transformers = pytest.importorskip("transformers", reason="a part of the extra `oracle`")
    read.convert(good, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.randint(3, 320, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(read.read(good).forward_tokens(ids), theirs(ids).logits, rtol=0, atol=1e-4)


def test_the_header_says_what_the_packages_reader_says(good):
    ours, theirs = read_header(good, tensors.block_size), gguf.GGUFReader(good)
    plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in ours.metadata.items()}
    assert plain == {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    for tensor in theirs.tensors:
        placed = ours.tensors[tensor.name]
        assert (placed.start, placed.size, placed.shape[::-1]) == (tensor.data_offset, tensor.n_bytes, tuple(tensor.shape))


def only_our_errors(path, folder):
    try:
        read.convert(path, folder)
    except BedplateError as error:
        assert error.message and error.hint
    finally:
        shutil.rmtree(folder, ignore_errors=True)


fuzz = examples(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(data=st.data())
def test_damaged_files_give_our_errors_only(good, tmp_path, data):
    raw = bytearray(good.read_bytes())
    head = read_header(good, tensors.block_size)
    end = min(placed.start for placed in head.tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, end - 1) | st.integers(0, 1200))
        wrong = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([struct.pack("<Q", n) for n in (2**64 - 1, 2**63, 2**32, 2**40, 0)]))
        raw[at : at + len(wrong)] = wrong
    (tmp_path / "bad.gguf").write_bytes(raw)
    only_our_errors(tmp_path / "bad.gguf", tmp_path / "model")


@fuzz
@given(data=st.data())
def test_truncated_files_give_our_errors_only(good, tmp_path, data):
    raw = good.read_bytes()
    (tmp_path / "bad.gguf").write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(BedplateError):
        read.convert(tmp_path / "bad.gguf", tmp_path / "model")


VALUES = st.none() | st.booleans() | st.integers(0, 2**31) | st.floats(width=32) | st.text(max_size=6) | st.lists(st.integers(0, 9), min_size=1, max_size=3)


@pytest.mark.parametrize("key", ["attention.layer_norm_rms_epsilon", "rope.freq_base"])
def test_numbers_that_are_none_are_refused(good, tmp_path, monkeypatch, key):
    head = read_header(good, tensors.block_size)
    monkeypatch.setattr(read, "read_header", lambda *_: dataclasses.replace(head, metadata={**head.metadata, f"qwen3.{key}": float("inf")}))
    with pytest.raises(IntegrityError, match=key):
        read.convert(good, tmp_path / "model")


@fuzz
@given(data=st.data())
def test_any_metadata_gives_our_errors_only(good, tmp_path, data):
    head = read_header(good, tensors.block_size)
    said = dict(head.metadata)
    key = data.draw(st.sampled_from(sorted(said)))
    value = data.draw(VALUES)
    said.pop(key) if value is None else said.update({key: np.array(value) if isinstance(value, list) else value})
    bad = dataclasses.replace(head, metadata=said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "read_header", lambda *_: bad)
        only_our_errors(good, tmp_path / "model")


def test_lies_are_named(good, tmp_path):
    bad = tmp_path / "bad.gguf"
    raw = good.read_bytes()

    def refused(data, kind, words):
        bad.write_bytes(data)
        with pytest.raises(kind, match=words):
            read.read(bad)

    refused(b"GGUF" + raw[4:23], DataError, "no GGUF file")
    refused(b"PK\3\4" + raw[4:], DataError, "no GGUF file")
    refused(raw[:4] + struct.pack("<I", 99) + raw[8:], DataError, "version 99")
    refused(raw[:8] + struct.pack("<Q", 2**60) + raw[16:], IntegrityError, "tensors")
    refused(raw[:16] + struct.pack("<Q", 2**60) + raw[24:], IntegrityError, "metadata keys")
    refused(raw[:-500], IntegrityError, "truncated")
    refused(raw.replace(b"qwen3", b"qwen9"), DataError, "architecture")
    with pytest.raises(DataError, match="cannot be read"):
        read.read(tmp_path / "none.gguf")


def test_llama_cpp_that_dies_is_an_error_for_people(good, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(good.read_bytes()[:-2000])
    with pytest.raises(DataError, match="does not take"):
        llama_cpp.ask(tmp_path / "bad.gguf", llama_cpp.Questions())
    with pytest.raises(ResourceError, match="did not finish"):
        llama_cpp.ask(good, llama_cpp.Questions(), longest_s=0.01)
