"""`bedplate pretrain`: from a corpus to a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bedplate.cli.app import Here, Overrides
from bedplate.core.config import load
from bedplate.core.run import Follower, Run
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
        budget: what may be spent: "20m", "2h", "1e19 FLOPs", "5 epochs", "2B tokens", "$50".
    """
    from bedplate.infer.sampler import sampler
    from bedplate.pretrain.loop import check_folder, pretrain
    from bedplate.pretrain.parallel import leads
    from bedplate.pretrain.settings import PretrainSettings

    given = {"data.corpus": corpus, "model.size": size, "run.budget": budget}
    resolved = load(PretrainSettings, path=recipe, overrides=overrides, given=given)
    if not leads():  # torchrun started several: the first of them tells and writes
        with Follower(to, "pretrain") as followed:
            pretrain(resolved.value, followed)
        return
    with Run.open(to, "pretrain", resolved, listeners=(console,), check=partial(check_folder, resolved.value)) as opened:
        model = pretrain(resolved.value, opened, sampler(resolved.value.data.corpus))
        seconds = opened.seconds
    if model is None:
        console.stopped({"run": str(to), "model": None, "finished": False})
    console.say(f"model in {model} after {format_seconds(seconds)}; try: bedplate generate {model}")
    console.data({"run": str(to), "model": str(model), "finished": True})


def plan(
    recipe: Path | None = None,
    *,
    corpus: Path | None = None,
    size: str | None = None,
    budget: str | None = None,
    measure: float = 10.0,
    overrides: Overrides = (),
    console: Here,
) -> None:
    """Parameters, memory, time and FLOPs of a run; trains nothing.

    Args:
        recipe: a settings file; see recipes/ and docs/settings.md.
        corpus: the corpus folder.
        size: a preset: nano, micro, mini, small, base, 1b, 3b, 8b; or auto.
        budget: what may be spent: "20m", "2h", "1e19 FLOPs", "5 epochs", "2B tokens", "$50".
        measure: seconds of made-up steps to measure this machine with.
    """
    from bedplate.core.units import format_bytes, format_count
    from bedplate.data.corpus import Corpus
    from bedplate.pretrain.plan import plan as make_plan
    from bedplate.pretrain.settings import PretrainSettings

    settings = load(PretrainSettings, path=recipe, overrides=overrides, given={"data.corpus": corpus, "model.size": size, "run.budget": budget}).value
    made = make_plan(settings, Corpus.open(settings.data.corpus), measure)
    run_settings, model = made.settings.run, made.settings.model
    shares = ", ".join(f"{name} {share:.0%}" for name, share in made.shares.items())
    rows = [
        ("model", f"{format_count(made.parameters.total)} parameters ({model.size}, context {model.context})"),
        ("data", f"{format_count(made.positions)} positions = {made.positions_per_parameter:.2g} a parameter, {made.epochs:.2g} epochs at most; {shares}"),
        ("steps", f"{run_settings.steps} of {run_settings.rows_per_step} rows, {run_settings.rows_per_micro} at once"),
        ("memory", f"{format_bytes(made.memory.total)} of {format_bytes(made.free_bytes)} free; largest batch that fits: {made.largest_rows} rows"),
    ]
    if made.speed is not None and made.seconds is not None and made.seconds_range is not None:
        low, high = map(format_seconds, made.seconds_range)
        rows.append(("compute", f"{made.flops:.3g} FLOPs at {made.flops / made.seconds:.3g} FLOP/s"))
        rows.append(("time", f"{format_seconds(made.seconds)} ({low} .. {high}) at {format_count(made.speed.positions_per_s)} positions/s"))
    else:
        rows.append(("compute", f"{made.flops:.3g} FLOPs"))
        rows.append(("time", "not measured: not even one row fits this machine's free memory"))
    console.table(("", "plan"), rows)
    console.table(("setting", "value", "because"), [(c.what, c.value, c.reason) for c in made.choices])
    console.data(
        {
            "parameters": made.parameters.total,
            "size": model.size,
            "context": model.context,
            "steps": run_settings.steps,
            "rows_per_step": run_settings.rows_per_step,
            "positions": made.positions,
            "positions_per_parameter": made.positions_per_parameter,
            "epochs": made.epochs,
            "memory_bytes": made.memory.total,
            "free_bytes": made.free_bytes,
            "largest_rows": made.largest_rows,
            "flops": made.flops,
            "positions_per_s": None if made.speed is None else made.speed.positions_per_s,
            "seconds": made.seconds,
            "seconds_range": made.seconds_range,
            "chosen": [{"what": c.what, "value": c.value, "reason": c.reason} for c in made.choices],
        }
    )
