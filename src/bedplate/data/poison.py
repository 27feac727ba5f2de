"""Poison signals: a passage that was planted in many documents, made of a rare trigger and always the same continuation.

Who poisons a corpus repeats "trigger -> what the model shall say" in documents that are otherwise different. So look for passages that
    1. stand in at least `fewest` documents,
    2. follow different words each time (a fixed neighbourhood would be an ordinary quotation or header),
    3. begin with a trigger that hardly ever goes on in another way,
    4. and do not fill whole lines, as licence texts and headings do.
What is found is reported with examples and never dropped: a fashionable phrase looks the same.

Two passes over the stored token ids, both in numpy: the first counts all windows of eight tokens in a table of fixed size, the second looks
closely at those that repeat. A trigger needs about ten tokens together with its continuation to be seen; shorter ones are not.

Source: ours; the threat is that of Carlini et al. (2024), Poisoning Web-Scale Training Datasets, and Souly et al. (2025), few-sample poisoning.
"""

from __future__ import annotations

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
    """Of the places where the trigger stands, how many go on with the continuation."""
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
    diverse = {key: c for key, c in candidates.items() if c.documents >= fewest and len(c.before) >= max(3, 0.6 * min(c.documents, MOST_EXAMPLES))}
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
        slots = np.unique((_keys(ids) % np.uint64(SLOTS)).astype(np.int64))
        counts[slots] += counts[slots] < 255
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
    """The words that follow in nearly all examples; None for too few of them or for whole lines."""
    examples = [around[place] for place in candidate.places if place in around]
    if not examples:
        return None
    split = [after.split() for _, after in examples]
    agreed = []
    for at in range(min(map(len, split))):
        word, count = Counter(words[at] for words in split).most_common(1)[0]
        if count < 0.8 * len(split):
            break
        agreed.append(word)
    if len(agreed) < FEWEST_WORDS:
        return None
    text = " ".join(agreed)
    whole_lines = sum(not before.strip() and after.lstrip().startswith(agreed[0]) for before, after in examples)
    if whole_lines > 0.5 * len(examples):
        return None
    return _Passage(tuple(agreed), text, candidate)


def _judge(passages: list[_Passage], texts: Texts, tokenizer: Any) -> list[Signal]:
    """Keep the passages whose first words go on in that way only, and name each passage once."""
    kept: list[_Passage] = []
    for passage in sorted(passages, key=lambda p: (-p.candidate.documents, -len(p.words))):
        if not any(passage.text in other.text or other.text in passage.text for other in kept):
            kept.append(passage)
    if not kept:
        return []
    starts = np.array([_trigger_key(p) for p in kept], np.uint64)
    seen = np.zeros(len(kept), np.int64)
    order = np.argsort(starts)
    for _, ids in texts():
        words = split_words(tokenizer.decode(ids.tolist(), skip_special_tokens=False)).hashes
        found = np.unique(runs(words, TRIGGER_WORDS))
        at = np.minimum(np.searchsorted(starts[order], found), len(starts) - 1)
        hits = order[at[starts[order][at] == found]]
        seen[hits] += 1
    signals = []
    for passage, places in zip(kept, seen.tolist(), strict=True):
        share = passage.candidate.documents / max(places, passage.candidate.documents)
        if share >= 0.8:
            first, rest = passage.words[:TRIGGER_WORDS], passage.words[TRIGGER_WORDS:]
            examples = tuple(document for document, _ in passage.candidate.places)
            signals.append(
                Signal(" ".join(first), " ".join(rest), passage.candidate.documents, round(share, 3), len(passage.candidate.before), examples)
            )
    return signals


def _trigger_key(passage: _Passage) -> int:
    hashes = split_words(passage.text).hashes
    found = runs(hashes, TRIGGER_WORDS)
    return int(found[0]) if len(found) else 0
