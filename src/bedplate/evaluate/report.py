"""The report of an evaluation: an artifact with every score, its interval, the conditions, and the values of every example.

    report.json             model, conditions, and for each task its data's digests and its scores
    examples/TASK.jsonl     one line an example: its id and the values that the scores are made of
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bedplate.core.artifact import MANIFEST, Manifest, seal, verify
from bedplate.core.errors import DataError
from bedplate.core.files import read_json, write_json, write_text
from bedplate.evaluate.kinds import Measure
from bedplate.evaluate.stats import Score, score

FOLDER = "report"


class Judged(NamedTuple):
    """A task that was run."""

    name: str
    measures: Sequence[Measure]
    data: Mapping[str, str]
    """File -> sha256."""
    values: Mapping[str, Mapping[str, Any]]
    """Example -> its values."""
    more: Mapping[str, Any]
    """What else is known of it."""


def scores(judged: Judged, seed: int, only: Sequence[str] | None = None) -> dict[str, Score]:
    """Measure -> its score, of all examples or of some; a measure whose values some example lacks is left out.

    Args:
        judged: the values.
        seed: of the resamples.
        only: ids of the examples that count.
    """
    rows = [judged.values[name] for name in (judged.values if only is None else only)]
    whole = [m for m in judged.measures if rows and all(column in row for row in rows for column in m.columns)]
    return {m.name: score(m.how, {column: [row[column] for row in rows] for column in m.columns}, seed) for m in whole}


def as_json(measure: Measure, found: Score) -> dict[str, Any]:
    """A score with the recipe it was made by; an end that is unknown is null."""
    numbers = {key: value if math.isfinite(value) else None for key, value in (("value", found.value), ("low", found.low), ("high", found.high))}
    return {**numbers, "examples": found.examples, **measure._asdict()}


def write(folder: Path, model: Mapping[str, Any], conditions: Mapping[str, Any], tasks: Sequence[Judged], seed: int) -> Manifest:
    """Write a report, manifest last.

    Args:
        folder: where; an older report there is replaced.
        model: its name and digests.
        conditions: everything that can change a number.
        tasks: what was run.
        seed: of the resamples.
    """
    (folder / MANIFEST).unlink(missing_ok=True)  # an older one must not vouch for new files
    shutil.rmtree(folder, ignore_errors=True)
    told = {}
    for judged in tasks:
        lines = [json.dumps({"id": name, **values}, ensure_ascii=False) for name, values in judged.values.items()]
        write_text(folder / "examples" / f"{judged.name}.jsonl", "".join(f"{line}\n" for line in lines))
        found = scores(judged, seed)
        measures = [as_json(measure, found[measure.name]) for measure in judged.measures if measure.name in found]
        told[judged.name] = {"examples": len(judged.values), "data": dict(judged.data), "scores": measures, **judged.more}
    write_json(folder / "report.json", {"model": model, "conditions": conditions, "tasks": told})
    return seal(folder, "report", parents=model["digests"], settings=conditions, about={"what": "evaluation", "name": model["name"], "tasks": sorted(told)})


class Report(NamedTuple):
    """A report that was read."""

    name: str
    conditions: Mapping[str, Any]
    tasks: Mapping[str, Judged]


def read(folder: Path) -> Report:
    """The report of a run folder or report folder; digests are checked.

    Raises:
        DataError: there is none, or it is of another kind.
        IntegrityError: a digest does not hold.
    """
    place = folder / FOLDER if (folder / FOLDER / MANIFEST).is_file() else folder
    if verify(place, "report").about.get("what") != "evaluation":
        raise DataError(f"{place} is not the report of an evaluation", "give the folder of a `bedplate evaluate run`")
    told = read_json(place / "report.json")
    tasks = {}
    for name, task in told["tasks"].items():
        measures = [Measure(s["name"], s["how"], tuple(s["columns"]), s["better"], s["percent"]) for s in task["scores"]]
        rows = map(json.loads, (place / "examples" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
        tasks[name] = Judged(name, measures, task["data"], {row["id"]: row for row in rows}, {"asked": task["asked"]})
    return Report(told["model"]["name"], told["conditions"], tasks)
