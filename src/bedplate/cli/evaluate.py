"""`bedplate evaluate run`, `compare` and `tasks`: a model measured, and two measurements side by side."""

from __future__ import annotations

from pathlib import Path

from bedplate.cli.app import Here, ModelFolder, Overrides
from bedplate.core.units import format_seconds


def run(
    model: ModelFolder,
    *,
    tasks: str | None = None,
    data: Path | None = None,
    to: Path | None = None,
    adapter: Path | None = None,
    corpus: Path | None = None,
    limit: int | None = None,
    recipe: Path | None = None,
    overrides: Overrides = (),
    console: Here,
) -> None:
    """Measure a model on tasks, every score with its 95% interval; continues where it stopped.

    Args:
        model: a model folder.
        tasks: names with commas between them, or TOML files of your own; `bedplate evaluate tasks` lists the names.
        data: the folder with the files of the tasks: DATA/TASK, DATA/TASK.zip, or DATA itself.
        to: the run folder; the report is TO/report.
        adapter: an adapter folder that was made for the model.
        corpus: a training corpus in which the examples are looked for, to tell what the model may have seen.
        limit: most examples of each task.
        recipe: a settings file; see docs/settings.md.
    """
    from bedplate.core.artifact import read_manifest
    from bedplate.core.config import load
    from bedplate.core.files import read_json
    from bedplate.core.run import Run
    from bedplate.evaluate.runner import evaluate
    from bedplate.evaluate.settings import EvaluateSettings

    named = tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks else None
    given = {"model": model, "tasks": named, "data": data, "to": to, "adapter": adapter, "corpus": corpus, "limit": limit}
    resolved = load(EvaluateSettings, path=recipe, overrides=overrides, given=given)
    settings = resolved.value
    with Run.open(settings.to, "evaluate", resolved, listeners=(console,)) as opened:
        manifest = evaluate(settings, opened)
        seconds = opened.seconds
    if manifest is None:
        console.stopped({"report": None, "finished": False})
    told = read_json(settings.to / "report" / "report.json")
    rows = []
    for task, found in told["tasks"].items():
        for score in found["scores"]:
            value, low, high = (_shown(score[part], score["percent"]) for part in ("value", "low", "high"))
            rows.append((task, score["name"].replace("_", " "), value, f"{low} to {high}" if low else "", score["examples"]))
    console.table(("task", "measure", "value", "95% interval", "examples"), rows, title=told["model"]["name"])
    for task, found in told["tasks"].items():
        if seen := found.get("contamination"):
            console.say(f"{task}: {seen['seen']} of {found['examples']} examples share a run of {seen['run_words']} words with the corpus")
    console.say(f"report in {settings.to / 'report'} after {format_seconds(seconds)}; bedplate evaluate compare {settings.to} OTHER")
    console.data({"report": str(settings.to / "report"), "finished": True, "digest": read_manifest(settings.to / "report").digest, **told})


def compare(before: Path, after: Path, *, console: Here) -> None:
    """Compare two measurements, example by example: how far AFTER is above BEFORE.

    Args:
        before: the run folder to compare with.
        after: the run folder that is judged.
    """
    from bedplate.evaluate.compare import compare as compare_reports
    from bedplate.evaluate.report import read

    first, second = read(before), read(after)
    found = compare_reports(first, second)
    name = second.name if second.name != first.name else str(after)
    for remark in found.remarks:
        console.say(f"warning: {remark}")
    console.print("\n".join(one.sentence(name) for one in found.compared))
    console.data({"before": first.name, "after": second.name, "remarks": list(found.remarks), "compared": [one.to_json() for one in found.compared]})


def tasks(*, console: Here) -> None:
    """List the tasks that are known by name, and the files each needs."""
    from bedplate.evaluate.tasks import TASKS

    measures = {name: [measure.name for measure in task.kind.measures] for name, task in TASKS.items()}
    rows = [(name, task.about, ", ".join(measures[name])) for name, task in TASKS.items()]
    console.table(("task", "what it asks: the files it reads", "measures"), rows)
    console.data([{"task": name, "about": task.about, "measures": measures[name]} for name, task in TASKS.items()])


def _shown(value: float | None, percent: bool) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" if percent else f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
