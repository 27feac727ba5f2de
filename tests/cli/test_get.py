"""`bedplate get` and `export` as a user types them."""

import json

import pytest

from bedplate.model.formats.gguf import llama_cpp
from bedplate.model.foundation import FoundationModel
from bedplate.testing.bases import tiny_base

pytest.importorskip("xllamacpp", reason="a part of the extra `edge`")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "home"))


def test_the_known_ones_are_listed(run):
    code, out, _ = run("get", "--json")
    assert code == 0 and json.loads(out)["smollm2-135m"]["fetched"] is False
    code, out, _ = run("get", "--plain")
    assert code == 0 and "smollm2-135m" in out


def test_out_and_in_again(run, base, tmp_path):
    code, out, err = run("export", base, "--to", tmp_path / "x.gguf", "--type", "f16", "--json")
    said = json.loads(out)
    assert code == 0 and said["type"] == "f16" and said["logits"] < 0.01 and said["greedy_same"] > 0.9 * said["greedy_tokens"], err
    code, out, err = run("get", tmp_path / "x.gguf", "--plain")
    folder = tmp_path / "home" / "models" / "x"
    assert code == 0 and out.strip() == str(folder) and "licence: not said" in err
    assert (folder / "tokenizer.json").is_file() and FoundationModel.load(folder).config.vocab_size == 320
    code, out, _ = run("get", tmp_path / "x.gguf", "--dtype", "bfloat16", "--to", tmp_path / "half", "--json")
    assert code == 0 and json.loads(out)["made"]


def test_a_plain_folder(run, base, tmp_path):
    code, out, _ = run("export", base, "--to", tmp_path / "plain", "--json")
    assert code == 0 and json.loads(out)["files"] == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    transformers = pytest.importorskip("transformers", reason="a part of the extra `oracle`")
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain").config.model_type == "qwen3"
    code, _, err = run("export", base, "--to", tmp_path / "plain")
    assert code == 6 and "not empty" in err


def test_errors_are_for_people(run, base, tmp_path, monkeypatch):
    code, _, err = run("get", "smollm3-135m")
    assert code == 2 and "did you mean 'smollm2-135m'" in err
    for given in (("--labels", "a,b"), ("--base", base, "--bits", "4"), ("--base", base, "--dtype", "float16")):
        code, _, err = run("get", tmp_path, *given)
        assert code == 2 and "adapter" in err
    monkeypatch.setattr(llama_cpp, "BINDING", "no_such_binding")
    code, _, err = run("export", base, "--to", tmp_path / "x.gguf")
    assert code == 5 and "pip install" in err and not (tmp_path / "x.gguf").exists()
