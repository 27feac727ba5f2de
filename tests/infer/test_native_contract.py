"""The native generator keeps to the contract, over the engine in either way to compute and over its slow twin."""

import pytest
from workers import PREDICTING, made

from bedplate.adapt.base import Base
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.native import Native
from bedplate.testing.bases import tiny_base
from bedplate.testing.contracts import GeneratorContract
from bedplate.testing.corpora import tiny_specs
from bedplate.testing.slow_engine import SlowEngine


class Contract(GeneratorContract):
    predicts = frozenset(PREDICTING)

    @pytest.fixture(scope="class")
    def generator(self, make, folder):
        native = make()
        for task in PREDICTING:
            native.register(task, folder / task)
        yield native
        native.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    tiny_base(folder, tiny_specs())
    for task in PREDICTING:
        made(folder, task)
    return folder


@pytest.fixture(scope="module")
def base(folder):
    return Base.load(folder / "base")


class TestSlowEngine(Contract):
    @pytest.fixture(scope="class")
    def make(self, base, folder):
        return lambda: Native(SlowEngine(base, folder=folder / "base"))


class TestEngine(Contract):
    long_tokens = 1500

    @pytest.fixture(scope="class", params=["float32", "int8"])
    def make(self, base, request):
        return lambda: Native(Engine(base, EngineSettings(precision=request.param, threads=1, cache_bytes=2**26)))


class TestEngineInTorch(Contract):
    lacks = frozenset({"bits"})  # torch adds up in another order where a step has other rows

    @pytest.fixture(scope="class")
    def make(self, base):
        return lambda: Native(Engine(base, EngineSettings(backend="torch", device="cpu", threads=1, cache_bytes=2**26)))
