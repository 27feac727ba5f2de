"""Extract: stretches of a text with their labels, exact to the character.

Every word says whether a stretch begins at it, goes on, or neither. Words are encoded one by one, so that no token crosses a word's border.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bedplate.adapt.calibrate import fit_temperature, log_probabilities, one_hot
from bedplate.adapt.encode import Item, Tokens, compose
from bedplate.adapt.examples import Row, each
from bedplate.adapt.probe import fit_linear
from bedplate.adapt.tasks.base import Judged, Task, linear_head, portions
from bedplate.core.errors import DataError
from bedplate.core.prediction import Extraction, Found
from bedplate.modality.sequence import Sequence as Positions

WORD = re.compile(r"\w+|[^\w\s]")
OFFSETS = "offsets count characters of 'text' from 0; the end is the one behind the last"
MOST_WORDS = 20_000
"""The head starts from so many words at most; more hardly change a linear map."""


class Span(NamedTuple):
    """A stretch of a text."""

    start: int
    """Its first character, counted from 0."""
    end: int
    """The character behind its last."""
    label: str


@dataclass(frozen=True)
class TextItem(Item):
    """A text cut into words; `target` is each word's tag, and the last token of each word is marked."""

    text: str
    words: tuple[tuple[int, int], ...]
    """(first character, the one behind the last) of each word."""
    spans: frozenset[Span]
    """As the example gives them; they may begin or end within a word."""


