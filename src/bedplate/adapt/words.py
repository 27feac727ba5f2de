"""Words: what a text spells, as counted pieces of its words, and linear scores of labels on them.

A base knows what words mean; where a few exact spellings tell the label (names of programs, of functions, of keys), counting them tells more.
Pieces are stretches of 2 to 5 characters within a word, so that "encrypts" and "encrypted" share most of theirs. They are kept as hashes, as
no one reads them; so short a piece can be guessed back, what it stood in cannot.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from bedplate.adapt.probe import Loss, losses
from bedplate.adapt.weigh import weigh
from bedplate.core.errors import IntegrityError
from bedplate.core.files import publish

LENGTHS = range(2, 6)
"""Characters of a piece."""
FEWEST_TEXTS = 2
"""Texts that a piece must occur in to be kept."""
MOST_PIECES = 1 << 17
"""Those that most texts have are kept."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Of the rolling hash: odd, its bits well mixed."""
PENALTIES = (1e-3, 3e-4, 1e-4)
"""L2 penalties that are tried, strongest first, as a share of the mean loss; a text's vector has length 1, so they suit any set."""
ITERATIONS = 30
"""Of a solution; each starts from that of the penalty before."""


class Pieces(NamedTuple):
    """Pieces of several texts, one text after the other."""

    hashes: Int[np.ndarray, "m"]
    counts: Int[np.ndarray, "m"]
    rows: Int[np.ndarray, "m"]
    """The text that each is of."""


