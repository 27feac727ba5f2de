"""Kinds of tasks: what is done with an example, which values come of it, and which scores are made of those.

A task is a kind and its examples. `prepare` cuts the examples into portions; `judge` gives every example of a portion its values, plain
numbers and words that go into a JSONL file; a Measure says how values become a score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

from bedplate.core.errors import DataError
from bedplate.evaluate.scoring import Row, Scored, bits
from bedplate.evaluate.settings import EvaluateSettings
from bedplate.evaluate.stats import How
from bedplate.evaluate.subject import Subject

Values = Mapping[str, Any]
ANSWERED_AT_ONCE = 32
"""Examples that are answered before their values are written down."""


@dataclass(frozen=True)
class Example:
    """One example of any kind; what a kind does not use stays empty."""

    id: str
    prompt: str = ""
    choices: tuple[str, ...] = ()
    answer: Any = None
    """The index of the right choice, the text that is wanted, or what else the kind compares with."""
    cells: Mapping[str, Any] = field(default_factory=dict)
    """What a worker looks at, or what the kind needs besides."""

    shown: str = ""
    """What of the prompt stands before it in every example, such as solved examples."""

    @property
    def own_text(self) -> str:
        """Its words with the right answer, for a search in a training corpus."""
        right = self.choices[self.answer] if self.choices and isinstance(self.answer, int) else self.answer
        own = " ".join(filter(None, [self.prompt.removeprefix(self.shown), right if isinstance(right, str) else ""]))
        return own or " ".join(value for value in self.cells.values() if isinstance(value, str))


class Measure(NamedTuple):
    """A score's recipe."""

    name: str
    how: How
    columns: tuple[str, ...]
    """Names of the values that the statistic takes, in its order."""
    better: Literal["higher", "lower"] = "higher"
    percent: bool = True
    """Whether it is shown in points of a hundred."""


class Job(NamedTuple):
    """Examples cut into portions, ready to be judged."""

    portions: Sequence[Sequence[int]]
    judge: Callable[[Sequence[int]], list[Values]]
    """Indices of a portion -> values of each."""


@dataclass(frozen=True)
class Kind(ABC):
    """What is done with examples."""

    measures: ClassVar[tuple[Measure, ...]]

    def resolved(self, settings: EvaluateSettings) -> Self:
        """This kind as the settings want it."""
        return self

    @abstractmethod
    def prepare(self, subject: Subject, examples: Sequence[Example]) -> Job:
        """Everything that is done once for all examples.

        Raises:
            DataError: an example is not of this kind.
        """


@dataclass(frozen=True)
class Likelihood(Kind):
    """Kinds that score rows of tokens."""

    def prepare(self, subject: Subject, examples: Sequence[Example]) -> Job:
        scorer = subject.scorer
        families = [self.rows(subject, example) for example in examples]
        shared = scorer.shares(families)

        def judge(part: Sequence[int]) -> list[Values]:
            scored = scorer.score_portion([families[i] for i in part], shared)
            return [self.values(examples[i], found) for i, found in zip(part, scored)]

        return Job(scorer.portions(families), judge)

    @abstractmethod
    def rows(self, subject: Subject, example: Example) -> list[Row]:
        """What is scored of an example."""

    @abstractmethod
    def values(self, example: Example, scored: Sequence[Scored]) -> Values:
        """What its scores say."""


@dataclass(frozen=True)
class Bits(Likelihood):
    """How many bits a byte of text costs: comparable across tokenizers."""

    measures: ClassVar = (Measure("bits_per_byte", "ratio", ("bits", "bytes"), "lower", percent=False),)

    def rows(self, subject: Subject, example: Example) -> list[Row]:
        return subject.scorer.windows(example.prompt)

    def values(self, example: Example, scored: Sequence[Scored]) -> Values:
        return {"bits": bits(-sum(one.log_probability for one in scored)), "bytes": len(example.prompt.encode())}


@dataclass(frozen=True)
class Choose(Likelihood):
    """Several continuations, of which one is right: the likeliest, whole or for each of its characters."""

    measures: ClassVar = (
        Measure("accuracy", "share", ("right",)),
        Measure("accuracy_normalised", "share", ("right_normalised",)),
    )

    def rows(self, subject: Subject, example: Example) -> list[Row]:
        if len(example.choices) < 2 or not isinstance(example.answer, int) or not 0 <= example.answer < len(example.choices):
            raise DataError(f"example {example.id}: of {len(example.choices)} choices, number {example.answer} is right", "give two or more, counted from 0")
        return [subject.scorer.row(example.prompt, f" {choice}") for choice in example.choices]

    def values(self, example: Example, scored: Sequence[Scored]) -> Values:
        whole = np.array([one.log_probability for one in scored])
        each = whole / np.array([len(choice) for choice in example.choices])
        return {
            "right": bool(whole.argmax() == example.answer),
            "right_normalised": bool(each.argmax() == example.answer),
            "said": int(whole.argmax()),
            "log_probabilities": whole.tolist(),
        }


@dataclass(frozen=True)
class Continue(Likelihood):
    """One continuation: whether the model would have said it, and how much it is surprised."""

    measures: ClassVar = (
        Measure("accuracy", "share", ("right",)),
        Measure("perplexity", "perplexity", ("nats",), "lower", percent=False),
    )

    def rows(self, subject: Subject, example: Example) -> list[Row]:
        return [subject.scorer.row(example.prompt, example.answer)]

    def values(self, example: Example, scored: Sequence[Scored]) -> Values:
        return {"right": scored[0].likeliest, "nats": -scored[0].log_probability}


def in_order(count: int, at_once: int = ANSWERED_AT_ONCE) -> list[Sequence[int]]:
    """Portions of examples as they come."""
    return [range(start, min(start + at_once, count)) for start in range(0, count, at_once)]
