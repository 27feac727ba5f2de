"""What the fake generator's workers predict: a pure function of what is drawn for, and of what was asked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bedplate.core.errors import ConfigError
from bedplate.core.prediction import Extraction, Found, Label, Number, Prediction, Ranking, Vector

if TYPE_CHECKING:
    from bedplate.core.generation import Ask, WorkerCard
    from bedplate.testing.fake_words import Draw

LABELS = ("harmless", "suspicious", "malicious")
WIDTH = 16
"""Of its vectors."""
PREDICTING = ("classify", "regress", "embed", "rank", "extract")
"""Tasks whose workers predict."""


def check(card: WorkerCard, ask: Ask) -> None:
    """Refuse a question that a worker does not answer.

    Raises:
        ConfigError: it does something else.
    """
    if ask.want == "text" and card.task != "generate":
        raise ConfigError(f"{card.name} does not generate", f"its task is {card.task}")
    if ask.want == "prediction" and card.task not in PREDICTING:
        raise ConfigError(f"{card.name or 'the base'} generates, and predicts nothing", f"ask a worker whose task is one of {', '.join(PREDICTING)}")
    if ask.want == "vector" and card.task not in ("generate", "embed"):
        raise ConfigError(f"{card.name} gives no vectors", "ask the base, or a worker whose task is embed")
    if ask.want == "prediction" and card.task == "rank" and len(ask.turns) < 2:
        raise ConfigError("a worker that ranks reads a query and texts", "give the query as the first turn, and each text as one more")


def predicted(task: str, ask: Ask, text: str, draw: Draw) -> Prediction:
    """What a worker says.

    Args:
        task: of the worker.
        ask: the question.
        text: what is looked at.
        draw: of the question.
    """
    if ask.want == "vector" or task == "embed":
        values = [draw.below(2001) / 1000 - 1 for _ in range(WIDTH)]
        norm = math.sqrt(sum(value * value for value in values)) or 1.0
        return Vector(tuple(value / norm for value in values))
    if task == "classify":
        weights = [1 + draw.below(100) for _ in LABELS]
        shares: Mapping[str, float] = dict(sorted(zip(LABELS, (weight / sum(weights) for weight in weights)), key=lambda pair: -pair[1]))
        likeliest = next(iter(shares))
        return Label(likeliest, (likeliest,), shares[likeliest], shares)
    if task == "regress":
        value = draw.below(1000) / 10
        return Number(value, value - 5, value + 5)
    if task == "rank":
        scores = [draw.below(1000) / 1000 for _ in ask.turns[1:]]
        return Ranking(tuple(sorted(range(len(scores)), key=lambda n: -scores[n])), tuple(scores))
    words = list(re.finditer(r"\w+", text))
    chosen = words[draw.below(len(words)) :][:1] if words else []
    return Extraction(tuple(Found(one.start(), one.end(), LABELS[draw.below(len(LABELS))], one[0], 0.5 + draw.below(50) / 100) for one in chosen))
