"""Sentences of threat reports -> ATT&CK techniques, by five folds of whole reports: what words, the base, LoRA and ATT&CK's own text are worth.

TRAM's 4,018 sentences, GroupKFold(5) by report. Everything that is chosen (penalties, how much scorers and ATT&CK's sentences count) is chosen on
the training part of a fold alone, by reports. Macro-F1 is told twice: over all sentences together, which is the stricter, and by fold.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from bedplate.adapt.base import Base
from bedplate.adapt.calibrate import macro_f1, one_hot
from bedplate.adapt.encode import Item
from bedplate.adapt.examples import Row
from bedplate.adapt.settings import AdaptSettings, ClassifySettings, ExampleSettings
from bedplate.adapt.tasks.base import NOTHING, portions
from bedplate.adapt.tasks.classify import Classify
from bedplate.adapt.weigh import folds
from bedplate.adapt.words import PENALTIES, Spelling, fit_words
from bedplate.core.home import home
from bedplate.modality.sequence import Sequence as Positions
from bedplate.model.formats.get import get
from benchmarks.inputs import SCRATCH, shared
from benchmarks.record import ROOT, append

FOLDS = 5
COUNTS = (0.1, 0.3, 1.0)
"""What a sentence of ATT&CK may count beside one of a report."""
NEIGHBOURS = 10
"""ATT&CK's nearest sentences that vote for a technique, and techniques that are put in a new order."""


