"""`bedplate adapt` and `bedplate predict`: from a base to a worker, and the worker at work."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from bedplate.cli.app import Here, ModelFolder, Overrides
from bedplate.core.config import load
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
        task: what is learned; see docs/settings.md.
        data: examples: JSONL, CSV, Parquet, or a folder or archive of files in one folder a label; for continue and grow any files, or a corpus.
        to: the adapter folder to write; a model folder for continue and grow. What happened is kept beside it, in TO.run.
        recipe: a settings file; see docs/settings.md.
        method: what of the network is trained: lora, dora, probe or full.
        preview: show so many examples as the model really sees them, what carries loss marked, and train nothing.
    """
    from bedplate.adapt.base import Base
    from bedplate.adapt.further import FURTHER, preview_rows
    from bedplate.adapt.loop import adapt as run_adaptation
    from bedplate.adapt.loop import prepare
    from bedplate.adapt.preview import preview as show
    from bedplate.adapt.settings import AdaptSettings
    from bedplate.infer.answer import answer

    given = {"base": base, "task": task, "data.file": data, "to": to, "method.name": method}
    resolved = load(AdaptSettings, path=recipe, overrides=overrides, given=given)
    settings = resolved.value
    if preview:
        loaded = Base.load(settings.base)
        if settings.task in FURTHER:
            with tempfile.TemporaryDirectory() as scratch:
                shown = preview_rows(settings, loaded, preview, Path(scratch))
        else:
            prepared = prepare(settings, loaded, preview, answer)
            shown = [show(item, loaded, prepared.task.target_of(item)) for item in prepared.items]
        console.print("\n\n".join(shown))
        console.data(shown)
        return
    with Run.open(settings.to.with_name(settings.to.name + ".run"), "adapt", resolved, listeners=(console,)) as run:
        manifest = run_adaptation(settings, run, answer)
        seconds = run.seconds
    if manifest is None:
        console.say("stopped; the same command goes on from here")
        console.data({"adapter": None, "finished": False})
        return
    about = manifest.about
    before, after = about["scores_before"], about["scores"]
    rows = [(name.replace("_", " "), f"{before[name]:.3f}" if name in before else "", f"{value:.3f}") for name, value in after.items()]
    if rows:
        console.table((f"{about['held_out']} held-out examples", "before", "after"), rows)
    if settings.task in FURTHER:
        console.say(f"model in {settings.to} after {format_seconds(seconds)}; a base like any other: bedplate generate {settings.to}")
    else:
        console.say(f"adapter in {settings.to} after {format_seconds(seconds)}; use it: bedplate predict {settings.base} {settings.to} FILE")
    console.data({"adapter": str(settings.to), "finished": True, "digest": manifest.digest, **about})


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
    from bedplate.infer.worker import Worker, as_json

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
