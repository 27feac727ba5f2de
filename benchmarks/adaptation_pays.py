"""Does adaptation pay? The same labels, steps and recipe from a pre-trained base and from scratch, for a job of each of three senses.

Nothing differs between the two arms but the weights that they start from, and the learning rate that suits each: it is chosen for each on
labels of a validation part, from the same rates, before the test part is looked at. The bases of pictures and sounds learned without labels with
the product's own build and loop; the base of text is the lower layers of SmolLM2-135M-Instruct, so that a run from scratch ends in minutes too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bedplate.adapt.base import Base
from bedplate.adapt.label_efficiency import Accuracy, Documents, Method, Recipe, balanced_draw, best_rate, label_efficiency
from bedplate.core.errors import RemoteError
from bedplate.core.files import read_json, write_json
from bedplate.data.corpus_format import StoredSegment
from bedplate.model.formats.get import get
from bedplate.model.foundation import FoundationModel
from benchmarks import things
from benchmarks.inputs import SCRATCH, SHARED
from benchmarks.record import Metrics, append
from benchmarks.training import run_training

SIZES = (50, 200, 1000)
DRAWS = (0, 1, 2)
RATES_CHOSEN_AT = 200
"""Labels of the first draw with which each arm's learning rate is chosen; it holds for every size."""
VALIDATION = 300
"""Things of the training part that are set apart for that choice."""
ARMS: tuple[Method, Method] = ("finetune", "scratch")


class Parts(NamedTuple):
    """A base and what it is judged on."""

    model: FoundationModel
    train: Documents
    train_labels: np.ndarray
    test: Documents
    test_labels: np.ndarray
    base: str
    """What the base is and learned from, in words."""


@dataclass(frozen=True)
class Job:
    """One job."""

    job: str
    """In words, for the record and the figure."""
    parts: Callable[[Path], Parts]
    recipe: Recipe
    most_test: int


def pictures_or_sounds(what: Callable[[], things.Things], steps: int, words: int = 0) -> Callable[[Path], Parts]:
    """Parts whose base learns without labels, so many steps, from the training part and so many synthetic words."""

    def parts(folder: Path) -> Parts:
        found = what()
        corpus = things.build_corpus(found, folder, more=partial(things.spoken_words, count=words) if words else None)
        settings = ['model.size="nano"', f"run.steps={steps}", "model.context=512", f"run.threads={torch.get_num_threads()}"]
        settings += ["sample.every_steps=0", "health.max_epochs=1000", "evaluate.every_steps=0"]
        model, _ = run_training(corpus.folder, folder / f"run-{steps}", settings)
        train, train_labels = things.documents(found, corpus.specs, test=False)
        test, test_labels = things.documents(found, corpus.specs, test=True)
        learned = f"{len(train):,} things of its training part" + (f" and {words:,} words by synthetic voices" if words else "")
        return Parts(model, train, train_labels, test, test_labels, f"nano, {steps} steps without labels on {learned}")

    return parts


TECHNIQUES = 10
LAYERS = 6
MOST_TOKENS = 24
"""Nine of ten sentences are shorter."""


def techniques(folder: Path) -> Parts:
    """TRAM: the ten most frequent ATT&CK techniques of sentences; a quarter of the reports, whole, is for testing."""
    base = Base.load(get("smollm2-135m").folder)
    rows = json.loads((SHARED / "cti" / "tram.json").read_text())
    train, test = by_document(rows, TECHNIQUES, share=0.25)
    names = sorted({str(row["label"]) for row in rows_of(rows, TECHNIQUES)})

    ids = {row["text"]: base.encoder.encode(row["text"])[:MOST_TOKENS] for row in [*train, *test]}
    used = sorted({*(int(token) for text in ids.values() for token in text), *base.model.config.special_ids.values()})

    def encoded(part: Sequence[dict[str, str]]) -> tuple[Documents, np.ndarray]:
        documents = [[StoredSegment("text", np.searchsorted(used, ids[row["text"]]).astype(np.int32))] for row in part]
        return documents, np.array([names.index(row["label"]) for row in part])

    base_told = f"the lower {LAYERS} of 30 layers of SmolLM2-135M-Instruct (Q4_1), sentences of at most {MOST_TOKENS} tokens"
    return Parts(smaller(base.model, LAYERS, used), *encoded(train), *encoded(test), base_told)


