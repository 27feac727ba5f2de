"""Words as numbers: a 64-bit hash of every word of a text, and of every run of n words, all in numpy.

Cleaning, near-duplicate search, decontamination and poison signals look at the same words; none of them needs the letters again. A word is
a run of letters, digits and underscores, in lower case; every other byte only separates. In scripts without spaces (Chinese, Japanese,
Korean) each character is a word. Hashes depend on nothing but the text: no process salt, no library version.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt64

_BASE = 0x9E3779B97F4A7C15
"""Odd, so it has an inverse modulo 2^64: a prefix sum of byte x power gives the hash of any stretch."""


@dataclass(frozen=True)
class Words:
    """The words of a text."""

    hashes: UInt64[np.ndarray, "w"]
    start: Int[np.ndarray, "w"]
    """First byte of each word in the lower-case UTF-8 text."""
    end: Int[np.ndarray, "w"]
    lettered: Bool[np.ndarray, "w"]
    """Whether a letter is in it."""

    def __len__(self) -> int:
        return len(self.hashes)


def split_words(text: str) -> Words:
    """The words of a text in order."""
    data = np.frombuffer(text.lower().encode("utf-8", errors="replace"), np.uint8)
    if not len(data):
        empty = np.zeros(0, np.int64)
        return Words(np.zeros(0, np.uint64), empty, empty, np.zeros(0, bool))
    word, letter, alone, mixed = _tables()
    inside = word[data]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]])))
    start, end = edges[::2], edges[1::2]
    if data.max() >= 0xE3 and (own := np.flatnonzero(alone[data])).size:
        # A character that is a word of its own begins one, and ends it after its three bytes.
        start = np.unique(np.concatenate([start, own, own[inside[np.minimum(own + 3, len(data) - 1)] & (own + 3 < len(data))] + 3]))
        end = np.minimum(end[np.searchsorted(end, start, "right")], np.append(start[1:], len(data)))
    power, inverse = _powers(1 << max(10, len(data).bit_length()))
    prefix = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(mixed[data] * power[: len(data)], out=prefix[1:])
    letters = np.zeros(len(data) + 1, np.int32)
    np.cumsum(letter[data], out=letters[1:])
    hashes = _finish((prefix[end] - prefix[start]) * inverse[start])
    return Words(hashes, start, end, letters[end] > letters[start])


def runs(hashes: UInt64[np.ndarray, "w"], length: int) -> UInt64[np.ndarray, "r"]:
    """The hash of every run of `length` words: as many as there are words, less length - 1."""
    count = len(hashes) - length + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for offset in range(length):
        total = total * np.uint64(_BASE) + hashes[offset : offset + count]
    return _finish(total)


def _finish(values: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """Spread a sum over all bits (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    spread: np.ndarray = values ^ (values >> np.uint64(31))
    return spread


@functools.lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per byte: part of a word, a letter, first byte of a character that is a word of its own, a random number."""
    byte = np.arange(256)
    text = [chr(b) for b in range(128)]
    letter = np.array([c.isalpha() for c in text] + [True] * 128)
    word = letter | np.array([c.isdigit() or c == "_" for c in text] + [False] * 128)
    alone = (byte >= 0xE3) & (byte <= 0xED)  # three-byte characters from U+3000: kana, Han, Hangul
    return word, letter, alone, _finish(byte.astype(np.uint64) * np.uint64(_BASE) + np.uint64(1))


@functools.lru_cache(maxsize=2)
def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):
        power = np.concatenate([[np.uint64(1)], np.full(length - 1, _BASE, np.uint64)]).cumprod(dtype=np.uint64)
        back = np.full(length - 1, pow(_BASE, -1, 1 << 64), np.uint64)
        inverse = np.concatenate([[np.uint64(1)], back]).cumprod(dtype=np.uint64)
    return power, inverse
