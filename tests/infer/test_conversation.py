"""A conversation says what a model without any memory says; its pieces are its answer; it may be stopped, drawn again and outgrow the model."""

import itertools

import pytest

from bedplate.adapt.base import Base
from bedplate.adapt.encode import compose, said
from bedplate.core.errors import ConfigError, ResourceError, StateError
from bedplate.core.generation import Ask, Sampling, Turn
from bedplate.data.chat import Message
from bedplate.infer.conversation import Conversation
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.native import Native
from bedplate.testing.bases import tiny_base
from bedplate.testing.generators import FakeGenerator
from bedplate.testing.slow_answer import answer

SHORT = Sampling(max_tokens=24)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Base.load(tiny_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def native(base):
    native = Native(Engine(base, EngineSettings(precision="float32", threads=1, cache_bytes=2**26)))
    yield native
    native.close()


def fresh_answer(base, turns, max_tokens):
    """The slow twin: everything computed anew."""
    ids = base.template.encode(turns, base.encoder, ask=True).ids
    return answer(base, compose([said(ids, False)], base.model.config), base.template.ends(), max_tokens)


def test_every_turn_is_what_a_model_without_memory_says(base, native):
    talk = Conversation(native, turns=[Message("system", "be short")], sampling=SHORT)
    for question in ("the river", "and then", "why"):
        turns = [*talk.turns, Message("user", question)]
        pieces = list(talk.ask(question))
        assert "".join(pieces) == talk.turns[-1].content == fresh_answer(base, turns, 24)
        assert talk.turns[:-1] == turns and talk.turns[-1].role == "assistant" and talk.tokens <= 24 and talk.seconds >= talk.first_s > 0


def test_only_what_is_new_is_computed(native):
    talk = Conversation(native, sampling=SHORT)
    list(talk.ask("the river " * 60))
    before = native.load().counters
    list(talk.ask("b"))
    read, kept = (native.load().counters[name] - before.get(name, 0) for name in ("prompt_tokens", "cached_tokens"))
    assert read == native.count(Ask(turns=tuple(Turn.of(turn.role, turn.content) for turn in talk.turns[:-1]))) and kept > read / 2


def test_a_stopped_answer_is_what_was_said_and_the_talk_goes_on(base, native):
    talk = Conversation(native, sampling=SHORT)
    pieces = talk.ask("the river")
    heard = "".join(itertools.islice(pieces, 3))
    pieces.close()
    assert talk.turns[-1] == Message("assistant", heard) and talk.tokens >= 3
    turns = [*talk.turns, Message("user", "go on")]
    assert "".join(talk.ask("go on")) == fresh_answer(base, turns, 24)


def test_what_is_stopped_is_computed_no_further(native, monkeypatch):
    submit, cancelled = native.submit, []

    class Noted:
        def __init__(self, ask, deliver):
            self.ticket = submit(ask, deliver)

        def cancel(self):
            cancelled.append(self)
            self.ticket.cancel()

    monkeypatch.setattr(native, "submit", Noted)
    pieces = Conversation(native, sampling=Sampling(max_tokens=1000, ignore_end=True)).ask("the river")
    next(pieces)
    assert not cancelled
    pieces.close()
    assert cancelled


def test_again_draws_another_answer_to_the_same_question(native):
    with pytest.raises(StateError):
        Conversation(native).again()
    talk = Conversation(native, sampling=Sampling(24, temperature=2.0))
    said = ["".join(talk.ask("the river")), "".join(talk.again()), "".join(talk.again())]
    assert len(set(said)) == 3 and len(talk.turns) == 2 and talk.turns[-1].content == said[-1]
    assert "".join(Conversation(native, sampling=Sampling(24, temperature=2.0)).ask("the river")) == said[0], "equal seeds, equal answers"


def test_old_turns_make_room_and_a_question_too_long_is_refused(base, native):
    room = base.model.config.max_position_embeddings
    turns = [Message("system", "be short"), *[Message(role, "the river " * 40) for _ in range(room // 100) for role in ("user", "assistant")]]
    talk = Conversation(native, turns=turns, sampling=SHORT)
    list(talk.ask("so"))
    assert talk.forgotten and talk.forgotten % 2 == 0 and len(talk.turns) == len(turns) + 2, "nothing is lost from what is kept"
    talk = Conversation(native, sampling=SHORT)
    with pytest.raises(ConfigError, match="tokens long"):
        list(talk.ask("the river " * room))
    assert talk.turns == [], "a question that nobody could answer was not asked"


def test_an_answer_of_no_tokens_is_refused(native):
    with pytest.raises(ConfigError, match="nothing to say"):
        list(Conversation(native, sampling=Sampling(max_tokens=0)).ask("so"))


@pytest.mark.parametrize("after", [0, 3])
def test_of_an_answer_that_fails_what_was_said_stays(after):
    generator = FakeGenerator(fails=lambda ask: ResourceError("the machine is gone", "find another"), fails_after=after)
    talk = Conversation(generator)
    heard = []
    with pytest.raises(ResourceError, match="gone"):
        for piece in talk.ask("the river runs through the town"):
            heard.append(piece)
    generator.close()
    said = "".join(heard)
    assert bool(said) == bool(after) and talk.turns == ([Message("user", "the river runs through the town"), Message("assistant", said)] if said else [])
