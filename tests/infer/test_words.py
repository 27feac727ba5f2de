"""Pieces of text are those of all tokens at once, whole characters only; nothing of a stop string leaves, nor of what may become one."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.generation import Alternative, TokenLogprob
from bedplate.data.tokenizer import Encoder
from bedplate.infer.words import ByBytes, ByWindow, Stops, Words, decoder
from bedplate.testing.corpora import tiny_tokenizer

BYTES = Encoder(tiny_tokenizer().to_str())


def before(text, stops):
    """A text up to the first of the stops."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def pieces_like_sentencepiece():
    """A tokenizer that is not made of bytes: a sign for the space, and single bytes as a last resort."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁river", "a", "b", "é", "▁lamp", "s"]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return Encoder(json.dumps(json.loads(tokenizer.to_str())))


@given(st.lists(st.integers(0, BYTES.size + 5), max_size=40))
def test_pieces_are_the_text_of_all_tokens(ids):
    words = Words(BYTES)
    pieces = [words.push(token).text for token in ids]
    assert isinstance(decoder(BYTES), ByBytes)
    assert "".join(pieces) + words.end().text == BYTES.decode(np.array(ids, np.int64))


@given(st.text(max_size=30))
def test_no_half_character_leaves(text):
    words = Words(BYTES)
    pieces = [words.push(int(token)).text for token in BYTES.encode(text)]
    assert "".join(pieces) == text and words.end().text == ""
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@pytest.mark.parametrize("text", ["the river", "a lamp é 早 🌊 the", "早上好", "the  the", " a"])
def test_other_tokenizers_are_read_by_a_window(text):
    encoder = pieces_like_sentencepiece()
    assert isinstance(decoder(encoder), ByWindow)
    ids = encoder.encode(text)
    words = Words(encoder)
    pieces = [words.push(int(token)).text for token in ids]
    assert "".join(pieces) + words.end().text == encoder.decode(ids) == text
    assert all("\ufffd" not in piece for piece in pieces)


LETTERS = st.text(alphabet="ab<", max_size=12)


@given(st.lists(LETTERS, max_size=12), st.lists(st.text(alphabet="ab<", min_size=1, max_size=5), max_size=3))
def test_text_ends_before_the_first_stop_string_that_is_complete(pieces, stops):
    held, said, whole = Stops(stops), "", "".join(pieces)
    stopped = False
    for piece in pieces:
        free, stopped = held.push(piece)
        said += free
        assert whole.startswith(said)
        if stopped:
            break
        assert not any(stop in said for stop in stops)
    if not stopped:
        said += held.end()
    first = min((whole.find(stop) + len(stop) for stop in stops if stop in whole), default=None)
    assert stopped == (first is not None)
    if first is None:
        assert said == whole
    else:
        begins = [first - len(stop) for stop in stops if whole[:first].endswith(stop)]
        assert said == whole[: min(begins)]
        if len(stops) == 1:
            assert said == before(whole, stops)


@given(st.lists(LETTERS, max_size=12), st.text(alphabet="ab<", min_size=1, max_size=4))
def test_nothing_is_held_back_that_cannot_become_a_stop_string(pieces, stop):
    held, came, said = Stops([stop]), "", ""
    for piece in pieces:
        free, stopped = held.push(piece)
        came, said = came + piece, said + free
        if stopped:
            return
        may = max((k for k in range(len(stop)) if came.endswith(stop[:k])), default=0)
        assert said == came[: len(came) - may]


def number(text):
    return TokenLogprob(Alternative(text, -1.0))


def test_numbers_leave_with_the_last_of_their_text():
    words = Words(BYTES, stops=("b!",))
    ids = [int(BYTES.encode(letter)[0]) for letter in "abab!"]
    said = [words.push(token, number(letter)) for letter, token in zip("abab!", ids)]
    assert [one.text for one in said] == ["a", "", "ba", "", ""] and said[-1].stopped
    assert ["".join(n.said.text for n in one.logprobs) for one in said] == ["a", "", "ba", "", ""]
