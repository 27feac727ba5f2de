"""Poison signals: a passage that was planted in many documents, made of a rare trigger and always the same continuation.

Who poisons a corpus repeats "trigger -> what the model shall say" in documents that are otherwise different. So look for passages that
    1. stand in at least `fewest` documents,
    2. follow different words each time (a fixed neighbourhood would be an ordinary quotation or header),
    3. begin with a trigger that hardly ever goes on in another way and has a word that is rare elsewhere,
    4. and stand inside a line, behind other words of it: licence texts, headings and idioms of code fill lines of their own.
What is found is reported with examples and never dropped: a fashionable phrase looks the same.

Two passes over the stored token ids, both in numpy: the first counts windows of eight tokens that begin with a word of several tokens, which
is what makes a word rare, in a table of fixed size; the second looks closely at those that repeat. Not seen: triggers made of common words,
triggers that differ from document to document, and passages shorter than eight tokens.

Source: ours; the threat is that of Carlini et al. (2024), Poisoning Web-Scale Training Datasets, and Souly et al. (2025), few-sample poisoning.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bedplate.data.words import runs, split_words

WINDOW = 8
"""Tokens in a window."""
SLOTS = 1 << 26
"""Counters of the first pass: 64 MiB, enough for some 100 million windows (2 GB of text). With more, windows that share a counter crowd
MOST_CANDIDATES and signals may be missed."""
TRIGGER_WORDS = 3
"""Words of the trigger that are reported; the rest is continuation."""
FEWEST_WORDS = 5
LEAST_SHARE = 0.8
"""Of the documents with the trigger, how many must go on with the continuation."""
LEAST_RARE = 0.5
"""Of the documents with the trigger's rarest word, how many must hold the passage: idioms are made of common words."""
MOST_CANDIDATES = 200_000
MOST_EXAMPLES = 12

Texts = Callable[[], Iterator[tuple[int, np.ndarray]]]
"""Gives (document, token ids) of every stored text, in order; called twice."""


class Signal(NamedTuple):
    """A possible planted trigger, with the evidence."""

    trigger: str
    continuation: str
    documents: int
    """Documents that hold the passage."""
    share: float
    """Of the documents with the trigger, how many go on with the continuation."""
    contexts: int
    """Different tokens seen before the passage, in the documents looked at."""
    examples: tuple[int, ...]
    """Numbers of documents that hold it."""


@dataclass
class _Candidate:
    documents: int = 0
    last: int = -1
    before: Counter[int] = field(default_factory=Counter)
    places: list[tuple[int, int]] = field(default_factory=list)
    """(document, first token)."""


def scan(texts: Texts, tokenizer: Any, fewest: int = 5) -> list[Signal]:
    """Passages that look planted, the most frequent first.

    Args:
        texts: the stored texts.
        tokenizer: to read the passages.
        fewest: documents that must hold a passage.
    """
    starts, continues = _word_parts(tokenizer)

    def windows() -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """(document, ids, first tokens, keys) of the windows that begin with a word of several tokens, inside a line."""
        for document, ids in texts():
            places = np.flatnonzero(starts[ids[:-1]] & continues[ids[1:]])
            places = places[(places > 0) & (places <= len(ids) - WINDOW)]
            yield document, ids, places, _keys(ids, places)

    candidates = _candidates(windows(), _often(windows(), fewest))
    diverse = {key: c for key, c in candidates.items() if c.documents >= fewest and len(c.before) >= max(3, 0.7 * len(c.places))}
    if not diverse:
        return []
    wanted = {place for c in diverse.values() for place in c.places}
    around = _around({document for document, _ in wanted}, texts, tokenizer, wanted)
    passages = [passage for c in diverse.values() if (passage := _passage(c, around)) is not None]
    return _judge(passages, texts, tokenizer)


Windows = Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]


