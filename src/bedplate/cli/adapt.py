"""`bedplate adapt` and `bedplate predict`: from a base to a worker, and the worker at work."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bedplate.cli.app import Here, ModelFolder, Overrides
from bedplate.core.config import load
from bedplate.core.errors import ConfigError
from bedplate.core.run import Run
from bedplate.core.units import format_seconds


def adapt(
    base: ModelFolder | None = None,
    *,
    task: str | None = None,
    data: Path | None = None,
    to: Path | None = None,
    recipe: Path | None = None,
    method: str | None = None,
    preview: int = 0,
    overrides: Overrides = (),
    console: Here,
) -> None:
    """Adapt a base to a job; continues where it stopped.

    Args:
        base: the base, a model folder; it stays as it is.
        task: what is learned: generate, classify, extract, rank, embed, regress, prefer, distill, continue or grow; see docs/settings.md.
        data: examples: JSONL, CSV, Parquet, or a folder or archive of files in one folder a label; for continue and grow any files, or a corpus.
        to: the adapter folder to write; a model folder for continue and grow. What happened is kept beside it, in TO.run.
        recipe: a settings file; see docs/settings.md.
        method: what of the network is trained: lora, dora, probe or full.
        preview: show so many examples as the model really sees them, what carries loss marked, and train nothing.
    """
    from bedplate.adapt.base import Base
    from bedplate.adapt.further import FURTHER, preview_rows
    from bedplate.adapt.loop import adapt as run_adaptation
    from bedplate.adapt.loop import check_same, labels, prepare
    from bedplate.adapt.preview import preview as show
    from bedplate.adapt.settings import AdaptSettings
    from bedplate.infer.answers import Teacher

    given = {"base": base, "task": task, "data.file": data, "to": to, "method.name": method}
    resolved = load(AdaptSettings, path=recipe, overrides=overrides, given=given)
    settings = resolved.value
    if resolved.origins.get("base", "default") == "default":
        raise ConfigError("no base is named", "bedplate adapt BASE --task TASK --data FILE --to FOLDER; `bedplate get` lists models to begin with")
    if preview:
        loaded = Base.load(settings.base)
        if settings.task in FURTHER:
            with tempfile.TemporaryDirectory() as scratch:
                shown = preview_rows(settings, loaded, preview, Path(scratch))
        else:
            prepared = prepare(settings, loaded, preview, Teacher())
            if census := labels(prepared.task):
                console.say("labels: " + ", ".join(f"{name} {count:,}" for name, count in census.items()))
            shown = [show(item, loaded, prepared.task.target_of(item)) for item in prepared.items]
        console.print("\n\n".join(shown))
        console.data(shown)
        return
    folder = settings.to.with_name(settings.to.name + ".run")
    with Run.open(folder, "adapt", resolved, listeners=(console,), check=partial(check_same, settings)) as run:
        manifest = run_adaptation(settings, run, Teacher())
        seconds = run.seconds
    if manifest is None:
        console.stopped({"adapter": None, "finished": False})
    about = manifest.about
    before, after = about["scores_before"], about["scores"]
    rows = []
    for name, value in after.items():
        rows.append((name.replace("_", " "), f"{before[name]:.3f}" if name in before else "", f"{value:.3f}", _interval(name, value, about)))
    if rows:
        console.table((f"{about['held_out']} held-out examples", "before", "after", "95% interval"), rows)
    if settings.task in FURTHER:
        console.say(f"model in {settings.to} after {format_seconds(seconds)}; a base like any other: bedplate generate {settings.to}")
    else:
        console.say(f"adapter in {settings.to} after {format_seconds(seconds)}; use it: bedplate predict {settings.base} {settings.to} FILE")
    console.data({"adapter": str(settings.to), "finished": True, "digest": manifest.digest, **about})


def _interval(name: str, value: float, about: Mapping[str, Any]) -> str:
    """Between which values a share of the held-out examples is likely to lie on new ones; "" for what is no share of them."""
    from bedplate.evaluate.stats import wilson

    of = about["held_out"]
    if name == "accuracy_of_answered":
        of = round(about["scores"]["answered"] * of)
    if name not in ("accuracy", "preferred", "answered", "accuracy_of_answered") or not of:
        return ""
    low, high = wilson(round(value * of), of)
    return f"{low:.3f} to {high:.3f}"


def predict(base: ModelFolder, adapter: Path, data: Path, *, out: Path | None = None, max_tokens: int = 256, console: Here) -> None:
    """What an adapted base says of the examples in a file.

    Args:
        base: the base, a model folder.
        adapter: an adapter folder that was made for it.
        data: examples with the columns of the adapter's task; targets are not needed.
        out: a JSONL file to write the answers to; without it they are printed.
        max_tokens: longest answer of a worker that generates.
    """
    from bedplate.adapt.examples import read_rows
    from bedplate.adapt.tasks.generate import Generate
    from bedplate.core.files import write_text
    from bedplate.core.prediction import as_json
    from bedplate.infer.worker import Worker

    worker = Worker.load(base, adapter)
    rows = read_rows(data)
    if isinstance(worker.task, Generate):
        answers = [{"row": row.number, "answer": said} for row, said in zip(rows, worker.generate(rows, max_tokens=max_tokens))]
    else:
        answers = [{"row": row.number, **as_json(said)} for row, said in zip(rows, worker.predict(rows))]
    if out is not None:
        write_text(out, "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))
        console.say(f"{len(answers)} answers in {out}")
    else:
        console.print("\n".join(json.dumps(answer, ensure_ascii=False) for answer in answers))
    console.data({"out": str(out) if out else None, "answers": None if out else answers})


def merge(
    base: ModelFolder,
    adapters: list[Path],
    *,
    to: Path,
    weights: str = "",
    how: Literal["linear", "ties"] = "linear",
    density: float = 0.2,
    bits: Literal[8, 4] | None = None,
    console: Here,
) -> None:
    """Fold adapters into their base: one, or a mixture of several, as an ordinary model.

    Args:
        base: the base, a model folder; it stays as it is.
        adapters: adapter folders that generate, ours or in PEFT's format.
        to: the model folder to write.
        weights: how much each adapter counts, such as 1,0.5. By default 1 each.
        how: linear adds the weighted changes up; ties keeps the largest of each and lets them agree on a sign.
        density: ties: share of each change that is kept.
        bits: round what is merged to what so many bits can say, and tell what that lost.
    """
    from bedplate.adapt.merge import merge as run_merge

    try:
        counts = [float(weight) for weight in weights.split(",") if weight.strip()]
    except ValueError as error:
        raise ConfigError(f"--weights {weights!r} are no numbers", "write one for each adapter, such as --weights 1,0.5") from error
    made = run_merge(base, adapters, to, weights=counts, how=how, density=density, bits=bits)
    for name in made.unsealed:
        console.say(f"{name} has no manifest: nobody vouches for it")
    if bits:
        console.say(f"{bits} bits: off by {made.error.of_weights:.2%} of the weights, {made.error.of_change:.0%} of what the adapters changed")
    console.say(f"model in {to}")
    console.data({"model": str(to), "digest": made.manifest.digest, **made.manifest.about})