class Rows:
    """A sparse matrix [n k] that multiplies from either side."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, count: int, width: int) -> None:
        """Its entries; `count` rows of `width` columns."""
        self.entries = rows, columns, values
        self.count, self.width = count, width

    @functools.cached_property
    def _ahead(self) -> Bags:
        rows, columns, values = self.entries
        return _bags(rows, columns, values, self.count)

    @functools.cached_property
    def _across(self) -> Bags:
        rows, columns, values = self.entries
        return _bags(columns, rows, values, self.width)

    def take(self, chosen: Bool[np.ndarray, "n"]) -> Rows:
        """The rows where `chosen` holds."""
        rows, columns, values = self.entries
        here = chosen[rows]
        return Rows((chosen.cumsum() - 1)[rows[here]], columns[here], values[here], int(chosen.sum()), self.width)

    def dense(self) -> Float[np.ndarray, "n k"]:
        """All its numbers, zeros too."""
        whole = np.zeros((self.count, self.width), np.float32)
        whole[self.entries[0], self.entries[1]] = self.entries[2]
        return whole

    def times(self, table: Float[Tensor, "k c"]) -> Float[Tensor, "n c"]:
        """This matrix times a table."""
        return _summed(table, self._ahead)

    def transposed_times(self, table: Float[Tensor, "n c"]) -> Float[Tensor, "k c"]:
        """Its transpose times a table."""
        return _summed(table, self._across)


class Bags(NamedTuple):
    """Which rows of a table are summed, with which weights, into each row of a product."""

    indices: Tensor
    weights: Tensor
    starts: Tensor


def _bags(into: np.ndarray, of: np.ndarray, values: np.ndarray, count: int) -> Bags:
    order = np.argsort(into, kind="stable")
    starts = np.concatenate([[0], np.bincount(into, minlength=count).cumsum()[:-1]]).astype(np.int64)
    return Bags(torch.from_numpy(of[order].astype(np.int64)), torch.from_numpy(values[order]), torch.from_numpy(starts[:count]))


def _summed(table: Tensor, bags: Bags) -> Tensor:
    if not len(bags.indices):
        return torch.zeros(len(bags.starts), table.shape[1])
    return F.embedding_bag(bags.indices, table, bags.starts, mode="sum", per_sample_weights=bags.weights)


class Spelling:
    """Which pieces are known, and how much each tells: texts as rows of a sparse matrix, each of length 1.

    The weighting is the usual one, (1 + log count) times the log of how rare a piece is. Source: Manning, Raghavan and Schütze, Introduction to
    Information Retrieval (2008), section 6.4.
    """

    def __init__(self, known: Int[np.ndarray, "k"], rarity: Float[np.ndarray, "k"]) -> None:
        self.known, self.rarity = known, rarity

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """From the texts that are learned from."""
        found = pieces(texts)
        known, occurs = np.unique(found.hashes, return_counts=True)
        kept = np.flatnonzero(occurs >= min(FEWEST_TEXTS, len(texts)))
        kept = np.sort(kept[np.argsort(-occurs[kept], kind="stable")[:MOST_PIECES]])
        return cls(known[kept], (np.log((1 + len(texts)) / (1 + occurs[kept])) + 1).astype(np.float32))

    def rows(self, texts: Sequence[str]) -> Rows:
        """Texts as rows, in their order.

        Args:
            texts: any; one without a known piece is a row of zeros.
        """
        found = pieces(texts)
        place = np.searchsorted(self.known, found.hashes).clip(max=max(0, len(self.known) - 1))
        here = self.known[place] == found.hashes if len(self.known) else np.zeros(len(place), bool)
        place, rows = place[here], found.rows[here]
        values = (1 + np.log(found.counts[here])) * self.rarity[place]
        lengths = np.sqrt(np.bincount(rows, values**2, len(texts)))
        return Rows(rows, place, (values / lengths[rows]).astype(np.float32), len(texts), len(self.known))


def pieces(texts: Sequence[str]) -> Pieces:
    """Every piece of every text with its count; letters' case and the kind of space do not matter."""
    hashes, counts, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for row, text in enumerate(texts):
        spaced = " " + " ".join(text.lower().split()) + " "
        letters = np.frombuffer(spaced.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        space = letters == ord(" ")
        made = []
        for n in LENGTHS:
            if len(letters) < n:
                break
            windows = np.lib.stride_tricks.sliding_window_view(letters, n)
            inside = ~np.lib.stride_tricks.sliding_window_view(space, n)[:, 1:-1].any(1)
            if n == 2:
                inside = ~(space[:-1] & space[1:])
            value = np.full(int(inside.sum()), n, np.uint64)
            for column in windows[inside].T:
                value = value * FACTOR + column
                value ^= value >> np.uint64(29)
            made.append(value)
        found, count = np.unique(np.concatenate(made or [np.zeros(0, np.uint64)]), return_counts=True)
        hashes.append(found)
        counts.append(count)
        rows.append(np.full(len(found), row))
    return Pieces(np.concatenate(hashes), np.concatenate(counts), np.concatenate(rows))


class WordScores(NamedTuple):
    """Scores of labels from the pieces of a text."""

    spelling: Spelling
    weight: Float[np.ndarray, "k c"]
    bias: Float[np.ndarray, "c"]
    penalty: float
    """The L2 penalty that cross-validation chose."""

    def scores(self, texts: Sequence[str]) -> Float[np.ndarray, "n c"]:
        """Of every label."""
        made: np.ndarray = self.spelling.rows(texts).times(torch.from_numpy(self.weight)).numpy() + self.bias
        return made

    def times(self, scale: float) -> WordScores:
        """Scores so many times as large."""
        return self._replace(weight=self.weight * np.float32(scale), bias=self.bias * np.float32(scale))

    def save(self, path: Path) -> None:
        """Write them: hashes, how rare each is, weights."""
        parts = {"known": self.spelling.known.view(np.int64), "rarity": self.spelling.rarity, "weight": self.weight, "bias": self.bias}
        temporary = path.with_name(f".{path.name}.tmp")
        save_file({name: np.ascontiguousarray(part) for name, part in parts.items()}, temporary, metadata={"penalty": repr(self.penalty)})
        publish(temporary, path)

    @classmethod
    def load(cls, path: Path, labels: int) -> Self:
        """Read them back.

        Args:
            path: the file.
            labels: how many the task has.
        Raises:
            IntegrityError: it is damaged, or of another task.
        """
        try:
            with safe_open(path, "numpy") as file:
                known, rarity, weight, bias = (file.get_tensor(name) for name in ("known", "rarity", "weight", "bias"))
                penalty = float((file.metadata() or {})["penalty"])
            k = len(known)
            if known.dtype != np.int64 or (known.shape, rarity.shape, weight.shape, bias.shape) != ((k,), (k,), (k, labels), (labels,)):
                raise ValueError(f"{k} pieces and {labels} labels do not make its shapes")
            if {rarity.dtype, weight.dtype, bias.dtype} != {np.dtype(np.float32)} or (known.view(np.uint64)[1:] <= known.view(np.uint64)[:-1]).any():
                raise ValueError("its numbers are not those that were written")
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise IntegrityError(f"{path} does not fit: {error}", "restore the adapter folder from a copy") from error
        return cls(Spelling(known.view(np.uint64), rarity), weight, bias, penalty)


def fit_words(
    texts: Sequence[str],
    targets: Float[np.ndarray, "n c"],
    loss: Loss,
    fold: Int[np.ndarray, "n"],
    weights: Float[np.ndarray, "n"],
    penalties: Sequence[float] = PENALTIES,
) -> tuple[WordScores, Float[np.ndarray, "n c"]]:
    """Linear scores from pieces, and the scores that each text gets from the texts of the other folds.

    Args:
        texts: that are learned from.
        targets: labels that hold.
        loss: by which the penalty is chosen.
        fold: of each text; texts that resemble each other should share one.
        weights: how much each text counts.
        penalties: that are tried, strongest first.
    """
    spelling = Spelling.of(texts)
    whole, y, w = spelling.rows(texts), torch.from_numpy(targets.astype(np.float32)), torch.from_numpy((weights / weights.mean()).astype(np.float32))
    unseen = np.zeros((len(penalties), *targets.shape), np.float32)
    for held_out in np.unique(fold):
        train = fold != held_out
        rows, others = whole.take(train), whole.take(~train)
        table, bias = torch.zeros(whole.width, y.shape[1]), torch.zeros(y.shape[1])
        for number, penalty in enumerate(penalties):  # each starts where the stronger one ended
            _solve(table, bias, rows, y[train], w[train], penalty)
            unseen[number][~train] = (others.times(table) + bias).numpy()
    costs = [_cost(scores, y, w, loss) for scores in unseen]
    best = int(np.argmin(costs))
    table, bias = torch.zeros(whole.width, y.shape[1]), torch.zeros(y.shape[1])
    for penalty in penalties[: best + 1]:
        _solve(table, bias, whole, y, w, penalty)
    return WordScores(spelling, table.numpy(), bias.numpy(), penalties[best]), unseen[best]


def _cost(scores: np.ndarray, y: Tensor, w: Tensor, loss: Loss) -> float:
    """Mean loss at the best scale: how large scores are is found later, in company."""
    scale = weigh([scores], y.numpy(), loss, w.numpy())[0]
    return float((w * losses(torch.from_numpy(scores * np.float32(scale)), y, loss)).mean())


def _solve(table: Tensor, bias: Tensor, rows: Rows, y: Tensor, w: Tensor, penalty: float) -> None:
    """Minimise the squared hinge of every label for itself, in place, from where table and bias are.

    Source: Hsieh et al., A Dual Coordinate Descent Method for Large-scale Linear SVM (2008), the loss of equation 2; measured better than softmax
    (docs/journal.md).
    """
    optimiser = torch.optim.LBFGS([table, bias], max_iter=ITERATIONS, history_size=6, tolerance_grad=1e-7, tolerance_change=1e-9, line_search_fn="strong_wolfe")
    side, share = 2 * y - 1, (w / len(y))[:, None]

    def closure() -> Tensor:
        short = (1 - side * (rows.times(table) + bias)).clamp_min(0)
        pull = -2 * share * side * short
        table.grad, bias.grad = rows.transposed_times(pull).add_(table, alpha=penalty), pull.sum(0)
        return (share * short.square()).sum() + penalty * table.square().sum() / 2

    optimiser.step(closure)  # type: ignore[no-untyped-call]
