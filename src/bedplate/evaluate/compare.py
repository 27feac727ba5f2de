"""Two reports side by side: every score of both, paired example by example, and in words what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from bedplate.core.errors import DataError
from bedplate.evaluate.kinds import Measure
from bedplate.evaluate.report import Judged, Report
from bedplate.evaluate.stats import Difference, difference, score, words


class Compared(NamedTuple):
    """One measure of one task, of the examples that both reports have."""

    task: str
    measure: Measure
    before: float
    after: float
    difference: Difference
    """`after` less `before`."""

    @property
    def verdict(self) -> str:
        """better, worse, or no clear difference."""
        if not self.difference.clear:
            return "no clear difference"
        return "better" if (self.difference.value > 0) == (self.measure.better == "higher") else "worse"

    def sentence(self, name: str) -> str:
        """What a person is told: "adapter v3 is +2.1 points (0.4 to 3.7) in piqa accuracy: better"."""
        said = words(self.difference.value, self.difference.low, self.difference.high, self.measure.percent)
        return f"{name} is {said} in {self.task} {self.measure.name.replace('_', ' ')}: {self.verdict}"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        told = {"task": self.task, "measure": self.measure.name, "before": self.before, "after": self.after}
        return {**told, **self.difference._asdict(), "verdict": self.verdict}


class Comparison(NamedTuple):
    """What differs between two models, and what makes the comparison less than fair."""

    compared: Sequence[Compared]
    remarks: Sequence[str]


def compare(before: Report, after: Report, seed: int = 0) -> Comparison:
    """Pair two reports by example.

    Args:
        before: to compare with.
        after: what is judged.
        seed: of the resamples.
    Raises:
        DataError: they have no task, or no example of a task, in common.
    """
    common = [name for name in after.tasks if name in before.tasks]
    if not common:
        raise DataError("the reports have no task in common", f"{', '.join(before.tasks)} against {', '.join(after.tasks)}")
    unlike = [key for key in after.conditions if after.conditions[key] != before.conditions.get(key) and key not in ("limit", "corpus")]
    remarks = [f"{key} differs: {before.conditions.get(key)} before, {after.conditions[key]} after" for key in unlike]
    compared = []
    for name in common:
        first, second = before.tasks[name], after.tasks[name]
        if first.data != second.data:
            raise DataError(f"the reports were made with different files of {name}", "run both on the same --data")
        if first.more["asked"] != second.more["asked"]:
            remarks.append(f"{name} was asked in another way: {first.more['asked']} before, {second.more['asked']} after")
        ids = [one for one in second.values if one in first.values]
        if not ids:
            raise DataError(f"the reports have no example of {name} in common", "run both with the same seed and limit")
        if (left := len(first.values) + len(second.values) - 2 * len(ids)) > 0:
            remarks.append(f"{name}: {left} examples are in one report only and do not count")
        compared += [_compared(name, measure, first, second, ids, seed) for measure in second.measures if measure in first.measures]
    return Comparison(compared, remarks)


def _compared(task: str, measure: Measure, first: Judged, second: Judged, ids: Sequence[str], seed: int) -> Compared:
    a, b = ({column: [judged.values[one][column] for one in ids] for column in measure.columns} for judged in (first, second))
    return Compared(task, measure, score(measure.how, a, seed).value, score(measure.how, b, seed).value, difference(measure.how, b, a, seed))
