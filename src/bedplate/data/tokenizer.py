"""The tokenizer: byte-level BPE trained on a sample of the corpus, or taken from a model; and a fast encoder that gives the same ids.

Raw text never becomes a special token: a file that contains the letters `<|endoftext|>` teaches those letters. Only the builder's own MASK
becomes `<|mask|>`.

    tokenizer = train(texts, vocabulary=4096)
    encoder = Encoder(tokenizer.to_str())
    ids = encoder.encode("any text")            # np.ndarray of uint16 or uint32
"""

from __future__ import annotations

import array
import functools
import json
import math
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.core.errors import ConfigError, DataError
from bedplate.data.corpus_format import token_type
from bedplate.data.privacy import MASK
from bedplate.modality.sequence import SPECIAL_TOKENS

FEWEST = 256 + len(SPECIAL_TOKENS)
"""The 256 bytes and the special tokens."""


def vocabulary_for(text_bytes: int) -> int:
    """A vocabulary that suits this much text: the power of two nearest to 1.3 x sqrt(bytes), from 512 to 65,536.

    Ours: a token should be seen some hundred times to be learned; 25 MB give 8,192, 1 GB gives 32,768.
    """
    wanted = 1.3 * math.sqrt(max(1, text_bytes))
    return int(min(65_536, max(512, 2 ** round(math.log2(wanted)))))


