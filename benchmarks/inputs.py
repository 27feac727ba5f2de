"""Real input for the benchmarks: the development data where it is, else what every Python installation has."""

from __future__ import annotations

import sysconfig
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SCRATCH = Path(__file__).resolve().parents[1] / "scratch"


def text_sources() -> tuple[list[str], str]:
    """(sources for `data build`, their name for the record): novels, or the standard library's sources."""
    novels = SHARED / "text" / "litbank.zip"
    if novels.exists():
        return [str(novels)], "litbank (36 novels, 25 MB)"
    return [sysconfig.get_paths()["stdlib"] + "/*.py"], "Python standard library"


def shared(name: str) -> Path | None:
    """A file of the development data, or None where it is missing."""
    path = SHARED / name
    return path if path.exists() else None
