"""Learning without labels: pre-train on pictures or sounds alone, then classify with 10, 100 and 1,000 labels.

The base learns from the training part without labels (nor captions nor telling file names), with the product's own build and loop. Then each
number of labels is used three ways: a probe on frozen features, the base fine-tuned, and the same network from scratch with the same recipe.
`gain_at_100` is USE minus from scratch, in points; USE was fixed before the test part was looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from bedplate.adapt.label_efficiency import METHODS, label_efficiency
from benchmarks import things
from benchmarks.inputs import SCRATCH, SHARED
from benchmarks.record import append
from benchmarks.training import run_training

SETS: dict[str, Callable[[], things.Things]] = {
    "mnist10k": things.digits,
    "fsdd": things.spoken_digits,
    "cifar10": things.photographs,
    "blood_cells": things.cells,
}
USE = "finetune"
"""The method whose gain is the headline, fixed beforehand."""


def measure(name: str, budget: str, size: str, threads: int, folder: Path) -> None:
    """Pre-train, judge, record."""
    what = SETS[name]()
    corpus = things.build_corpus(what, folder)
    settings = [f'model.size="{size}"', f'run.budget="{budget}"', "model.context=512", f"run.threads={threads}"]
    settings += ["sample.every_steps=0", "health.max_epochs=1000"]
    model, chosen = run_training(corpus.folder, folder / f"run-{size}-{budget}", settings)
    torch.set_num_threads(threads)
    train, train_labels = things.documents(what, corpus.specs, test=False)
    test, test_labels = things.documents(what, corpus.specs, test=True)
    results = label_efficiency(
        model,
        train,
        train_labels,
        test[:1000],
        test_labels[:1000],
        tell=lambda r: print(f"{name}: {r.labels} labels, {r.method}: {100 * r.mean:.1f}%", flush=True),
    )
    by = {(r.method, r.labels): r.values for r in results}
    metrics = {f"{m}_at_{n}": ([100 * v for v in values], "%") for (m, n), values in by.items()}
    for n in sorted({n for _, n in by}):
        metrics[f"gain_at_{n}"] = ([100 * (a - b) for a, b in zip(by[(USE, n)], by[("scratch", n)])], "points")
    append(
        f"label_efficiency_{name}",
        conditions={
            "size": size,
            "pre-training": f"{budget}, {chosen.get('run.steps')} steps, no labels",
            "unlabelled things": len(train),
            "test things": len(test[:1000]),
            "draws of labels": 3,
            "threads": threads,
            "headline": USE,
            "methods": ", ".join(METHODS),
        },
        metrics=metrics,
    )


def main() -> None:
    """Measure the chosen sets, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", choices=[*SETS, []], default=list(SETS))
    parser.add_argument("--budget", default="8m")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if not SHARED.exists():
        print("label_efficiency: skipped, the development data is not here")
        return
    for name in arguments.sets:
        measure(name, arguments.budget, arguments.size, arguments.threads, SCRATCH / "label_efficiency" / name)


if __name__ == "__main__":
    main()
