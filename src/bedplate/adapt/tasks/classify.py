"""Classify: one label of several, or any number of them, with honest probabilities and the right to abstain.

The head starts as the best linear probe on the frozen base, so training begins from what the features already know. Where `classify.words` is set,
scores from the spelling of the text are added: in training those that a text gets from the other folds, as scores of its own would leave the
network nothing to learn.
Source of the start: Kumar et al., Fine-Tuning can Distort Pretrained Features (2022): probe first, then tune.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bedplate.adapt.calibrate import abstention_threshold, best_threshold, expected_calibration_error, fit_temperature, log_probabilities, macro_f1, micro_f1
from bedplate.adapt.encode import Item, compose, said
from bedplate.adapt.examples import Row, each
from bedplate.adapt.methods import Score
from bedplate.adapt.probe import Loss, fit_linear, unseen_scores
from bedplate.adapt.tasks.base import Judged, Task, linear_head
from bedplate.adapt.weigh import folds, weigh
from bedplate.adapt.words import WordScores, fit_words
from bedplate.core.errors import DataError
from bedplate.core.prediction import Label
from bedplate.data.document import Segment
from bedplate.modality.sequence import Sequence as Positions
from bedplate.model.foundation import attention_mask

WORDS = "words.safetensors"


@dataclass(frozen=True)
class LabelItem(Item):
    """A thing to label."""

    text: str
    """What it says, where the spelling counts."""
    group: str
    """What it is from; "" where nothing says so."""


class Classify(Task):
    """Labels for things of any sense."""

    name = "classify"
    wants = "label (or labels, a list), and text, image, audio, video or series"

    names: tuple[str, ...] = ()
    """The labels, in the order of the head's outputs."""
    reads = "mean"
    """What the head reads, as `classify.reads` says."""
    several = False
    """Whether labels do not exclude each other."""
    temperature = 1.0
    words: WordScores | None = None
    """Scores from the spelling of texts, where they count."""
    threshold = 0.0
    """Confidence below which it abstains; with several labels, probability from which on one is given."""

    def survey(self, rows: Sequence[Row]) -> None:
        self.several, self.reads = any("labels" in row.values for row in rows), self.settings.classify.reads
        counts = Counter(name for named in each(rows, self._named) for name in named)
        self.census = dict(counts.most_common())
        self.names = tuple(sorted(counts))
        if len(self.names) < (1 if self.several else 2):
            raise DataError(f"all examples have the label {self.names[0]!r}", "give examples of two labels or more")
        self.threshold = 0.5 if self.several else 0.0
        if self.settings.classify.words and not any("text" in row.values for row in rows):
            raise DataError("classify.words is set, but there is no 'text'", "data.columns names the column that holds it; or leave classify.words out")
        balanced = self.settings.classify.weights == "balanced"
        self._weights = {name: sum(counts.values()) / (len(counts) * counts[name]) if balanced else 1.0 for name in self.names}

    def encode(self, row: Row, learn: bool = True) -> Item:
        positions = self.fit(self._positions(row))
        target = np.zeros(len(self.names), np.float32)
        weight = 1.0
        if learn:
            named = self._named(row)
            if unknown := [name for name in named if name not in self.names]:
                raise row.error(f"the label {unknown[0]!r} was not there to learn", f"known: {', '.join(self.names[:20])}")
            target[[self.names.index(name) for name in named]] = 1
            weight = float(np.mean([self._weights[name] for name in named])) if named else 1.0
            weight *= self._weight_of(row)
        text = str(row.values.get("text", ""))
        return LabelItem(row.number, (positions,), target, weight, text, str(row.values.get(self.settings.data.group, "")))

    def _positions(self, row: Row) -> Positions:
        if self.reads == "mean":
            return self.base.look(row.inputs(self.model.config.senses))
        return self._alone(row.text("text"))

    def _alone(self, text: str) -> Positions:
        ids = self.base.encoder.whole.encode(text).ids  # as `transformers` would: with the marks that the tokenizer sets, and no others
        if not ids:
            raise DataError("the text is empty", "give one that holds a word")
        return compose([said(ids, False)], self.model.config)

    def look(self, segments: Sequence[Segment]) -> Positions:
        if self.reads == "mean":
            return super().look(segments)
        if other := next((one.sense for one in segments if not isinstance(one.value, str)), None):
            raise DataError(f"there is {other}, but the worker reads texts", "give a text alone")
        return self.fit(self._alone("".join(one.value for one in segments if isinstance(one.value, str))))

    @property
    def layers(self) -> int:
        """0, the states after the last norm, where it reads the last token."""
        return super().layers if self.reads == "mean" else 0

    def regard(self, positions: Positions, states: Float[Tensor, "t d"]) -> Float[Tensor, "n d"]:
        return super().regard(positions, states) if self.reads == "mean" else states[-1:]

    def pooled(self, sequences: Sequence[Positions]) -> Float[Tensor, "b d"]:
        if self.reads == "mean":
            return super().pooled(sequences)
        batch = self.batch(sequences)
        held = batch.sense >= 0
        last = held & (held.cumsum(1) == held.sum(1, keepdim=True))
        states: Tensor = self.model.run_trunk(self.model.embed(batch), attention_mask(batch), wanted=last)
        return states

    def _weight_of(self, row: Row) -> float:
        column = self.settings.classify.weight_column
        if not column or column not in row.values:
            return 1.0
        if (weight := row.number_of(column)) <= 0:
            raise row.error(f"{column!r} = {weight:g} counts for nothing", "give a number above 0, or leave the row out")
        return weight

    def _named(self, row: Row) -> list[str]:
        if self.several:
            return sorted({str(name).strip() for name in row.list_of("labels")} - {""})
        if "label" not in row.values:
            raise row.missing("label")
        value = row.values["label"]
        if not isinstance(value, (str, int, float, bool)):
            raise row.error("'label' is no word or number")
        if not (name := str(value).strip()):  # blanks around a label are a slip of the hand, never another label
            raise row.error("'label' is blank", "fill it in, or take the row out")
        return [name]

    @property
    def _loss(self) -> Loss:
        return "sigmoid" if self.several else "softmax"

    def start(self, items: Sequence[Item], held_out: Sequence[Item] = ()) -> None:
        targets, weights = np.stack([item.target for item in items]), np.array([item.weight for item in items])
        seed, features = self.settings.train.seed, self.features([item.sequences[0] for item in items])
        probe = fit_linear(features, targets, self._loss, seed, weights)
        weight, bias = probe.plain()
        if self.settings.classify.words:
            fold = folds([item.group for item in items if isinstance(item, LabelItem)], seed)
            words, unseen = fit_words(_texts(items), targets, self._loss, fold, weights)
            scales = weigh([unseen_scores(features, targets, self._loss, fold, probe.penalty, weights), unseen], targets, self._loss, weights)
            weight, bias, self.words = scales[0] * weight, scales[0] * bias, words.times(scales[1])
            self._unseen = {item.row: scores for item, scores in zip(items, np.float32(scales[1]) * unseen)}
        if self.reads == "last":
            constant = np.linalg.lstsq(features, np.ones(len(features), np.float32), rcond=1e-3)[0]  # a direction that reads as nearly 1 everywhere
            self.head = self._score(weight + bias[:, None] * constant)
        else:
            self.head = linear_head(weight, bias, self.model.head.device)

    def logits(self, items: Sequence[Item]) -> Float[Tensor, "b c"]:
        """Scores of every label, differentiable."""
        pooled = self.pooled([item.sequences[0] for item in items])
        if self.words is None or not self.model.training:
            return self.scores(pooled, _texts(items))
        return self._read(pooled) + torch.from_numpy(np.stack([self._unseen[item.row] for item in items])).to(pooled.device)

    def scores(self, pooled: Float[Tensor, "b d"], texts: Sequence[str]) -> Float[Tensor, "b c"]:
        """Scores of every label, of pooled features and, where spelling counts, texts."""
        scores = self._read(pooled)
        return scores if self.words is None else scores + torch.from_numpy(self.words.scores(texts)).to(scores.device)

    def _read(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        assert self.head is not None
        scores: Tensor = self.head(pooled.float())
        return scores

    def loss_sum(self, items: Sequence[Item]) -> Tensor:
        scores = self.logits(items)
        targets = torch.from_numpy(np.stack([item.target for item in items])).to(scores.device)
        weights = torch.tensor([item.weight for item in items], device=scores.device)
        return (weights * _losses(scores, targets, self.several)).sum()

    @torch.no_grad()
    def all_logits(self, items: Sequence[Item]) -> Float[np.ndarray, "n c"]:
        """Scores of items, in their order."""
        made = np.zeros((len(items), len(self.names)), np.float32)
        for part in self.in_portions(items, "held-out examples"):
            made[part] = self.logits([items[i] for i in part]).float().cpu().numpy()
        return made

    def judge(self, items: Sequence[Item]) -> Judged:
        logits, targets = self.all_logits(items), np.stack([item.target for item in items])
        weights = np.array([item.weight for item in items])
        losses = _losses(torch.from_numpy(logits), torch.from_numpy(targets), self.several).numpy()
        given = logits >= 0 if self.several else logits >= logits.max(1, keepdims=True)
        scores = {"micro_f1" if self.several else "accuracy": micro_f1(given, targets > 0), "macro_f1": macro_f1(given, targets > 0)}
        return Judged(float((losses * weights).sum() / weights.sum()), scores)

    def calibrate(self, items: Sequence[Item]) -> Mapping[str, float]:
        logits, targets = self.all_logits(items), np.stack([item.target for item in items])
        self.temperature = fit_temperature(logits, targets, self.several)
        raw, honest = (np.exp(log_probabilities(logits / t, self.several)[0]) for t in (1.0, self.temperature))
        if self.several:
            self.threshold = best_threshold(honest, targets)
            given = honest >= self.threshold
            return {"micro_f1": micro_f1(given, targets > 0), "macro_f1": macro_f1(given, targets > 0)}
        right = targets[np.arange(len(items)), logits.argmax(1)] > 0
        self.threshold = abstention_threshold(honest.max(1), right, self.settings.classify.accuracy)
        answered = honest.max(1) >= self.threshold
        return {
            "calibration_error_before": expected_calibration_error(raw.max(1), right),
            "calibration_error": expected_calibration_error(honest.max(1), right),
            "answered": float(answered.mean()),
            "accuracy_of_answered": float(right[answered].mean()) if answered.any() else 1.0,
        }

    def target_of(self, item: Item) -> str:
        return ", ".join(name for name, holds in zip(self.names, item.target) if holds) or "no label"

    def item(self, positions: Positions, text: str) -> Item:
        return LabelItem(0, (positions,), np.zeros(0, np.float32), 1.0, text, "")

    @torch.no_grad()
    def predict(self, item: Item, regarded: Float[Tensor, "n d"]) -> Label:
        return self.labels(self.scores(regarded, _texts([item])).float().cpu().numpy())[0]

    def labels(self, logits: Float[np.ndarray, "n c"]) -> list[Label]:
        """Scores in words, with calibrated probabilities."""
        probabilities = np.exp(log_probabilities(logits / self.temperature, self.several)[0])
        answers = []
        for row in probabilities:
            ordered = {self.names[i]: float(row[i]) for i in np.argsort(-row, kind="stable")}
            likeliest, highest = next(iter(ordered.items()))
            given = tuple(name for name, p in ordered.items() if p >= self.threshold) if self.several else (likeliest,) * (highest >= self.threshold)
            answers.append(Label(given[0] if given else None, given, highest, ordered))
        return answers

    def facts(self) -> dict[str, Any]:
        learned = {"labels": list(self.names), "several": self.several, "temperature": self.temperature, "threshold": self.threshold}
        return learned | {"words": self.words is not None, "reads": self.reads}

    def keep(self, folder: Path) -> None:
        if self.words is not None:
            self.words.save(folder / WORDS)

    def recall(self, folder: Path) -> None:
        if self._worded:
            self.words = WordScores.load(folder / WORDS, len(self.names))

    def restore(self, facts: Mapping[str, Any]) -> Self:
        self.names, self.several = tuple(facts["labels"]), bool(facts["several"])
        self._worded = facts.get("words") is True  # adapters from before had none
        self.reads = str(facts.get("reads", "mean"))
        self.temperature, self.threshold = float(facts["temperature"]), float(facts["threshold"])
        width, count = self.model.config.hidden_size, len(self.names)
        self.head = self._score(np.zeros((count, width), np.float32)) if self.reads == "last" else nn.Linear(width, count).to(self.model.head.device)
        return self

    def _score(self, weight: Float[np.ndarray, "c d"]) -> Score:
        head = Score(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
        return head.to(self.model.head.device)


def _texts(items: Sequence[Item]) -> list[str]:
    return [item.text for item in items if isinstance(item, LabelItem)]


def _losses(scores: Tensor, targets: Tensor, several: bool) -> Tensor:
    if several:
        return F.binary_cross_entropy_with_logits(scores, targets, reduction="none").mean(1)
    return F.cross_entropy(scores, targets, reduction="none")