def rows_of(rows: Sequence[dict[str, str]], most: int) -> list[dict[str, str]]:
    """Rows of the most frequent labels; of equally frequent ones those first by name."""
    counts = Counter(row["label"] for row in rows)
    kept = sorted(counts, key=lambda label: (-counts[label], label))[:most]
    return [row for row in rows if row["label"] in kept]


def by_document(rows: Sequence[dict[str, str]], most: int, share: float) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(training, test) rows of the most frequent labels: each document is in one of the two, in an order that mixes them.

    Args:
        rows: with "label" and "doc_title".
        most: labels.
        share: of the rows, that the test part has at least.
    """
    kept = rows_of(rows, most)
    kept = [kept[i] for i in np.random.default_rng(1).permutation(len(kept))]
    counts = Counter(row["doc_title"] for row in kept)
    titles = sorted(counts)
    apart: set[str] = set()
    for i in np.random.default_rng(0).permutation(len(titles)):
        if sum(counts[title] for title in apart) >= share * len(kept):
            break
        apart.add(titles[i])
    return [row for row in kept if row["doc_title"] not in apart], [row for row in kept if row["doc_title"] in apart]


def smaller(model: FoundationModel, layers: int, tokens: Sequence[int]) -> FoundationModel:
    """The model without its upper layers, and without table rows that no example uses: they would cost time at every step and change nothing.

    Args:
        model: a text model whose head is its table.
        layers: that stay.
        tokens: ids in use, ascending; token `tokens[i]` becomes i. Every special token is among them.
    """
    place = {token: i for i, token in enumerate(tokens)}
    special = {name: place[token] for name, token in model.config.special_ids.items()}
    small = FoundationModel(replace(model.config, num_hidden_layers=layers, vocab_size=len(tokens), special_ids=special))
    known = small.state_dict()
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in known}
    table = "model.embed_tokens.weight"
    small.load_state_dict({**kept, table: kept[table][list(tokens)]})
    return small


SMALL = Recipe(dict.fromkeys(ARMS, (2e-4, 5e-4, 2e-3)), 32, {50: 60, 200: 120, 1000: 200})
LARGE = Recipe(dict.fromkeys(ARMS, (1e-4, 3e-4, 1e-3)), 8, {50: 30, 200: 60, 1000: 120})
"""Rates to choose from are lower for a wider network."""

JOBS: dict[str, Job] = {
    "mnist10k": Job("handwritten digits", pictures_or_sounds(things.digits, 400), SMALL, 1000),
    "fsdd_known": Job("spoken digits of known speakers", pictures_or_sounds(things.spoken_digits, 400), SMALL, 1000),
    "fsdd": Job("spoken digits of new speakers", pictures_or_sounds(things.new_speakers, 1000, words=8000), SMALL, 1000),
    "tram": Job("ATT&CK technique of a sentence", techniques, LARGE, 500),
}


class Kept:
    """What was measured already, on disk, so that a stopped measurement goes on; another question starts afresh."""

    def __init__(self, path: Path, asked: Sequence[object]) -> None:
        """Open.

        Args:
            path: the file.
            asked: everything that the values depend on.
        """
        self.path, self.asked = path, [str(part) for part in asked]
        before = read_json(path) if path.exists() else {}
        self.values: dict[str, list[float]] = before["values"] if before.get("asked") == self.asked else {}

    def value(self, name: str, measured: Callable[[], float]) -> float:
        """A value by its name, measured now where it is not there; how long that took in processor seconds is kept beside it."""
        if name not in self.values:
            began = time.process_time()
            value = measured()
            self.values[name] = [value, time.process_time() - began]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"asked": self.asked, "values": self.values})
        return self.values[name][0]

    def seconds(self) -> float:
        """Processor seconds of all values."""
        return sum(spent for _, spent in self.values.values())


def measure(name: str, folder: Path, sizes: Sequence[int] = SIZES) -> None:
    """Base, choice of the rates, both arms draw by draw, record."""
    job = JOBS[name]
    parts = job.parts(folder)
    kept, validation = set_apart(len(parts.train), VALIDATION)
    train, labels = [parts.train[i] for i in kept], parts.train_labels[kept]
    apart, apart_labels = [parts.train[i] for i in validation], parts.train_labels[validation]
    test, test_labels = parts.test[: job.most_test], parts.test_labels[: job.most_test]
    classes = int(parts.train_labels.max()) + 1
    chosen = balanced_draw(labels, RATES_CHOSEN_AT, classes, DRAWS[0])
    drawn = [train[int(i)] for i in chosen]
    found = Kept(folder / "measured.json", (parts.base, job.recipe, len(train), len(test)))

    def rate_of(arm: Method) -> float:
        return best_rate(parts.model, arm, drawn, labels[chosen], apart, apart_labels, classes, DRAWS[0], job.recipe)

    rates: dict[Method, float] = {arm: found.value(f"rate {arm}", partial(rate_of, arm)) for arm in ARMS}
    recipe = replace(job.recipe, rates={arm: (rate,) for arm, rate in rates.items()})

    def accuracy(arm: Method, size: int, draw: int) -> float:
        (only,) = label_efficiency(parts.model, train, labels, test, test_labels, sizes=(size,), seeds=(draw,), methods=(arm,), recipe=recipe)
        return only.mean

    results = []
    for size in sizes:
        right = {arm: [found.value(f"{arm} {size} {draw}", partial(accuracy, arm, size, draw)) for draw in DRAWS] for arm in ARMS}
        for arm, values in right.items():
            results.append(Accuracy(arm, size, tuple(values)))
            print(f"{name}: {size} labels, {arm}: {100 * results[-1].mean:.1f}%", flush=True)
    steps = ", ".join(f"{steps} steps at {size:,} labels" for size, steps in job.recipe.steps.items())
    append(
        f"adaptation_pays_{name}",
        conditions={
            "job": job.job,
            "base": parts.base,
            "classes": classes,
            "test things": len(test),
            "draws of labels": len(DRAWS),
            "both arms": f"full fine-tuning, {job.recipe.batch} a step, {steps}",
            "learning rate": f"{rates['finetune']:g} from the base, {rates['scratch']:g} from scratch, by {len(validation)} validation things",
            "processor time of both arms": f"{found.seconds():.0f} s",
        },
        metrics=metrics_of(results),
    )


def set_apart(count: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices that labels are drawn from, indices for validation)."""
    order = np.random.default_rng(2).permutation(count)
    return np.sort(order[most:]), np.sort(order[:most])


def metrics_of(results: Sequence[Accuracy]) -> Metrics:
    """Accuracy of each arm and size, and the gain of the base over scratch, draw by draw."""
    by = {(result.method, result.labels): result.values for result in results}
    metrics: dict[str, tuple[list[float], str]] = {}
    for size in sorted({size for _, size in by}):
        for arm, called in zip(ARMS, ("base", "scratch")):
            metrics[f"{called}_at_{size}"] = ([100 * value for value in by[(arm, size)]], "%")
        metrics[f"gain_at_{size}"] = ([100 * (a - b) for a, b in zip(by[("finetune", size)], by[("scratch", size)], strict=True)], "points")
    return metrics


def main() -> None:
    """Measure the chosen jobs, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="*", choices=[*JOBS, []], default=list(JOBS))
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if not SHARED.exists():
        print("adaptation_pays: skipped, the development data is not here")
        return
    torch.set_num_threads(arguments.threads)
    for name in arguments.jobs:
        try:
            measure(name, SCRATCH / "adaptation_pays" / name, arguments.sizes)
        except RemoteError as error:
            print(f"adaptation_pays: {name} skipped, {error.message}")


if __name__ == "__main__":
    main()
