"""A conversation says what a model without any memory says; its pieces are its answer; it may be stopped, drawn again and outgrow the model."""

import itertools

import pytest
import torch

from bedplate.adapt.base import Base
from bedplate.adapt.encode import compose, said
from bedplate.core.errors import ConfigError, StateError
from bedplate.data.chat import Message
from bedplate.infer.answer import answer
from bedplate.infer.conversation import Conversation, Sampling
from bedplate.testing.bases import tiny_base

SHORT = Sampling(max_tokens=24)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Base.load(tiny_base(tmp_path_factory.mktemp("base")))


def fresh_answer(base, turns, max_tokens):
    """The slow twin: everything computed anew."""
    ids = base.template.encode(turns, base.encoder, ask=True).ids
    return answer(base, compose([said(ids, False)], base.model.config), base.template.ends(), max_tokens)


def test_every_turn_is_what_a_model_without_memory_says(base):
    talk = Conversation(base, [Message("system", "be short")], SHORT)
    for question in ("the river", "and then", "why"):
        turns = [*talk.turns, Message("user", question)]
        pieces = list(talk.ask(question))
        assert "".join(pieces) == talk.turns[-1].content == fresh_answer(base, turns, 24)
        assert talk.turns[:-1] == turns and talk.turns[-1].role == "assistant" and talk.tokens <= 24 and talk.seconds >= talk.first_s > 0


def test_only_what_is_new_is_computed(base):
    talk = Conversation(base, sampling=SHORT)
    list(talk.ask("the river " * 60))
    lengths = []
    embed = base.model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: lengths.append(inputs[0].numel()))
    list(talk.ask("b"))
    embed.remove()
    whole = len(base.template.encode(talk.turns[:-1], base.encoder, ask=True).ids)
    assert lengths[0] < whole / 2


def test_a_stopped_answer_is_what_was_said_and_the_talk_goes_on(base):
    talk = Conversation(base, sampling=SHORT)
    pieces = talk.ask("the river")
    heard = "".join(itertools.islice(pieces, 3))
    pieces.close()
    assert talk.turns[-1] == Message("assistant", heard) and talk.tokens >= 3
    turns = [*talk.turns, Message("user", "go on")]
    assert "".join(talk.ask("go on")) == fresh_answer(base, turns, 24)


def test_again_draws_another_answer_to_the_same_question(base):
    with pytest.raises(StateError):
        Conversation(base).again()
    talk = Conversation(base, sampling=Sampling(24, temperature=2.0, top_p=1.0))
    first = "".join(talk.ask("the river"))
    second = "".join(talk.again())
    assert first != second and len(talk.turns) == 2 and talk.turns[-1].content == second


def test_old_turns_make_room_and_a_question_too_long_is_refused(base):
    room = base.model.config.max_position_embeddings
    turns = [Message("system", "be short"), *[Message(role, "the river " * 40) for _ in range(room // 100) for role in ("user", "assistant")]]
    talk = Conversation(base, turns, SHORT)
    list(talk.ask("so"))
    assert talk.forgotten and talk.forgotten % 2 == 0 and len(talk.turns) == len(turns) + 2, "nothing is lost from what is kept"
    with pytest.raises(ConfigError, match="tokens long"):
        list(Conversation(base, sampling=SHORT).ask("the river " * room))


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}])
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(ConfigError):
        Sampling(**wrong)


def test_pieces_never_end_within_a_character(base, monkeypatch):
    ids = base.encoder.encode("naïve 日本 👍 ok").tolist()
    talk = Conversation(base, sampling=Sampling(len(ids)))
    monkeypatch.setattr(talk, "_tokens", lambda *_: iter(ids))
    pieces = list(talk.ask("x"))
    assert "".join(pieces) == "naïve 日本 👍 ok" and not any("\ufffd" in piece for piece in pieces) and len(pieces) > 3
    assert torch.is_grad_enabled()
