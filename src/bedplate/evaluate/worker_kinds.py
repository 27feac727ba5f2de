"""Kinds for the other jobs of workers: several labels at once, numbers, texts in order, stretches of a text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bedplate.adapt.tasks import Task
from bedplate.adapt.tasks.classify import Classify
from bedplate.adapt.tasks.extract import Extract
from bedplate.adapt.tasks.rank import Rank
from bedplate.adapt.tasks.regress import Regress
from bedplate.core.errors import ConfigError, DataError
from bedplate.evaluate.kinds import Example, Job, Kind, Measure, Values, in_order
from bedplate.evaluate.subject import Subject
from bedplate.evaluate.working import FOUND, ranked


@dataclass(frozen=True)
class Worked(Kind):
    """What these kinds share: a worker of one task says something of each example's cells."""

    task: ClassVar[type[Task]]

    def prepare(self, subject: Subject, examples: Sequence[Example]) -> Job:
        for example in examples:
            self.check(example)

        def judge(part: Sequence[int]) -> list[Values]:
            said = subject.says(self.task, [dict(examples[i].cells) for i in part])
            return [self.values(examples[i], one) for i, one in zip(part, said)]

        return Job(in_order(len(examples), 256), judge)

    @abstractmethod
    def check(self, example: Example) -> None:
        """Refuse an example that says nothing to compare with.

        Raises:
            DataError: what is wrong with it.
        """

    @abstractmethod
    def values(self, example: Example, said: Any) -> Values:
        """What the worker's answer is worth."""


@dataclass(frozen=True)
class Labels(Worked):
    """Any number of labels for one thing. An example's answer is the list of those that hold."""

    task: ClassVar = Classify
    measures: ClassVar = (
        Measure("micro_f1", "f1", ("both", "given", "wanted")),
        Measure("macro_f1", "macro_f1_several", ("labels", "said")),
        Measure("exact_match", "share", ("right",)),
        Measure("calibration_error", "calibration_several", ("probabilities", "holds"), "lower"),
    )

    def prepare(self, subject: Subject, examples: Sequence[Example]) -> Job:
        if isinstance(subject.task, Classify) and not subject.task.several:
            raise ConfigError("the worker gives one label to one thing", "give the task kind = \"label\"")
        return super().prepare(subject, examples)

    def check(self, example: Example) -> None:
        if not isinstance(example.answer, list):
            raise DataError(f"example {example.id} has no list of labels", "give the labels that hold, or an empty list")

    def values(self, example: Example, said: Any) -> Values:
        wanted, given = sorted({str(label) for label in example.answer}), sorted(said.labels)
        names = sorted(said.probabilities)
        probable = {"probabilities": [said.probabilities[name] for name in names], "holds": [int(name in wanted) for name in names]}
        return {"labels": wanted, "said": given, "right": wanted == given, **counted(wanted, given), **probable}


@dataclass(frozen=True)
class Numbers(Worked):
    """A number for a thing."""

    task: ClassVar = Regress
    measures: ClassVar = (
        Measure("mean_error", "mean", ("error",), "lower", percent=False),
        Measure("explained_share", "explained", ("value", "said")),
        Measure("rank_correlation", "rank_correlation", ("value", "said"), percent=False),
        Measure("in_range", "share", ("in_range",)),
    )

    def check(self, example: Example) -> None:
        if isinstance(example.answer, bool) or not isinstance(example.answer, (int, float)) or not np.isfinite(example.answer):
            raise DataError(f"example {example.id}: {str(example.answer)[:40]!r} is no number", "give the number that is true")

    def values(self, example: Example, said: Any) -> Values:
        true = float(example.answer)
        known = {} if said.low is None else {"in_range": said.low <= true <= said.high}
        return {"value": true, "said": said.value, "error": abs(said.value - true), **known}


@dataclass(frozen=True)
class Order(Worked):
    """Texts in the order in which they answer a query. An example's answer is the number of the right text from 0, or a grade for each, 0 for none."""

    task: ClassVar = Rank
    measures: ClassVar = (
        Measure("first_is_right", "share", ("right",)),
        Measure("reciprocal_rank", "mean", ("reciprocal_rank",)),
        Measure(f"ndcg_at_{FOUND}", "mean", (f"ndcg_at_{FOUND}",)),
    )

    def check(self, example: Example) -> None:
        texts = example.cells.get("texts")
        if not isinstance(texts, list) or not self.grades(example):
            raise DataError(f"example {example.id} names no text, or one that is not there", "give texts, and the number of the right one or a grade for each")

    def grades(self, example: Example) -> dict[str, float]:
        """Number of each relevant text -> its grade; empty where the example is none."""
        count, answer = len(example.cells["texts"]), example.answer
        if isinstance(answer, int) and not isinstance(answer, bool):
            return {str(answer): 1.0} if 0 <= answer < count else {}
        fits = isinstance(answer, list) and len(answer) == count and all(isinstance(grade, (int, float)) and grade >= 0 for grade in answer)
        return {str(number): float(grade) for number, grade in enumerate(answer) if grade > 0} if fits else {}

    def values(self, example: Example, said: Any) -> Values:
        relevant = self.grades(example)
        names = [str(number) for number in range(len(said.order))]
        found = ranked(-np.argsort(said.order).astype(float), names, relevant)
        first = next(place for place, number in enumerate(said.order, 1) if str(number) in relevant)
        best = max(relevant.values())
        right = relevant.get(str(said.order[0])) == best
        return {"right": right, "reciprocal_rank": 1 / first, f"ndcg_at_{FOUND}": found[f"ndcg_at_{FOUND}"], "said": list(said.order)}


@dataclass(frozen=True)
class Spans(Worked):
    """Labelled stretches of a text, exact to the character. An example's answer is a list of {"start", "end", "label"}."""

    task: ClassVar = Extract
    measures: ClassVar = (
        Measure("f1", "f1", ("both", "given", "wanted")),
        Measure("precision", "ratio", ("both", "given")),
        Measure("recall", "ratio", ("both", "wanted")),
        Measure("exact_match", "share", ("right",)),
    )

    def check(self, example: Example) -> None:
        answer = example.answer
        whole = isinstance(answer, list) and all(isinstance(one, Mapping) and {"start", "end", "label"} <= one.keys() for one in answer)
        if not whole or not isinstance(example.cells.get("text"), str):
            raise DataError(f"example {example.id} has no text with its spans", 'give text, and spans such as [{"start": 0, "end": 5, "label": "name"}]')

    def values(self, example: Example, said: Any) -> Values:
        wanted = {(int(one["start"]), int(one["end"]), str(one["label"])) for one in example.answer}
        given = {(one.start, one.end, one.label) for one in said.spans}
        return {"right": wanted == given, **counted(wanted, given), "said": [list(one) for one in sorted(given)]}


def counted(wanted: Collection[Any], given: Collection[Any]) -> dict[str, int]:
    """How many are wanted, given, and both."""
    return {"both": len(set(wanted) & set(given)), "given": len(given), "wanted": len(wanted)}
