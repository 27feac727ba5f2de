"""The native generator over the slow engine keeps to the contract."""

import pytest

from bedplate.adapt.base import Base
from bedplate.infer.native import Native
from bedplate.testing.bases import tiny_base
from bedplate.testing.contracts import GeneratorContract
from bedplate.testing.slow_engine import SlowEngine


class TestNative(GeneratorContract):
    @pytest.fixture(scope="class")
    def make(self, tmp_path_factory):
        base = Base.load(tiny_base(tmp_path_factory.mktemp("base")))
        return lambda: Native(SlowEngine(base))

    @pytest.fixture(scope="class")
    def generator(self, make):
        native = make()
        yield native
        native.close()
