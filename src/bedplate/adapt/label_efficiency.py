"""Label efficiency: how many labels a pre-trained base saves, against the same network from scratch.

Three ways to use the same labels: a probe on the frozen base, the base fine-tuned, and the same architecture trained from random weights.
The last two share recipe, steps and choice of learning rate. Whatever is chosen is chosen on the labels themselves, never on test data.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from bedplate.adapt.encode import collate
from bedplate.adapt.features import features, look_at, pooled
from bedplate.adapt.probe import fit_probe
from bedplate.data.corpus_format import StoredSegment
from bedplate.model.foundation import FoundationModel

Method = Literal["probe", "finetune", "scratch"]
METHODS: tuple[Method, ...] = ("probe", "finetune", "scratch")

LEARNING_RATES = (5e-4, 2e-3)
HOLD_OUT = range(50, 500)
"""With so many labels a fifth is held out to choose the learning rate; fewer are too few, and with more it hardly matters."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on labels: the same from the base and from scratch, but for the learning rate that suits each."""

    rates: Mapping[Method, tuple[float, ...]] = field(default_factory=lambda: {"finetune": LEARNING_RATES, "scratch": LEARNING_RATES[::-1]})
    """Peak learning rates to choose from on held-out labels (see HOLD_OUT); the first is taken where none are held out."""
    batch: int = 32
    """Things that an update learns from."""
    steps: Mapping[int, int] = field(default_factory=lambda: {10: 60, 100: 120, 1000: 200})
    """Labels -> steps of gradient descent; between them the next larger."""

    def steps_for(self, labels: int) -> int:
        """Steps with so many labels."""
        return next((n for size, n in sorted(self.steps.items()) if labels <= size), max(self.steps.values()))


RECIPE = Recipe()

Documents = Sequence[Sequence[StoredSegment]]


class Accuracy(NamedTuple):
    """Accuracy of one method with so many labels, over the draws of labels."""

    method: Method
    labels: int
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the draws."""
        return statistics.mean(self.values)


def label_efficiency(
    model: FoundationModel,
    train: Documents,
    train_labels: Int[np.ndarray, "n"],
    test: Documents,
    test_labels: Int[np.ndarray, "m"],
    *,
    sizes: Sequence[int] = (10, 100, 1000),
    seeds: Sequence[int] = (0, 1, 2),
    methods: Sequence[Method] = METHODS,
    recipe: Recipe = RECIPE,
    tell: Callable[[Accuracy], None] = lambda _: None,
) -> list[Accuracy]:
    """Accuracy on the test part for every method and number of labels.

    Args:
        model: the pre-trained base; stays as it is.
        train: things whose labels may be drawn.
        train_labels: 0 .. c - 1.
        test: things that are only judged.
        test_labels: theirs.
        sizes: numbers of labels; those above the number of things are left out.
        seeds: one draw of labels each.
        methods: which to measure.
        recipe: of the trained ones.
        tell: hears of each result as it comes.
    """
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    base = features(model, [*train, *test]) if "probe" in methods else None
    results = []
    for size in sizes:
        if size > len(train):
            continue
        for method in methods:
            values = []
            for seed in seeds:
                chosen = balanced_draw(train_labels, size, classes, seed)
                if method == "probe":
                    assert base is not None
                    probe = fit_probe(base[chosen], train_labels[chosen], classes, seed)
                    predicted = probe.predict(base[len(train) :])
                else:
                    drawn = [train[int(i)] for i in chosen]
                    predicted = trained(model, method, drawn, train_labels[chosen], test, classes, seed, recipe)
                values.append(float((predicted == test_labels).mean()))
            results.append(Accuracy(method, size, tuple(values)))
            tell(results[-1])
    return results


def balanced_draw(labels: Int[np.ndarray, "n"], size: int, classes: int, seed: int) -> Int[np.ndarray, "k"]:
    """Indices of `size` things, as equally many of each class as there are."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = [order[labels[order] == c] for c in range(classes)]
    turns = [indices[turn] for turn in range(max(map(len, by_class))) for indices in by_class if turn < len(indices)]
    return np.array(turns[:size])


def trained(
    base: FoundationModel,
    method: Method,
    documents: Documents,
    labels: Int[np.ndarray, "k"],
    test: Documents,
    classes: int,
    seed: int,
    recipe: Recipe = RECIPE,
) -> Int[np.ndarray, "m"]:
    """Predictions for `test` of the network trained on some labels, from the base or from scratch."""
    rates = recipe.rates[method]
    rate = rates[0]
    if len(rates) > 1 and len(labels) in HOLD_OUT:
        held_out = np.random.default_rng(seed).permutation(len(labels)) < len(labels) // 5
        kept, judged = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        part, rest = [documents[int(i)] for i in kept], [documents[int(i)] for i in judged]
        rate = best_rate(base, method, part, labels[kept], rest, labels[judged], classes, seed, recipe)
    return _train(base, method, documents, labels, test, classes, seed, recipe, rate)


def best_rate(
    base: FoundationModel,
    method: Method,
    documents: Documents,
    labels: Int[np.ndarray, "k"],
    judged: Documents,
    judged_labels: Int[np.ndarray, "m"],
    classes: int,
    seed: int,
    recipe: Recipe = RECIPE,
) -> float:
    """The learning rate of the recipe whose network is right most often on things that it did not learn from; the smaller of equal ones."""
    right = {
        rate: float((_train(base, method, documents, labels, judged, classes, seed, recipe, rate) == judged_labels).mean())
        for rate in sorted(recipe.rates[method])
    }
    return max(right, key=lambda rate: right[rate])


def _train(
    base: FoundationModel,
    method: Method,
    documents: Documents,
    labels: np.ndarray,
    test: Documents,
    classes: int,
    seed: int,
    recipe: Recipe,
    rate: float,
) -> np.ndarray:
    model = copy.deepcopy(base).train()
    if method == "scratch":
        model.initialise(1000 + seed)
    layers = max(1, model.config.num_hidden_layers // 2)
    torch.manual_seed(seed)
    head = nn.Linear(model.config.hidden_size, classes).to(model.head.device)
    special = model.config.special_ids
    pad_id = special.get("<|pad|>", special.get("<|endoftext|>", 0))
    prepared = [look_at(model, one) for one in documents]
    wanted = torch.from_numpy(labels.astype(np.int64)).to(model.head.device)
    steps = recipe.steps_for(len(labels))
    trainable = [p for name, p in model.named_parameters() if not name.startswith("unit_heads")]
    optimiser = torch.optim.AdamW([*trainable, *head.parameters()], lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    rng = np.random.default_rng(seed)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (0.1 * steps)) * (1 - step / steps)
        chosen = rng.choice(len(prepared), min(recipe.batch, len(prepared)), replace=False)
        scores = head(pooled(model, collate([prepared[int(i)] for i in chosen], pad_id), layers))
        loss = nn.functional.cross_entropy(scores, wanted[chosen])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
    model.eval()
    with torch.inference_mode():
        parts = [
            head(pooled(model, collate([look_at(model, one) for one in test[start : start + 64]], pad_id), layers)).argmax(1).cpu().numpy()
            for start in range(0, len(test), 64)
        ]
    return np.concatenate(parts)
