"""`bedplate data trace`: the documents that a training step saw."""

from __future__ import annotations

from pathlib import Path

from bedplate.cli.app import Here


def trace(run: Path, *, step: int, corpus: Path | None = None, console: Here) -> None:
    """List the documents that a training step saw, with file and digest.

    Args:
        run: a run folder.
        step: which step, from 1.
        corpus: where the corpus is now, when it was moved since.
    """
    from bedplate.pretrain.trace import trace as trace_step

    found = trace_step(run, step, corpus)
    rows = [(d.row, d.component, f"{d.source} {d.member}".strip(), f"{d.start}..{d.end}", d.sha256[:16]) for d in found]
    console.table(("row", "component", "file", "positions", "sha256"), rows, title=f"step {step} of {run}")
    console.data([d._asdict() for d in found])
