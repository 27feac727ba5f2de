"""llama.cpp behind the contract, on a tiny exported model."""

import pytest

from bedplate.adapt.base import Base
from bedplate.infer.backends.llama_cpp import LlamaCpp, Settings
from bedplate.model.formats.gguf.write import write
from bedplate.testing.bases import tiny_base
from bedplate.testing.contracts import GeneratorContract

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
