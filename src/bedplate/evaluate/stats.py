"""Scores with their uncertainty: 95% intervals, and comparisons of two models on the same examples.

Every score is a function of sums over examples (right answers, bits and bytes, hits per label). So a resample is a row of counts, 2,000 of
them are one matrix product, and leaving one example out is a subtraction.

    score("share", {"right": right})                      # Score(value=0.68, low=0.66, high=0.70, ...)
    difference("share", {"right": ours}, {"right": theirs})

Sources: Wilson (1927); Efron, Better Bootstrap Confidence Intervals (1987); McNemar (1947), exact; Newcombe, Improved confidence intervals for
the difference between binomial proportions based on paired data (1998), method 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from bedplate.adapt.calibrate import one_hot

LEVEL = 0.95
RESAMPLES = 2000
AT_ONCE = 4_000_000
"""Draws in memory at once."""

How = Literal[
    "share", "mean", "ratio", "perplexity", "f1", "macro_f1", "macro_f1_several", "calibration", "calibration_several", "explained", "rank_correlation"
]  # fmt: skip
Columns = Mapping[str, Any]
"""Name -> one value an example."""


class Score(NamedTuple):
    """A value with its 95% interval; the ends are NaN where there are too few examples to tell."""

    value: float
    low: float
    high: float
    examples: int


class Difference(NamedTuple):
    """First less second, on the same examples."""

    value: float
    low: float
    high: float
    examples: int
    p: float | None
    """Exact McNemar's, of shares: how often chance alone makes as uneven a split of the examples on which the two differ."""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


class Summed(NamedTuple):
    """A statistic as a function of sums."""

    features: Float[np.ndarray, "n f"]
    combine: Callable[[np.ndarray], np.ndarray]
    """Sums [r f] -> values [r]."""

    @property
    def value(self) -> float:
        """Of all examples."""
        return float(self.combine(self.features.sum(0)[None])[0])


def score(how: How, columns: Columns, seed: int = 0) -> Score:
    """A statistic with its 95% interval.

    Args:
        how: which; one of STATISTICS, with the columns that it takes, in order.
        columns: a value an example in each.
        seed: of the resamples.
    """
    summed = STATISTICS[how](*map(_array, columns.values()))
    n = len(summed.features)
    if how == "share":
        right = int(summed.features[:, 0].sum())
        return Score(right / n, *wilson(right, n), n)
    return Score(summed.value, *_interval(summed.value, _draws([summed], seed)[0], _left_out(summed)), n)


def difference(how: How, first: Columns, second: Columns, seed: int = 0) -> Difference:
    """How far `first` is above `second`, example by example.

    Args:
        how: which statistic.
        first: columns of one model.
        second: columns of the other, in the same order of examples.
        seed: of the resamples, which are the same for both.
    """
    a, b = (STATISTICS[how](*map(_array, columns.values())) for columns in (first, second))
    n = len(a.features)
    if how == "share":
        ours, theirs = a.features[:, 0] > 0, b.features[:, 0] > 0
        table = [int((x & y).sum()) for x in (ours, ~ours) for y in (theirs, ~theirs)]
        return Difference((table[1] - table[2]) / n, *newcombe(*table), n, mcnemar(table[1], table[2]))
    drawn = _draws([a, b], seed)
    return Difference(a.value - b.value, *_interval(a.value - b.value, drawn[0] - drawn[1], _left_out(a) - _left_out(b)), n, None)


