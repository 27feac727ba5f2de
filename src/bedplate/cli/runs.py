"""`bedplate runs`: list, watch, report, compare, doctor."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from bedplate.cli.app import Here
from bedplate.core.errors import DataError
from bedplate.core.narrate import number
from bedplate.core.run import run_state
from bedplate.core.units import format_seconds
from bedplate.report.log import RunLog

REFRESH_S = 1.0
"""Seconds between two looks at a run that is watched."""


def list_runs(folder: Path = Path("runs"), *, console: Here) -> None:
    """List the runs in a folder: state, kind, step, loss, age.

    Args:
        folder: where the runs are.
    """
    depths = ("events.jsonl", "*/events.jsonl", "*/*/events.jsonl")
    found = sorted({path.parent for pattern in depths for path in folder.glob(pattern)})
    if not found:
        start = "start one with `bedplate pretrain run --to runs/NAME`, or name the folder that holds runs"
        raise DataError(f"there is no run in {folder}", start)
    rows = [_row(RunLog.read(path), folder) for path in found]
    rows.sort(key=lambda row: row["age_s"] if row["age_s"] is not None else np.inf)
    shown = [(r["run"], r["state"], r["kind"], r["step"], r["steps"], r["loss"], _age(r["age_s"])) for r in rows]
    console.table(("run", "state", "kind", "step", "of", "loss", "age"), shown)
    console.data(rows)


def watch(run: Path, *, once: Annotated[bool, Parameter(negative=())] = False, console: Here) -> None:
    """Follow a run live until it ends.

    Args:
        run: the run's folder.
        once: show where it stands now and leave.
    """
    from bedplate.report.watch import Tail, view

    log = RunLog.read(run)
    if console.mode == "rich" and not once:
        from rich.live import Live

        with Live(view(log, time.time()), console=console.stderr, auto_refresh=False) as live:
            while log.state == "running":
                time.sleep(REFRESH_S)
                log = RunLog.read(run)
                live.update(view(log, time.time()), refresh=True)
    elif once:
        console.show(view(log, time.time()))
    else:
        tail = Tail(run / "events.jsonl")
        while True:
            state = run_state(run)  # asked before reading, so that nothing said before the end is missed
            for event in tail.new():
                console(event)
            if state != "running":
                break
            time.sleep(REFRESH_S)
        log = RunLog.read(run)
    console.data(_row(log, run.parent))


def report(run: Path, *, to: Path | None = None, console: Here) -> None:
    """Write a run's report: one HTML file that needs no network.

    Args:
        run: the run's folder.
        to: the file to write; report.html in the run's folder when left out.
    """
    from bedplate.report.html import write_report

    log = RunLog.read(run)
    path = to or run / "report.html"
    write_report(log, path)
    console.print(f"wrote {path}")
    console.data({"report": str(path), **_row(log, run.parent)})


def compare(*runs: Path, to: Path | None = None, loss: str = "loss", console: Here) -> None:
    """Compare runs: the settings that differ, and the loss at equal steps, tokens and time.

    Args:
        runs: the folders of two or more runs.
        to: an HTML file to write as well.
        loss: which loss: loss, or loss_text, loss_image and so on.
    """
    from bedplate.report.compare import compare as compare_runs

    comparison = compare_runs([RunLog.read(run) for run in runs], loss)
    settings = [(d.key, *(_cell(v) for v in d.values)) for d in comparison.differences]
    console.table(("setting", *comparison.names), settings, title="settings that differ")
    for part in comparison.parts:
        rows = [(format_seconds(at) if part.axis == "time" else round(at), *losses) for at, losses in part.rows]
        console.table((part.axis, *comparison.names), rows, title=f"{loss} at equal {part.axis}")
    if to is not None:
        from bedplate.report.html import write_comparison

        write_comparison(comparison, to)
        console.say(f"wrote {to}")
    console.data(comparison.to_json() | ({"report": str(to)} if to else {}))


def doctor(run: Path, *, console: Here) -> None:
    """Name the probable causes of a run's trouble, with the evidence and the change to make.

    Args:
        run: the run's folder.
    """
    from bedplate.report.doctor import diagnose

    log = RunLog.read(run)
    found = diagnose(log, time.time())
    lines = []
    for diagnosis in found:
        lines.append(f"{diagnosis.name} ({diagnosis.confidence:.0%} sure)")
        lines += [f"  evidence: {line}" for line in diagnosis.evidence]
        lines.append(f"  change:   {diagnosis.change}")
    console.print("\n".join(lines) or f"nothing looks wrong: {log.state}, {len(log.steps):,} steps looked at")
    console.data({"run": str(run), "state": log.state, "diagnoses": [vars(diagnosis) for diagnosis in found]})


def _row(log: RunLog, folder: Path) -> dict[str, Any]:
    """What a list tells about one run."""
    loss = log.column("loss")
    finite = loss[np.isfinite(loss)]
    last = number(log.events[-1].get("t")) if log.events else np.nan
    step, steps = (number(log.steps[-1].get(name)) if log.steps else np.nan for name in ("step", "steps"))
    return {
        "run": str(log.folder.relative_to(folder)) if log.folder != folder and log.folder.is_relative_to(folder) else log.name,
        "folder": str(log.folder),
        "state": log.state,
        "kind": log.kind,
        "step": int(step) if np.isfinite(step) else None,
        "steps": int(steps) if np.isfinite(steps) else None,
        "loss": float(finite[-min(20, len(finite)) :].mean()) if len(finite) else None,
        "age_s": round(max(time.time() - last, 0.0), 1) if np.isfinite(last) else None,
    }


def _age(seconds: float | None) -> str:
    return "" if seconds is None else format_seconds(seconds) if seconds < 86400 else f"{seconds / 86400:.0f} d"


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)