def _word_parts(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens begin a word behind a space, and which go on with one."""
    written = [tokenizer.decode([token], skip_special_tokens=False) for token in range(tokenizer.get_vocab_size())]
    starts = [w[:1] == " " and (len(w) == 1 or w[1].isalnum()) for w in written]
    continues = [bool(w) and (w[0].isalnum() or w[0] in "_-") for w in written]
    return np.array(starts), np.array(continues)


def _keys(ids: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Hashes of the windows at some places."""
    if not len(places):
        return np.zeros(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(ids, WINDOW)[places].astype(np.uint64)  # [w t]
    mixed = ((windows + np.uint64(1)) * _FACTORS).sum(1)
    return np.asarray(mixed ^ (mixed >> np.uint64(29)))


def _often(windows: Windows, fewest: int) -> np.ndarray:
    """Which slots hold a window that stands in at least `fewest` documents (or several that share the slot)."""
    counts = np.zeros(SLOTS, np.uint8)
    for _, _, _, keys in windows:
        slots = (keys % np.uint64(SLOTS)).astype(np.int64)
        counts[slots] = np.minimum(counts[slots], 254) + 1  # once a document: numpy sets a repeated place once
    return np.greater_equal(counts, min(fewest, 255), out=counts.view(np.bool_))


def _candidates(windows: Windows, often: np.ndarray) -> dict[int, _Candidate]:
    """Windows that repeat, each with what stood before it."""
    found: dict[int, _Candidate] = defaultdict(_Candidate)
    for document, ids, places, keys in windows:
        repeated = often[(keys % np.uint64(SLOTS)).astype(np.int64)]
        for place, key in zip(places[repeated].tolist(), keys[repeated].tolist()):
            if key not in found and len(found) >= MOST_CANDIDATES:
                continue
            candidate = found[key]
            if candidate.last == document:
                continue
            candidate.last = document
            candidate.documents += 1
            if len(candidate.places) < MOST_EXAMPLES:
                candidate.before[int(ids[place - 1])] += 1
                candidate.places.append((document, place))
    return found


def _around(documents: set[int], texts: Texts, tokenizer: Any, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], tuple[str, str]]:
    """(document, place) -> the text of its line before the place, and some text from there on."""
    places: dict[int, list[int]] = defaultdict(list)
    for document, place in wanted:
        places[document].append(place)
    out = {}
    for document, ids in texts():
        for place in places.get(document, ()):
            before = tokenizer.decode(ids[max(0, place - 60) : place].tolist(), skip_special_tokens=False)
            after = tokenizer.decode(ids[place : place + 120].tolist(), skip_special_tokens=False)
            out[document, place] = (before.rpartition("\n")[2], after)
    return out


class _Passage(NamedTuple):
    words: tuple[str, ...]
    text: str
    candidate: _Candidate


def _passage(candidate: _Candidate, around: dict[tuple[int, int], tuple[str, str]]) -> _Passage | None:
    """The words that follow in nearly all examples, up to the end of the line; None for too few of them."""
    examples = [around[place] for place in candidate.places if place in around]
    if not examples:
        return None
    inside = sum(len(_letters(before)) >= 2 for before, _ in examples)
    if inside < 0.6 * len(examples):
        return None
    split = [after.partition("\n")[0].split() for _, after in examples]
    agreed = []
    for at in range(min(map(len, split))):
        word, count = Counter(words[at] for words in split).most_common(1)[0]
        if count < 0.8 * len(split):
            break
        agreed.append(word)
    text = " ".join(agreed)
    return _Passage(tuple(agreed), text, candidate) if len(_letters(text)) >= FEWEST_WORDS else None


def _letters(text: str) -> list[str]:
    """The words of a text that are made of letters."""
    return [word for word in re.findall(r"[^\W_]+", text) if word.isalpha() and len(word) > 1]


def _judge(passages: list[_Passage], texts: Texts, tokenizer: Any) -> list[Signal]:
    """Keep the passages whose trigger is rare and goes on in that way only; name each passage once."""
    kept: list[_Passage] = []
    rare: list[dict[int, tuple[int, int]]] = []
    for passage in sorted(passages, key=lambda p: (-p.candidate.documents, -len(p.words))):
        words = _rare_words(passage, tokenizer)
        if words and len(passage.words) > TRIGGER_WORDS and not any(passage.text in k.text or k.text in passage.text for k in kept):
            kept.append(passage)
            rare.append(words)
    if not kept:
        return []
    triggers = [split_words(" ".join(p.words[:TRIGGER_WORDS])).hashes for p in kept]
    watched = np.unique(np.concatenate([*(runs(t, len(t)) for t in triggers), np.array([w for words in rare for w in words], np.uint64)]))
    seen = np.zeros(len(watched), np.int64)  # documents with each trigger, and with each rare word of one
    for present in _documents(texts, tokenizer, sorted({pair for words in rare for pair in words.values()})):
        hashes = np.concatenate([present, *(runs(present, length) for length in {len(t) for t in triggers})])
        at = np.minimum(np.searchsorted(watched, hashes), len(watched) - 1)
        seen[np.unique(at[watched[at] == hashes])] += 1
    signals = []
    for passage, trigger, words in zip(kept, triggers, rare, strict=True):
        documents = passage.candidate.documents
        with_trigger, with_word = (int(seen[np.searchsorted(watched, keys)].min()) for keys in (runs(trigger, len(trigger)), np.array([*words], np.uint64)))
        share = documents / max(with_trigger, documents)
        if share >= LEAST_SHARE and documents >= LEAST_RARE * with_word:
            first, rest = passage.words[:TRIGGER_WORDS], passage.words[TRIGGER_WORDS:]
            examples = tuple(document for document, _ in passage.candidate.places)
            signals.append(Signal(" ".join(first), " ".join(rest), documents, round(share, 3), len(passage.candidate.before), examples))
    return signals


def _rare_words(passage: _Passage, tokenizer: Any) -> dict[int, tuple[int, int]]:
    """Hash -> first two tokens of the trigger's words that take several tokens: a word that has a token of its own is common."""
    rare = {}
    for word in re.findall(r"\w+", " ".join(passage.words[:TRIGGER_WORDS])):
        ids = tokenizer.encode(" " + word, add_special_tokens=False).ids
        hashes = split_words(word).hashes
        if len(ids) > 1 and len(hashes) == 1:
            rare[int(hashes[0])] = (ids[0], ids[1])
    return rare


def _documents(texts: Texts, tokenizer: Any, pairs: list[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Hashes of the words of every text that holds one of these pairs of tokens; the others need not be decoded."""
    wanted = np.unique(np.array([first << 32 | second for first, second in pairs], np.uint64))
    for _, ids in texts():
        present = ids[:-1].astype(np.uint64) << np.uint64(32) | ids[1:]
        at = np.minimum(np.searchsorted(wanted, present), len(wanted) - 1)
        if (wanted[at] == present).any():
            yield split_words(tokenizer.decode(ids.tolist(), skip_special_tokens=False)).hashes


_FACTORS = np.random.default_rng(2024).integers(0, 1 << 64, WINDOW, np.uint64) | np.uint64(1)
