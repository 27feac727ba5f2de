"""`bedplate pretrain`: from a corpus to a model."""

from __future__ import annotations

from pathlib import Path

from bedplate.cli.app import Here, Overrides
from bedplate.core.config import load
from bedplate.core.run import Run
from bedplate.core.units import format_seconds


def run(
    recipe: Path | None = None,
    *,
    to: Path,
    corpus: Path | None = None,
    size: str | None = None,
    budget: str | None = None,
    overrides: Overrides = (),
    console: Here,
) -> None:
    """Pre-train a model on a corpus; continues where it stopped.

    Args:
        recipe: a settings file; see recipes/ and docs/settings.md.
        to: the run folder. When it holds a run that stopped, that run goes on.
        corpus: the corpus folder.
        size: a preset: nano, micro, mini, small, base, 1b, 3b, 8b; or auto.
        budget: what may be spent: "20m", "2h", "1e19 FLOPs", "5 epochs", "2B tokens".
    """
    from bedplate.pretrain.loop import pretrain
    from bedplate.pretrain.settings import PretrainSettings

    given = {"data.corpus": corpus, "model.size": size, "run.budget": budget}
    resolved = load(PretrainSettings, path=recipe, overrides=overrides, given=given)
    with Run.open(to, "pretrain", resolved, listeners=(console,)) as opened:
        model = pretrain(resolved.value, opened)
        seconds = opened.seconds
    if model is None:
        console.say("stopped; the same command goes on from here")
    else:
        console.say(f"model in {model} after {format_seconds(seconds)}; try: bedplate generate {model}")
    console.data({"run": str(to), "model": None if model is None else str(model), "finished": model is not None})
