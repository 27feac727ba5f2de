"""A task: a name, a kind, and how its files become examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.core.errors import DataError
from bedplate.evaluate.files import Files
from bedplate.evaluate.kinds import Example, Kind


@dataclass(frozen=True)
class Task:
    """Something that models are measured by."""

    name: str
    about: str
    """One line: what it asks, and which files it reads."""
    kind: Kind
    read: Callable[[Files, int], list[Example]]
    """Files, and how many solved examples stand before each question -> examples, each with an id of its own."""
    shots: int = 0
    """Solved examples that stand before each question unless asked otherwise."""
    folder: Path | None = None
    """Where its files are, whatever folder the user names for others."""


def cell(row: Mapping[str, Any], name: str, number: int, kind: type = str) -> Any:
    """A cell of a row.

    Raises:
        DataError: it is missing or of another type.
    """
    value = row.get(name)
    if name not in row or not isinstance(value, kind):
        hint = f"its columns are {', '.join(map(str, row)) or 'none'}; is it the file of this task?"
        raise DataError(f"row {number} has no {name!r} of type {kind.__name__}", hint)
    return value