def train(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer` with SPECIAL_TOKENS as the first ids.

    Args:
        texts: a bounded sample; equal samples give equal tokenizers.
        vocabulary: number of ids; fewer come out when the sample has too few different words.
    Raises:
        ConfigError: the vocabulary cannot hold the bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocabulary < FEWEST:
        raise ConfigError(f"a vocabulary of {vocabulary} cannot hold the bytes", f"the smallest is {FEWEST}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=32,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def take(path: Path) -> Any:
    """The tokenizer of a model folder or a tokenizer.json, with the special tokens it lacks added behind its own.

    Raises:
        DataError: there is none, it is damaged, or it loses text.
    """
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"there is no tokenizer at {path}", "give a tokenizer.json or a model folder that holds one")
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"{file} is not a tokenizer: {error}", "it must be a tokenizer.json of the tokenizers library") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens([name for name in SPECIAL_TOKENS if tokenizer.token_to_id(name) is None])
    encoder = Encoder(tokenizer.to_str())
    if (back := encoder.decode(encoder.encode(_PROBE))) != _PROBE:
        raise DataError(f"{file} does not give back the text it is given: {back[:60]!r}", "use a byte-level tokenizer, such as Qwen's or Llama-3's")
    return tokenizer


class Encoder:
    """Text to ids, the same that the tokenizer itself gives for text without special tokens, several times faster.

    Byte-level BPE first cuts text into short stretches (words, numbers, signs, white space) and never merges across their borders; so each
    stretch is encoded once and remembered. Tokenizers that cut text in another way are asked directly.

    Args:
        tokenizer_json: the text of a tokenizer.json.
    """

    def __init__(self, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer

        self.whole = Tokenizer.from_str(tokenizer_json)
        """The library's own, with its special tokens."""
        tree = json.loads(tokenizer_json)
        tree["added_tokens"], tree["post_processor"] = [], None
        self._literal = Tokenizer.from_str(json.dumps(tree))  # knows no special token, so that raw text cannot name one
        self._literal.encode_special_tokens = True
        self.size = self.whole.get_vocab_size()
        self.dtype = token_type(self.size)
        self._mask = self.whole.token_to_id("<|mask|>")
        self._remember = _cuts_at_white_space(tree)
        self._code = "H" if self.dtype.itemsize == 2 else "I"
        self._known: dict[str, bytes] = {}
        self._foreign: set[str] = set()
        self._pieces = _pattern(set())
        self.tree: dict[str, Any] = tree
        """The tokenizer.json without its special tokens."""

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text; MASK becomes `<|mask|>`, everything else stays text."""
        if MASK not in text:
            return self._encode(text)
        mask = np.array([self._mask], self.dtype)
        parts: list[np.ndarray] = []
        for part in text.split(MASK):
            parts += [self._encode(part), mask]
        return np.concatenate(parts[:-1])

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids, special tokens written out."""
        return str(self.whole.decode(ids.tolist(), skip_special_tokens=False))

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...] | None:
        """The bytes that each token stands for, by id; the text of tokens is that of their bytes in a row. None: this tokenizer is not made of bytes."""
        if (self.tree.get("decoder") or {}).get("type") != "ByteLevel":
            return None
        letters = _byte_letters()
        names = {number: name for name, number in self.whole.get_vocab(with_added_tokens=True).items()}
        found = []
        for number in range(max(names, default=-1) + 1):
            name = names.get(number, "")
            spelled = [letters.get(letter) for letter in name]
            found.append(name.encode() if None in spelled else bytes(spelled))  # type: ignore[arg-type]
        return tuple(found)

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens."""
        return frozenset(number for number, token in self.whole.get_added_tokens_decoder().items() if token.special)

    def _encode(self, text: str) -> np.ndarray:
        if not self._remember:
            return np.array(self._literal.encode(text, add_special_tokens=False).ids, self.dtype)
        pieces = self._cutter(text).findall(text)
        known = self._known
        different = set(pieces)
        new = list(different.difference(known))
        if new:
            if len(known) > MOST_REMEMBERED:
                known.clear()
                new = list(different)
            encoded = self._literal.encode_batch_fast(new, add_special_tokens=False)
            known.update(zip(new, [array.array(self._code, e.ids).tobytes() for e in encoded]))
        ids = np.frombuffer(b"".join(map(known.__getitem__, pieces)), self.dtype)
        if new:
            for piece in new:
                if len(piece) > LONGEST_REMEMBERED:
                    del known[piece]
        return ids


    def _cutter(self, text: str) -> re.Pattern[str]:
        """GPT-2's own pattern, in which the letters and digits beyond ASCII are those that occur; for texts with very many, a coarser cut."""
        if text.isascii() or self._foreign.issuperset(foreign := set(_BEYOND_ASCII.findall(text))):
            return self._pieces
        both = self._foreign | foreign
        if len(both) > MOST_FOREIGN or any(unicodedata.category(c) == "Cn" for c in foreign):
            return _PIECES
        self._foreign, self._pieces = both, _pattern(both)
        return self._pieces


def _byte_letters() -> dict[str, int]:
    """The letter by which byte-level tokenizers write each byte -> the byte. Source: GPT-2's encoder.py, bytes_to_unicode."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _pattern(foreign: set[str]) -> re.Pattern[str]:
    letters, digits = ("".join(sorted(c for c in foreign if unicodedata.category(c)[0] == kind)) for kind in "LN")
    spaces = _WHITE_SPACE
    return re.compile(
        f"'(?:[stmd]|re|ve|ll)| ?[A-Za-z{letters}]+| ?[0-9{digits}]+| ?[^{spaces}A-Za-z0-9{letters}{digits}]+|[{spaces}]+(?![^{spaces}])|[{spaces}]+"
    )


MOST_REMEMBERED = 50_000
"""Stretches that an encoder remembers before it starts anew: about 10 MB; a larger memory is hardly asked more often."""
MOST_FOREIGN = 400
"""Different characters beyond ASCII for which an exact pattern is made; Chinese has more, and is cut at white space only."""
LONGEST_REMEMBERED = 48
"""Longer stretches hardly ever come again."""

_WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_PIECES = re.compile(f"[{_WHITE_SPACE}]*[^{_WHITE_SPACE}]+|[{_WHITE_SPACE}]+")
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_PROBE = "Good  morning,\n\tWelt! 早上好 🌊 x_1 = {'a': 0.5}\n"


def _cuts_at_white_space(tree: dict[str, Any]) -> bool:
    """Whether this is a tokenizer as `train` makes it: no normaliser, GPT-2's pattern, nothing random."""
    cutter = tree.get("pre_tokenizer") or {}
    plain = cutter.get("type") == "ByteLevel" and cutter.get("use_regex") is True and cutter.get("add_prefix_space") is False
    model = tree["model"]
    return plain and tree.get("normalizer") is None and model.get("type") == "BPE" and not model.get("dropout")
