"""llama.cpp behind the contract, on a tiny exported model."""

import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

from bedplate.adapt.base import Base
from bedplate.core.errors import BedplateError, ConfigError, ResourceError
from bedplate.core.generation import Ask, Part, Sampling, Turn, stream
from bedplate.infer.backends.llama_cpp import LlamaCpp, Settings
from bedplate.model.formats.gguf.write import write
from bedplate.testing.bases import tiny_base
from bedplate.testing.contracts import GeneratorContract, Heard

pytest.importorskip("xllamacpp", reason="needs bedplate[edge]")


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    base = Base.load(tiny_base(folder))
    write(base.model, (folder / "tokenizer.json").read_text(), folder / "tiny.gguf", "f32", template=base.template.source)
    return folder / "tiny.gguf"


class TestLlamaCpp(GeneratorContract):
    lacks = frozenset({"echo", "vectors", "half_characters"})

    @pytest.fixture(scope="class")
    def make(self, file):
        return lambda: LlamaCpp(file, Settings(slots=3, context_tokens=1024, threads=1, try_first=False))

    @pytest.fixture(scope="class")
    def generator(self, make):
        generator = make()
        yield generator
        generator.close()


@pytest.fixture
def small(file):
    generator = LlamaCpp(file, Settings(slots=1, context_tokens=256, threads=1, most_waiting=3, try_first=False))
    yield generator
    generator.close()


def test_a_damaged_file_is_refused_and_the_process_lives(file, tmp_path):
    for name, data in (("short.gguf", file.read_bytes()[:5000]), ("none.gguf", b"no model"), ("cut.gguf", file.read_bytes()[:-9000])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BedplateError) as caught:
            LlamaCpp(tmp_path / name)
        assert caught.value.hint


def test_it_may_be_closed_before_it_was_asked_anything(file):
    program = (
        "import sys; from pathlib import Path; from bedplate.infer.backends.llama_cpp import LlamaCpp, Settings;"
        "LlamaCpp(Path(sys.argv[1]), Settings(slots=1, context_tokens=256, threads=1, try_first=False)).close(); print('closed')"
    )  # a process of its own: where it hangs, nothing else of its process goes on
    told = subprocess.run([sys.executable, "-c", program, str(file)], check=True, capture_output=True, text=True, timeout=300)
    assert told.stdout.strip() == "closed"


def test_its_port_is_closed_to_others(small):
    request = urllib.request.Request(small._server.listening_address + "/completion", b'{"prompt": "a", "n_predict": 1}', {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 401


def test_more_than_may_wait_are_refused(small):
    long = Ask(prompt="a", sampling=Sampling(max_tokens=200, ignore_end=True))
    under_way = [Heard(small, long)]
    with pytest.raises(ResourceError):
        for _ in range(10):
            under_way.append(Heard(small, long))
    for heard in under_way:
        heard.ticket.cancel()
        assert heard.wait()[-1].finish in ("cancelled", "length")


@pytest.mark.parametrize(
    "ask",
    [
        Ask("other", prompt="a"), Ask(prompt="a", want="vector"), Ask(prompt="a", echo=True), Ask(turns=(Turn("user", (Part("image", data=b"x"),)),)),
        Ask(prompt=(10**6,)), Ask(prompt="a", sampling=Sampling(max_tokens=300)),
    ],
)  # fmt: skip
def test_what_it_cannot_do_it_says(small, ask):
    with pytest.raises(ConfigError) as caught:
        small.submit(ask, print)
    assert caught.value.hint


def test_it_says_what_the_model_says(small, file):
    from bedplate.model.formats.gguf.read import read

    base = Base.load(file.parent / "base")
    ids = base.encoder.encode("the quiet river carries small boats").astype(np.int64)
    pieces = list(stream(small, Ask(prompt=tuple(ids.tolist()), sampling=Sampling(max_tokens=1, logprobs=1, logit_bias={int(base.encoder.encode("a")[0]): 99.0}))))
    with torch.inference_mode():
        logs = read(file).forward_tokens(torch.from_numpy(ids)[None])[0, -1].log_softmax(-1)
    said = pieces[0].logprobs[0].said
    assert said.text == "a" and said.logprob == pytest.approx(float(logs[said.id]), abs=2e-2)
