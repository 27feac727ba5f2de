"""The fake keeps to what every generator keeps to."""

import pytest

from bedplate.core.contracts import AdapterHost, Generator
from bedplate.testing.contracts import GeneratorContract
from bedplate.testing.fake_words import decode, encode
from bedplate.testing.generators import FakeGenerator


class TestFake(GeneratorContract):
    @pytest.fixture(scope="class")
    def generator(self):
        made = FakeGenerator(step_s=0.0005)
        yield made
        made.close()

    @pytest.fixture
    def make(self):
        return lambda: FakeGenerator(step_s=0.01)


class TestItsWorker(TestFake):
    worker = "triage"

    @pytest.fixture(scope="class")
    def generator(self):
        made = FakeGenerator(workers=("triage",), step_s=0.0005)
        yield made
        made.close()

    @pytest.fixture
    def make(self):
        return lambda: FakeGenerator(workers=("triage",), step_s=0.01)


def test_it_is_what_it_says():
    fake = FakeGenerator()
    assert isinstance(fake, Generator) and isinstance(fake, AdapterHost)
    fake.close()


def test_its_tokens_are_bytes_and_words():
    for text in ("the river carries Łódź 🌊", " the boats", ""):
        assert decode(encode(text)) == text
