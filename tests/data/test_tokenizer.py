"""The tokenizer: gives back what it was given, never makes control tokens of raw text, and the fast path equals the slow one."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError, DataError
from bedplate.data.privacy import MASK
from bedplate.data.tokenizer import FEWEST, Encoder, take, train, vocabulary_for
from bedplate.modality.sequence import SPECIAL_TOKENS
from bedplate.testing.corpora import tiny_text, tiny_tokenizer

TOKENIZER = train([tiny_text(np.random.default_rng(n), 50) + "def f(x):\n    return x  # don't\n" for n in range(30)], 500)
ENCODER = Encoder(TOKENIZER.to_str())
SLOW = Encoder(TOKENIZER.to_str())
SLOW._remember = False  # asks the library for the whole text

hard_parts = [*"ab'sdt 1_\n\t\r.!\u00a0\u2003\x1c\x85é日本🌊²Ⅷ\u0301٣", " river", "don't", "  "]
texts = st.text(max_size=80) | st.lists(st.sampled_from(hard_parts), max_size=40).map("".join)


@settings(max_examples=500, deadline=None)
@given(texts)
def test_fast_equals_slow_and_text_comes_back(text):
    text = text.replace(MASK, "").encode("utf-8", errors="replace").decode()
    ids = ENCODER.encode(text)
    assert ids.tolist() == SLOW.encode(text).tolist()
    assert ENCODER.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, " a ", "<|", "|>", "\n"]), max_size=12).map("".join))
def test_control_tokens_written_in_raw_text_stay_letters(text):
    ids = ENCODER.encode(text)
    assert not len(ids) or ids.min() >= len(SPECIAL_TOKENS)
    assert ENCODER.decode(ids) == text


def test_only_the_mask_becomes_a_control_token():
    ids = ENCODER.encode(f"call {MASK} now {MASK}")
    assert (ids < len(SPECIAL_TOKENS)).sum() == 2
    assert ENCODER.decode(ids) == "call <|mask|> now <|mask|>"


def test_special_tokens_come_first_in_their_order():
    assert [TOKENIZER.token_to_id(name) for name in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))


def test_training_is_deterministic_and_the_size_holds():
    sample = [tiny_text(np.random.default_rng(n), 200) for n in range(20)]
    assert train(sample, 300).to_str() == train(sample, 300).to_str()
    assert train(sample, 300).get_vocab_size() == 300
    with pytest.raises(ConfigError, match="cannot hold"):
        train(sample, FEWEST - 1)


def test_vocabulary_grows_with_the_text():
    sizes = [vocabulary_for(n) for n in (0, 10**5, 10**6, 25_000_000, 10**9, 10**13)]
    assert sizes == sorted(sizes) and sizes[0] == 512 and sizes[-1] == 65_536 and sizes[3] == 8192


def test_memory_of_the_encoder_is_bounded(monkeypatch):
    from bedplate.data import tokenizer

    monkeypatch.setattr(tokenizer, "MOST_REMEMBERED", 50)
    encoder = Encoder(TOKENIZER.to_str())
    for number in range(40):
        encoder.encode(" ".join(f"w{number}x{k}" for k in range(20)) + "y" * 500)
        assert len(encoder._known) < 200
    assert not any(len(piece) > tokenizer.LONGEST_REMEMBERED for piece in encoder._known)


def test_a_taken_tokenizer_gets_the_missing_control_tokens(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain.train_from_iterator(["some words"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    plain.add_special_tokens(["<|endoftext|>"])
    plain.save(str(tmp_path / "tokenizer.json"))
    taken = take(tmp_path)
    assert taken.get_vocab_size() == plain.get_vocab_size() + len(SPECIAL_TOKENS) - 1
    assert taken.token_to_id("<|endoftext|>") == plain.token_to_id("<|endoftext|>")
    encoder = Encoder(take(tmp_path / "tokenizer.json").to_str())
    assert encoder.decode(encoder.encode("<|im_start|> grüß <|endoftext|>")) == "<|im_start|> grüß <|endoftext|>"
    assert taken.token_to_id("<|endoftext|>") not in encoder.encode("<|endoftext|>").tolist()


def test_other_cutting_patterns_are_asked_directly(tmp_path):
    from tokenizers import Regex, pre_tokenizers

    other = tiny_tokenizer()
    cut, to_bytes = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\p{N}]+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    other.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    encoder = Encoder(other.to_str())
    assert not encoder._remember
    text = "river 123456 !\n\n lamps"
    assert encoder.decode(encoder.encode(text)) == text


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": null}', json.dumps({"version": "1.0", "model": {"type": "BPE"}})])
def test_damaged_tokenizers_are_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError):
        take(tmp_path)


def test_a_tokenizer_that_loses_text_is_refused(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="give back"):
        take(tmp_path)
    with pytest.raises(DataError, match="no tokenizer"):
        take(tmp_path / "nothing")
