"""Poison signals: a passage that was planted in many documents, made of a rare trigger and always the same continuation.

Who poisons a corpus repeats "trigger -> what the model shall say" in documents that are otherwise different. So look for passages that
    1. stand in at least `fewest` documents,
    2. follow different words each time (a fixed neighbourhood would be an ordinary quotation or header),
    3. begin with a trigger that hardly ever goes on in another way and has a word that is rare elsewhere,
    4. and stand inside a line, behind other words of it: licence texts, headings and idioms of code fill lines of their own.
What is found is reported with examples and never dropped: a fashionable phrase looks the same.

Two passes over the stored token ids, both in numpy: the first counts all windows of eight tokens in a table of fixed size, the second looks
closely at those that repeat. A trigger needs about ten tokens together with its continuation to be seen; shorter ones are not.

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
SLOTS = 1 << 22
"""Counters of the first pass: 4 MiB. At 100 million tokens some windows share one and are looked at for nothing."""
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
    often = _often(texts, fewest)
    candidates = _candidates(texts, often, fewest)
    diverse = {key: c for key, c in candidates.items() if c.documents >= fewest and len(c.before) >= max(3, 0.7 * len(c.places))}
    if not diverse:
        return []
    wanted = {place for c in diverse.values() for place in c.places}
    around = _around({document for document, _ in wanted}, texts, tokenizer, wanted)
    passages = [passage for c in diverse.values() if (passage := _passage(c, around)) is not None]
    return _judge(passages, texts, tokenizer)


def _keys(ids: np.ndarray) -> np.ndarray:
    return runs(ids.astype(np.uint64) + np.uint64(1), WINDOW)


def _often(texts: Texts, fewest: int) -> np.ndarray:
    """Which slots hold a window that stands in at least `fewest` documents (or several that share the slot)."""
    counts = np.zeros(SLOTS, np.uint8)
    for _, ids in texts():
        slots = (_keys(ids) % np.uint64(SLOTS)).astype(np.int64)
        counts[slots] = np.minimum(counts[slots], 254) + 1  # once a document: numpy sets a repeated place once
    return counts >= min(fewest, 255)


def _candidates(texts: Texts, often: np.ndarray, fewest: int) -> dict[int, _Candidate]:
    """Windows that repeat, each with what stood before it; windows inside a longer passage have the same token before and fall away."""
    found: dict[int, _Candidate] = defaultdict(_Candidate)
    for document, ids in texts():
        keys = _keys(ids)
        for place in np.flatnonzero(often[(keys % np.uint64(SLOTS)).astype(np.int64)]).tolist():
            key = int(keys[place])
            if key not in found and len(found) >= MOST_CANDIDATES:
                continue
            candidate = found[key]
            if candidate.last == document:
                continue
            candidate.last = document
            candidate.documents += 1
            if len(candidate.places) < MOST_EXAMPLES:
                candidate.before[int(ids[place - 1]) if place else -1] += 1
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
    for passage in sorted(passages, key=lambda p: (-p.candidate.documents, -len(p.words))):
        if not any(passage.text in other.text or other.text in passage.text for other in kept):
            kept.append(passage)
    if not kept:
        return []
    triggers = [split_words(" ".join(p.words[:TRIGGER_WORDS])).hashes for p in kept]
    watched = np.unique(np.concatenate([np.concatenate([runs(t, len(t)), t]) for t in triggers]))
    seen = np.zeros(len(watched), np.int64)  # documents with each trigger, and with each word of one
    for _, words in _documents(texts, tokenizer):
        present = np.concatenate([words, *(runs(words, length) for length in {len(t) for t in triggers})])
        at = np.minimum(np.searchsorted(watched, present), len(watched) - 1)
        seen[np.unique(at[watched[at] == present])] += 1
    signals = []
    for passage, trigger in zip(kept, triggers, strict=True):
        documents = passage.candidate.documents
        with_trigger, with_words = (seen[np.searchsorted(watched, keys)] for keys in (runs(trigger, len(trigger)), trigger))
        share = documents / max(int(with_trigger[0]), documents)
        if share >= LEAST_SHARE and documents >= LEAST_RARE * int(with_words.min()) and len(passage.words) > TRIGGER_WORDS:
            first, rest = passage.words[:TRIGGER_WORDS], passage.words[TRIGGER_WORDS:]
            examples = tuple(document for document, _ in passage.candidate.places)
            signals.append(Signal(" ".join(first), " ".join(rest), documents, round(share, 3), len(passage.candidate.before), examples))
    return signals


def _documents(texts: Texts, tokenizer: Any) -> Iterator[tuple[int, np.ndarray]]:
    """(document, hashes of the words) of every text."""
    for document, ids in texts():
        yield document, split_words(tokenizer.decode(ids.tolist(), skip_special_tokens=False)).hashes