class Extract(Task):
    """Labelled stretches of texts."""

    name = "extract"
    wants = 'text, and spans (a list of {"start": 0, "end": 5, "label": "name"}; empty where there is none)'

    names: tuple[str, ...] = ()
    """The labels; tag 0 is none, 1 + 2k begins label k and 2 + 2k goes on with it."""
    both_ways = False
    """Whether words also see what follows them."""
    temperature = 1.0

    def survey(self, rows: Sequence[Row]) -> None:
        counts = Counter(span.label for spans in each(rows, _spans) for span in spans)
        self.names, self.census = tuple(sorted(counts)), dict(counts.most_common())
        if not self.names:
            raise DataError("no example holds a span", 'give spans such as {"start": 0, "end": 5, "label": "name"}')
        asked = self.settings.extract.sees
        self.both_ways = asked == "both" or (asked == "auto" and self.settings.method.name != "probe")

    def encode(self, row: Row, learn: bool = True) -> TextItem:
        cut = self.cut(row.text("text"))
        if not cut.words:
            raise row.error("the text holds no word")
        if not learn:
            return replace(cut, row=row.number)
        spans = _spans(row)
        return replace(cut, row=row.number, target=np.array(self._tags(row, cut.words, spans), np.float32), spans=frozenset(spans))

    def cut(self, text: str) -> TextItem:
        """A text as words, without a target."""
        words = tuple(match.span() for match in WORD.finditer(text))
        parts = [self._piece(text[before:end]) for before, end in pairwise([0, *(end for _, end in words)])]
        return TextItem(0, tuple(self._windows(parts)), np.zeros(len(words), np.float32), float(len(words)), text, words, frozenset())

    def _piece(self, text: str) -> Tokens:
        """A word with the space before it; its last token says what it is."""
        ids = self.base.words(text).ids[-(self.most_positions - 2) :]
        return Tokens(ids, np.arange(len(ids)) == len(ids) - 1)

    def _windows(self, parts: Sequence[Tokens]) -> Iterator[Positions]:
        """The whole text as sequences that the base can hold, cut between words."""
        room, window, used = self.most_positions - 2, list[Tokens](), 0
        for part in parts:
            if used + len(part.ids) > room:
                yield self._window(window)
                window, used = [], 0
            window.append(part)
            used += len(part.ids)
        yield self._window(window)

    def _window(self, parts: Sequence[Tokens]) -> Positions:
        whole = compose([self.base.ends, *parts, self.base.ends], self.model.config)
        if self.both_ways:
            whole.block[1:-1] = 1
        return whole

    def _tags(self, row: Row, words: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[int]:
        tags = [0] * len(words)
        for span in spans:
            if span.label not in self.names:
                raise row.error(f"the label {span.label!r} was not there to learn", f"known: {', '.join(self.names[:20])}")
            inside = [i for i, (start, end) in enumerate(words) if start < span.end and end > span.start]
            if not inside:
                raise row.error(f"the span {span.start} .. {span.end} holds no word", OFFSETS)
            if any(tags[i] for i in inside):
                raise row.error(f"the span {span.start} .. {span.end} shares a word with another", "leave one of the two out")
            begin = 1 + 2 * self.names.index(span.label)
            for i in inside:
                tags[i] = begin if i == inside[0] else begin + 1
        return tags

    def target_of(self, item: Item) -> str:
        marked = cast(TextItem, item)
        spans = sorted(marked.spans)
        return "; ".join(f"{span.label}: {marked.text[span.start : span.end]}" for span in spans) or "no span"

    # Words' states and tags.

    def states(self, items: Sequence[Item]) -> Float[Tensor, "w d"]:
        """A vector of every word of every item, in their order: the upper half's streams at its last token. Differentiable."""
        batch = self.batch([one for item in items for one in item.sequences])
        return self.model.hidden(batch, self.layers)[batch.token_loss]

    def logits(self, items: Sequence[Item]) -> Float[Tensor, "w c"]:
        """Scores of every word's tags, differentiable."""
        assert self.head is not None
        scores: Tensor = self.head(self.states(items).float())
        return scores

    def start(self, items: Sequence[Item], held_out: Sequence[Item] = ()) -> None:
        some: list[Item] = []
        for item in items:
            some.append(item)
            if sum(len(one.target) for one in some) >= MOST_WORDS:
                break
        parts = list(portions(some))
        with torch.no_grad():
            states = np.concatenate([self.states([some[i] for i in part]).float().cpu().numpy() for part in parts])
        tags = _targets([some[i] for part in parts for i in part])
        probe = fit_linear(states, one_hot(tags, self.tags), "softmax", self.settings.train.seed)
        self.head = linear_head(*probe.plain(), self.model.head.device)

    @property
    def tags(self) -> int:
        """How many a word can have."""
        return 1 + 2 * len(self.names)

    def loss_sum(self, items: Sequence[Item]) -> Tensor:
        scores = self.logits(items)
        return nn.functional.cross_entropy(scores, torch.from_numpy(_targets(items)).to(scores.device), reduction="sum")

    @torch.no_grad()
    def all_logits(self, items: Sequence[Item]) -> list[Float[np.ndarray, "w c"]]:
        """Scores of each item's words."""
        made = [np.zeros((0, self.tags), np.float32)] * len(items)
        for part in self.in_portions(items, "held-out examples"):
            found = self.logits([items[i] for i in part]).float().cpu()
            for i, one in zip(part, torch.split(found, [len(items[i].target) for i in part])):
                made[i] = one.numpy()
        return made

    def judge(self, items: Sequence[Item]) -> Judged:
        logits = self.all_logits(items)
        log_p = log_probabilities(np.concatenate(logits), several=False)[0]
        tags = _targets(items)
        found = [{Span(*span[:3]) for span in self.read(cast(TextItem, item), one)} for item, one in zip(items, logits)]
        true = [cast(TextItem, item).spans for item in items]
        right, given, wanted = (sum(map(len, sets)) for sets in ([a & b for a, b in zip(found, true)], found, true))
        scores = {"f1": 2 * right / max(1, given + wanted), "precision": right / max(1, given), "recall": right / max(1, wanted)}
        return Judged(-float(log_p[np.arange(len(tags)), tags].mean()), scores)

    def calibrate(self, items: Sequence[Item]) -> Mapping[str, float]:
        self.temperature = fit_temperature(np.concatenate(self.all_logits(items)), one_hot(_targets(items), self.tags), several=False)
        return {}

    def read(self, item: TextItem, logits: Float[np.ndarray, "w c"]) -> tuple[Found, ...]:
        """The stretches that the words' likeliest tags make; one that goes on without a beginning begins."""
        probabilities = np.exp(log_probabilities(logits / self.temperature, several=False)[0])
        open_: list[int] = []
        found: list[Found] = []

        def close() -> None:
            if open_:
                start, end = item.words[open_[0]][0], item.words[open_[-1]][1]
                label = self.names[(int(tags[open_[0]]) - 1) // 2]
                found.append(Found(start, end, label, item.text[start:end], float(probabilities[open_].max(1).min())))
                open_.clear()

        tags = logits.argmax(1)
        for i, tag in enumerate(tags):
            goes_on = tag > 0 and tag % 2 == 0 and open_ and (tag - 1) // 2 == (tags[open_[0]] - 1) // 2
            if not goes_on:
                close()
            if tag:
                open_.append(i)
        close()
        return tuple(found)

    def regard(self, positions: Positions, states: Float[Tensor, "t d"]) -> Float[Tensor, "n d"]:
        """Each word's state."""
        return states[torch.from_numpy(positions.token_loss).to(states.device)]

    @torch.no_grad()
    def predict(self, item: Item, regarded: Float[Tensor, "n d"]) -> Extraction:
        """What it finds in a text."""
        assert self.head is not None
        return Extraction(self.read(cast(TextItem, item), self.head(regarded.float()).float().cpu().numpy()))

    def facts(self) -> dict[str, Any]:
        return {"labels": list(self.names), "both_ways": self.both_ways, "temperature": self.temperature}

    def restore(self, facts: Mapping[str, Any]) -> Self:
        self.names, self.both_ways, self.temperature = tuple(facts["labels"]), bool(facts["both_ways"]), float(facts["temperature"])
        self.head = nn.Linear(self.model.config.hidden_size, self.tags).to(self.model.head.device)
        return self


def _targets(items: Sequence[Item]) -> Int[np.ndarray, "w"]:
    """Tags of all words, in their order."""
    return np.concatenate([item.target for item in items]).astype(np.int64)


def _spans(row: Row) -> list[Span]:
    """The row's spans, checked against its text."""
    length, spans = len(row.text("text")), []
    for one in row.list_of("spans"):
        told = one if isinstance(one, Mapping) else {}
        start, end, label = told.get("start"), told.get("end"), told.get("label")
        if not (isinstance(start, int) and isinstance(end, int) and isinstance(label, str)):
            raise row.error(f"{str(one)[:80]} is no span", 'write {"start": 0, "end": 5, "label": "name"}')
        if not 0 <= start < end <= length:
            raise row.error(f"the span {start} .. {end} is not within the text of {length} characters", OFFSETS)
        spans.append(Span(start, end, label.strip()))
    return spans
