"""Kinds for workers and vectors: labels, and what is found first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from bedplate.core.errors import DataError
from bedplate.evaluate.kinds import Example, Job, Kind, Measure, Values, in_order
from bedplate.evaluate.subject import Subject

FOUND = 10
"""Documents at the top that count."""


@dataclass(frozen=True)
class Label(Kind):
    """One label of several, from a worker that classifies. The likeliest label counts even where the worker abstains."""

    measures: ClassVar = (
        Measure("accuracy", "share", ("right",)),
        Measure("macro_f1", "macro_f1", ("label", "said")),
        Measure("calibration_error", "calibration", ("confidence", "right"), "lower"),
        Measure("answered", "share", ("answered",)),
    )

    def prepare(self, subject: Subject, examples: Sequence[Example]) -> Job:
        def judge(part: Sequence[int]) -> list[Values]:
            said = subject.labels([dict(examples[i].cells) for i in part])
            return [self.values(examples[i], one) for i, one in zip(part, said)]

        return Job(in_order(len(examples), 256), judge)

    def values(self, example: Example, found: Any) -> Values:
        """What a worker's Label says of an example."""
        label, said = str(example.answer), next(iter(found.probabilities))
        return {"label": label, "said": said, "right": label == said, "confidence": found.probabilities[said], "answered": found.label is not None}


@dataclass(frozen=True)
class Retrieve(Kind):
    """Queries and documents as vectors: which documents lie nearest, and whether they are the relevant ones.

    An example's `cells` hold `documents` (id -> text, the same for all) and `relevant` (id -> grade above 0).
    """

    measures: ClassVar = tuple(Measure(name, "mean", (name,)) for name in ("recall_at_1", f"recall_at_{FOUND}", f"ndcg_at_{FOUND}"))

    def prepare(self, subject: Subject, examples: Sequence[Example]) -> Job:
        documents: Mapping[str, str] = examples[0].cells["documents"]
        names = list(documents)
        for example in examples:
            relevant = example.cells["relevant"]
            if not relevant or set(relevant) - documents.keys() or min(relevant.values()) <= 0:
                raise DataError(f"example {example.id} names no document, or one that is not there", "relevant: ids of documents, or id -> grade above 0")
        held: list[np.ndarray] = []

        def judge(part: Sequence[int]) -> list[Values]:
            if not held:
                held.append(subject.vectors(list(documents.values())))
            near = subject.vectors([examples[i].prompt for i in part]) @ held[0].T
            return [ranked(row, names, examples[i].cells["relevant"]) for i, row in zip(part, near)]

        return Job(in_order(len(examples), 256), judge)


def ranked(near: Float[np.ndarray, "n"], names: Sequence[str], relevant: Mapping[str, float]) -> Values:
    """Recall and nDCG of one query.

    Args:
        near: how near each document is; equals keep their order.
        names: of the documents.
        relevant: id -> grade.
    """
    top = [names[i] for i in np.argsort(-near, kind="stable")[:FOUND]]
    discount = 1 / np.log2(np.arange(2, FOUND + 2))
    gain = np.array([relevant.get(name, 0) for name in top], float)
    best = np.array(sorted(relevant.values(), reverse=True)[:FOUND], float)
    recall = {f"recall_at_{k}": len(relevant.keys() & set(top[:k])) / min(k, len(relevant)) for k in (1, FOUND)}
    return {**recall, f"ndcg_at_{FOUND}": float((gain * discount[: len(gain)]).sum() / (best * discount[: len(best)]).sum()), "found": top}