def recipe() -> ModuleType:
    """The recipe's own reader of both sources."""
    spec = importlib.util.spec_from_file_location("attack_techniques_prepare", ROOT / "recipes" / "attack-techniques" / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Remembering(Classify):
    """The product's task, which sees the frozen base's features of a text once."""

    memory: dict[bytes, np.ndarray]

    def pooled(self, sequences: Sequence[Positions]) -> torch.Tensor:
        """From memory."""
        return torch.from_numpy(np.stack([self.memory[one.tokens.tobytes()] for one in sequences]))


def remember(base: Base, texts: Sequence[str], cache: Path) -> dict[bytes, np.ndarray]:
    """Tokens of a text -> the frozen base's features of it; kept on disk."""
    task = Classify(base, AdaptSettings(data=ExampleSettings(most_positions=256)))
    seen = {one.tokens.tobytes(): one for one in (task.encode(row, learn=False).sequences[0] for row in rows_of([{"text": text} for text in texts]))}
    sequences = list(seen.values())
    if cache.exists() and len(kept := np.load(cache)) == len(sequences):
        return dict(zip(seen, kept))
    made = np.zeros((len(sequences), base.model.config.hidden_size), np.float32)
    done = 0
    with torch.inference_mode():
        for part in portions([Item(0, (one,), NOTHING, 1.0) for one in sequences]):
            made[part] = task.pooled([sequences[i] for i in part]).numpy()
            done += len(part)
            print(f"features of {done:,} of {len(sequences):,} texts", flush=True)
    np.save(cache, made)
    return dict(zip(seen, made))


def rows_of(values: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Cells as rows."""
    return [Row(number, one, Path.read_bytes) for number, one in enumerate(values, 1)]  # type: ignore[arg-type]


@dataclass
class Study:
    """All sentences, and one fold of them at a time."""

    own: list[Any]
    more: list[Any]
    base: Base
    memory: dict[bytes, np.ndarray]
    preparing: ModuleType

    def __post_init__(self) -> None:
        self.names = sorted({one.label for one in self.own})
        self.labels = np.array([self.names.index(one.label) for one in self.own])

    def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(learned from, judged) of every fold."""
        from sklearn.model_selection import GroupKFold

        reports = [one.report for one in self.own]
        return [(train, test) for train, test in GroupKFold(FOLDS).split(reports, groups=reports)]

    def learned(self, train: np.ndarray, test: np.ndarray, counts: float) -> list[Any]:
        """Sentences to learn from; of ATT&CK's those without a judged report as their source."""
        own = [self.own[i] for i in train]
        if not counts:
            return own
        usable = self.preparing.without(self.more, {self.own[i].report for i in test})
        return own + [replace(one, counts=counts) for one in usable]

    def chosen_counts(self, train: np.ndarray, test: np.ndarray) -> float:
        """What ATT&CK's sentences should count: by the training part's own reports, in halves."""
        right = {}
        for counts in COUNTS:
            learned = self.learned(train, test, counts)
            hot, weights = self.hot(learned), np.array([one.counts for one in learned])
            halves = folds([one.report for one in learned], 0) % 2
            _, unseen = fit_words([one.text for one in learned], hot, "softmax", halves, weights, PENALTIES[1:2])
            right[counts] = int((unseen.argmax(1) == hot.argmax(1))[: len(train)].sum())
        return max(right, key=lambda counts: right[counts])

    def hot(self, examples: Sequence[Any]) -> np.ndarray:
        """Their labels, 1 at each."""
        return one_hot(np.array([self.names.index(one.label) for one in examples]), len(self.names))

    def classify(self, learned: Sequence[Any], test: np.ndarray) -> dict[str, np.ndarray]:
        """Scores by the product, `bedplate adapt --task classify --method probe`: of its two parts and of both together."""
        settings = AdaptSettings(
            data=ExampleSettings(group="report", most_positions=256), classify=ClassifySettings(words=True, weight_column="counts")
        )
        task = Remembering(self.base, settings)
        task.memory = self.memory
        rows = rows_of([{"text": one.text, "label": one.label, "report": one.report, "counts": one.counts} for one in learned])
        task.survey(rows)
        task.start([task.encode(row) for row in rows])
        task.model.eval()
        texts = [self.own[i].text for i in test]
        both = task.all_logits([task.encode(row, learn=False) for row in rows_of([{"text": text} for text in texts])])
        assert task.words is not None
        spelled = task.words.scores(texts)
        parts = {"probe": both - spelled, "words": spelled, "probe_words": both}  # each part alone gives the order that it gives unscaled
        return {name: self.placed(task.names, scores) for name, scores in parts.items()}

    def words(self, learned: Sequence[Any], test: np.ndarray) -> dict[str, np.ndarray]:
        """Scores by the spelling alone, the base never asked; the same as in `classify`."""
        hot, weights = self.hot(learned), np.array([one.counts for one in learned])
        scorer, _ = fit_words([one.text for one in learned], hot, "softmax", folds([one.report for one in learned], 0), weights)
        return {"words": scorer.scores([self.own[i].text for i in test])}

    def placed(self, names: Sequence[str], scores: np.ndarray) -> np.ndarray:
        """Scores of all techniques; of one that was not there to learn, the lowest."""
        made = np.full((len(scores), len(self.names)), scores.min() - 1)
        made[:, [self.names.index(name) for name in names]] = scores
        return made

    def retrieved(self, test: np.ndarray) -> np.ndarray:
        """Votes of ATT&CK's nearest sentences, nothing learned from reports."""
        usable = self.preparing.without(self.more, {self.own[i].report for i in test})
        spelling = Spelling.of([one.text for one in usable])
        stored, asked = (spelling.rows([one.text for one in many]) for many in (usable, [self.own[i] for i in test]))
        near = stored.times(torch.from_numpy(asked.dense().T.copy())).numpy().T
        order = np.argsort(-near, 1, kind="stable")[:, :NEIGHBOURS]
        return np.stack([near[row, places] @ self.hot(usable)[places] for row, places in enumerate(order)])

    def svm(self, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        """The reference: TF-IDF of words and of their pieces, and a linear SVM."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline, make_union
        from sklearn.svm import LinearSVC

        counted = make_union(TfidfVectorizer(min_df=3), TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=3))
        fitted = make_pipeline(counted, LinearSVC()).fit([self.own[i].text for i in train], [self.own[i].label for i in train])
        return self.placed(fitted.classes_.tolist(), fitted.decision_function([self.own[i].text for i in test]))


def reranked(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The second scorer's order of the first one's best; the others behind them."""
    best = first >= np.sort(first, 1)[:, [-NEIGHBOURS]]
    return np.where(best & (first > 0), second + 1e6, second)


def approaches(study: Study, train: np.ndarray, test: np.ndarray, base: bool) -> dict[str, np.ndarray]:
    """Scores of a fold's judged sentences by every approach, or by those without the base."""
    scored_by = study.classify if base else study.words
    own, counts = study.learned(train, test, 0), study.chosen_counts(train, test)
    print(f"ATT&CK's sentences count {counts:g}", flush=True)
    made = {"tfidf_svm": study.svm(train, test), **scored_by(own, test), "retrieval": study.retrieved(test)}
    made["retrieval_rerank"] = reranked(made["retrieval"], made["probe_words" if base else "words"])
    return made | {f"{name}_attack": scores for name, scores in scored_by(study.learned(train, test, counts), test).items()}


def lora(study: Study, train: np.ndarray, test: np.ndarray, model: Path, epochs: float) -> np.ndarray:
    """Scores by LoRA on the reports' own sentences, stopped on reports of the training part."""
    import json

    from bedplate.adapt.loop import adapt
    from bedplate.adapt.settings import MethodSettings, TrainSettings
    from bedplate.core.config import Resolved
    from bedplate.core.run import Run
    from bedplate.infer.worker import Worker

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "learn.jsonl"
        file.write_text("".join(json.dumps({"text": one.text, "label": one.label, "report": one.report}) + "\n" for one in study.learned(train, test, 0)))
        data = ExampleSettings(file, held_out=0.1, group="report", most_positions=96)
        settings = AdaptSettings(model, Path(scratch) / "to", "classify", data, MethodSettings("lora"), train=TrainSettings(epochs=epochs, threads=1))
        with Run.open(Path(scratch) / "to.run", "adapt", Resolved(settings, {})) as run:
            adapt(settings, run)
        said = Worker.load(model, settings.to).predict([study.own[i].text for i in test])
        names = sorted(said[0].probabilities)
        return study.placed(names, np.log(np.array([[one.probabilities[name] for name in names] for one in said]) + 1e-12))


def scored(study: Study, name: str, judged: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> dict[str, tuple[list[float], str]]:
    """Micro-F1 (one label each: accuracy), macro-F1 and top-3, by fold and over all."""
    whole = np.concatenate(judged)
    measures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "micro_f1": lambda s, y: float((s.argmax(1) == y).mean()),
        "macro_f1": lambda s, y: macro_f1(one_hot(s.argmax(1), s.shape[1]) > 0, one_hot(y, s.shape[1]) > 0),
        "top_3": lambda s, y: float((np.argsort(-s, 1, kind="stable")[:, :3] == y[:, None]).any(1).mean()),
    }
    made = {}
    for measure, of in measures.items():
        made[f"{name}_{measure}"] = ([of(np.concatenate(scores), study.labels[whole])], "")
        made[f"{name}_{measure}_by_fold"] = ([of(s, study.labels[test]) for s, test in zip(scores, judged)], "")
    return made


def main() -> None:
    """Measure every approach, or LoRA on some folds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lora-folds", type=int, default=0, help="measure LoRA on so many folds, and nothing else")
    parser.add_argument("--without-base", action="store_true", help="only what the spelling tells: minutes in place of an hour")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--model", type=Path, default=home() / "models" / "smollm2-135m")
    arguments = parser.parse_args()
    tram, attack = shared("cti/tram.json"), shared("cti/enterprise-attack.zip")
    if tram is None or attack is None:
        print("attack_techniques: skipped, the development data is not here")
        return
    torch.set_num_threads(1)
    model = arguments.model if arguments.model.exists() else get("smollm2-135m", arguments.model)
    preparing, base = recipe(), Base.load(model)
    own = preparing.sentences(tram)
    more = preparing.procedures(attack, {one.label for one in own})
    few = arguments.lora_folds
    SCRATCH.mkdir(exist_ok=True)
    memory = {} if few or arguments.without_base else remember(base, [one.text for one in [*own, *more]], SCRATCH / "attack_techniques.npy")
    study = Study(own, more, base, memory, preparing)
    parts = study.parts()[: few or None]
    by: dict[str, list[np.ndarray]] = {}
    for number, (train, test) in enumerate(parts, 1):
        made = {"lora": lora(study, train, test, model, arguments.epochs)} if few else approaches(study, train, test, not arguments.without_base)
        np.savez(SCRATCH / f"attack_techniques-{'lora-' if few else ''}{number}.npz", test=test, **made)  # to look at what was wrong
        for name, scores in made.items():
            by.setdefault(name, []).append(scores)
            print(f"fold {number}: {name} {100 * (scores.argmax(1) == study.labels[test]).mean():.1f}%", flush=True)
    conditions = {"sentences": len(own), "techniques": len(study.names), "folds": f"{len(parts)} of {FOLDS}, by report", "model": "SmolLM2-135M-Instruct"}
    conditions |= {"LoRA epochs": f"at most {arguments.epochs:g}"} if few else {"ATT&CK's sentences": len(more), "they count": "0.1, 0.3 or 1, by inner folds"}
    judged = [test for _, test in parts]
    metrics = {metric: values for name in by for metric, values in scored(study, name, judged, by[name]).items()}
    append("attack_techniques_lora" if few else "attack_techniques", conditions, metrics)


if __name__ == "__main__":
    sys.exit(main())