def wilson(right: int, of: int) -> tuple[float, float]:
    """95% interval of a share: never empty, never outside 0..1.

    Args:
        right: examples that are.
        of: all examples, at least one.
    """
    z, share = NormalDist().inv_cdf((1 + LEVEL) / 2), right / of
    middle = share + z * z / (2 * of)
    reach = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    return (0.0 if right == 0 else (middle - reach) / scale), (1.0 if right == of else (middle + reach) / scale)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of an exact McNemar test: 1 where the two are never of different minds.

    Args:
        only_first: examples that only the first gets right.
        only_second: examples that only the second gets right.
    """
    of, fewer = only_first + only_second, min(only_first, only_second)
    log_half = [math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) - of * math.log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, log_half)))


def newcombe(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """95% interval of the difference of two shares of the same examples: Wilson's two intervals, joined by how far the two agree.

    Args:
        both: examples that both get right.
        only_first: examples that only the first gets right.
        only_second: examples that only the second gets right.
        neither: examples that neither gets right.
    """
    n = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    p, q, between = first / n, second / n, (only_first - only_second) / n
    margins = first * (n - first) * second * (n - second)
    agreement = both * neither - only_first * only_second
    corrected = max(agreement - n / 2, 0) if agreement > 0 else agreement
    phi = corrected / math.sqrt(margins) if margins else 0.0
    (low_p, high_p), (low_q, high_q) = wilson(first, n), wilson(second, n)

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    return max(-1.0, between - reach(p - low_p, high_q - q)), min(1.0, between + reach(high_p - p, q - low_q))


def words(value: float, low: float, high: float, percent: bool) -> str:
    """A difference for people: "+2.1 points (0.4 to 3.7)", points of a hundred where it is one of shares."""
    unit, scale = (" points", 100.0) if percent else ("", 1.0)
    if not percent and abs(value) >= 10_000:
        return f"{value:+.4g} ({low:.4g} to {high:.4g})"
    largest = max((abs(scale * x) for x in (value, low, high) if math.isfinite(x)), default=1.0)
    digits = 1 if percent else max(2, min(6, 2 - math.floor(math.log10(largest)))) if largest else 2
    said = [0.0 if round(scale * x, digits) == 0 else scale * x for x in (value, low, high)]
    return f"{said[0]:+.{digits}f}{unit} ({said[1]:.{digits}f} to {said[2]:.{digits}f})"


def _share(right: np.ndarray) -> Summed:
    return Summed(np.stack([right.astype(float), np.ones(len(right))], 1), lambda s: s[:, 0] / s[:, 1])


def _ratio(above: np.ndarray, below: np.ndarray) -> Summed:
    return Summed(np.stack([above, below], 1).astype(float), lambda s: s[:, 0] / np.where(s[:, 1] == 0, np.nan, s[:, 1]))


def _perplexity(nats: np.ndarray) -> Summed:
    return Summed(_share(nats).features, lambda s: np.exp(np.minimum(s[:, 0] / s[:, 1], 700)))


def _array(values: Any) -> np.ndarray:
    """A column as an array: of lists, where it holds lists."""
    if len(values) and isinstance(values[0], list):
        held = np.empty(len(values), object)
        for number, several in enumerate(values):
            held[number] = several
        return held
    return np.asarray(values)


def _f1(both: np.ndarray, given: np.ndarray, wanted: np.ndarray) -> Summed:
    """F1 over all that was given and wanted; 1 where nothing was either."""
    features = np.stack([both, given, wanted], 1).astype(float)
    return Summed(features, lambda s: np.where(s[:, 1] + s[:, 2] > 0, 2 * s[:, 0] / np.maximum(s[:, 1] + s[:, 2], 1), 1.0))


def _explained(value: np.ndarray, said: np.ndarray) -> Summed:
    """1 - squared error / variance: what knowing only the mean would leave explains nothing."""
    apart = value.astype(float) - value.mean()
    features = np.stack([np.square(value - said), apart, np.square(apart), np.ones(len(value))], 1)

    def combine(sums: np.ndarray) -> np.ndarray:
        spread = sums[:, 2] - np.square(sums[:, 1]) / sums[:, 3]
        result: np.ndarray = 1 - sums[:, 0] / np.where(spread > 1e-12 * max(1e-300, features[:, 2].sum()), spread, np.nan)
        return result

    return Summed(features, combine)


def _rank_correlation(value: np.ndarray, said: np.ndarray) -> Summed:
    """Spearman's: Pearson's of the ranks, equals sharing theirs. Resamples keep the ranks that things have among all examples."""
    x, y = (_ranks(column) for column in (value, said))
    features = np.stack([x, y, x * x, y * y, x * y, np.ones(len(x))], 1)

    def combine(sums: np.ndarray) -> np.ndarray:
        x, y, xx, yy, xy, n = sums.T
        spread = (xx - x * x / n) * (yy - y * y / n)
        result: np.ndarray = (xy - x * y / n) / np.sqrt(np.where(spread > 1e-18, spread, np.nan))
        return result

    return Summed(features, combine)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks around 0, a share of the number of values; equals have the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle: np.ndarray = ((2 * ends - counts + 1) / 2)[places]
    return (middle - (len(values) + 1) / 2) / len(values)


def _macro_f1(label: np.ndarray, said: np.ndarray) -> Summed:
    """Mean F1 of the labels that occur."""
    return _macro_f1_several(*(_array([[str(name)] for name in names]) for names in (label, said)))


def _macro_f1_several(labels: np.ndarray, said: np.ndarray) -> Summed:
    """The same where any number of labels holds."""
    names = sorted({name for column in (labels, said) for several in column for name in several})
    held, given = (np.array([[float(name in several) for name in names] for several in column]).reshape(len(labels), -1) for column in (labels, said))

    def combine(sums: np.ndarray) -> np.ndarray:
        both, either = np.split(sums, 2, axis=1)
        occurs = either > 0
        result: np.ndarray = np.where(occurs, 2 * both / np.where(occurs, either, 1), 0).sum(1) / np.maximum(1, occurs.sum(1))
        return result

    return Summed(np.concatenate([held * given, held + given], 1), combine)


def _calibration(confidence: np.ndarray, right: np.ndarray) -> Summed:
    """Expected calibration error over bins of equally many examples, the same that `expected_calibration_error` makes."""
    n = len(confidence)
    bins = np.zeros(n, np.int64)
    for number, part in enumerate(np.array_split(np.argsort(confidence, kind="stable"), min(10, max(1, n // 5)))):
        bins[part] = number
    excess = one_hot(bins, int(bins.max()) + 1) * (confidence - right.astype(float))[:, None]
    return Summed(np.concatenate([excess, np.ones((n, 1))], 1), lambda s: np.abs(s[:, :-1]).sum(1) / s[:, -1])


def _calibration_several(probabilities: np.ndarray, holds: np.ndarray) -> Summed:
    """The same over every label of every example; what is resampled stays whole examples."""
    sure, true = (np.array(column.tolist(), float) for column in (probabilities, holds))
    bins = np.zeros(sure.size, np.int64)
    for number, part in enumerate(np.array_split(np.argsort(sure, axis=None, kind="stable"), min(10, max(1, sure.size // 5)))):
        bins[part] = number
    placed = bins.reshape(sure.shape)
    excess = np.stack([np.where(placed == number, sure - true, 0).sum(1) for number in range(int(bins.max()) + 1)], 1)
    return Summed(np.concatenate([excess, np.full((len(sure), 1), sure.shape[1])], 1), lambda s: np.abs(s[:, :-1]).sum(1) / s[:, -1])


STATISTICS: dict[str, Callable[..., Summed]] = {
    "share": _share,
    "mean": _share,
    "ratio": _ratio,
    "perplexity": _perplexity,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "macro_f1_several": _macro_f1_several,
    "calibration": _calibration,
    "calibration_several": _calibration_several,
    "explained": _explained,
    "rank_correlation": _rank_correlation,
}
"""Name -> columns -> statistic: share(right), mean(value), ratio(above, below), perplexity(nats), f1(both, given, wanted), macro_f1(label, said),
calibration(confidence, right), explained and rank_correlation(value, said); `_several` take lists: (labels, said), (probabilities, holds)."""


def _draws(summed: list[Summed], seed: int) -> list[np.ndarray]:
    """Values of the same resamples for each statistic."""
    n = len(summed[0].features)
    rng = np.random.default_rng(seed)
    found: list[list[np.ndarray]] = [[] for _ in summed]
    left = RESAMPLES
    while left:
        rows = min(left, max(1, AT_ONCE // n))
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(float)
        for values, one in zip(found, summed):
            values.append(one.combine(counts @ one.features))
        left -= rows
    return [np.concatenate(values) for values in found]


def _left_out(summed: Summed) -> np.ndarray:
    """Values with one example left out at a time."""
    return summed.combine(summed.features.sum(0) - summed.features) if len(summed.features) > 1 else np.full(1, np.nan)


def _interval(value: float, drawn: np.ndarray, left_out: np.ndarray) -> tuple[float, float]:
    """Efron's bias-corrected and accelerated interval."""
    drawn, left_out = (part[np.isfinite(part)] for part in (drawn, left_out))
    if len(left_out) < 2 or not len(drawn) or not math.isfinite(value):
        return math.nan, math.nan
    if np.ptp(drawn) <= 1e-12 * max(1.0, abs(value)):
        return value, value
    normal = NormalDist()
    below = ((drawn < value).sum() + (drawn <= value).sum()) / (2 * len(drawn))
    bias = normal.inv_cdf(min(max(below, 1 / (2 * len(drawn))), 1 - 1 / (2 * len(drawn))))
    apart = left_out.mean() - left_out
    spread = float((apart**2).sum()) ** 1.5
    speed = float((apart**3).sum()) / (6 * spread) if spread else 0.0
    ends = []
    for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        shifted = bias + normal.inv_cdf(tail)
        ends.append(normal.cdf(bias + shifted / (1 - speed * shifted)))
    low, high = np.quantile(drawn, ends)
    return float(low), float(high)
