"""Tasks of one's own: a TOML file that says what is done, and a JSONL file beside it with the examples.

    kind = "choose"
    file = "questions.jsonl"                     # {"question": "...", "options": ["a", "b"], "right": 1}
    prompt = "Question: {question}\\nAnswer:"
    choices = "options"
    answer = "right"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bedplate.core.config import load
from bedplate.core.errors import ConfigError, DataError
from bedplate.evaluate.answering import Answer, Summary
from bedplate.evaluate.files import Files
from bedplate.evaluate.kinds import Bits, Choose, Continue, Example, Kind
from bedplate.evaluate.tasks.task import Task, cell
from bedplate.evaluate.worker_kinds import Labels, Numbers, Order, Spans
from bedplate.evaluate.working import Label, Retrieve


@dataclass(frozen=True)
class OwnTaskSettings:
    """What a task's TOML file may say."""

    kind: Literal["bits", "choose", "continue", "answer", "summary", "label", "labels", "number", "order", "spans", "retrieve"]
    """bits: text; choose: likeliest of several continuations; continue: one continuation; answer, summary: the model writes; label, labels (any number
    of them), number, order (of texts), spans: what a worker says, of the task classify, regress, rank or extract; retrieve: nearest documents."""
    file: str
    """JSONL with the examples, beside the TOML file."""
    prompt: str = "{text}"
    """What stands before the answer; {column} is replaced by the cell. For bits it is the text, for retrieve the query."""
    answer: str = "answer"
    """Column of what is wanted: a text; for choose, the number of the right choice from 0, or its text; for labels, a list; for order,
    the number of the right text or a grade for each; for spans, a list of {start, end, label}; for retrieve, ids of documents or id -> grade."""
    choices: str | tuple[str, ...] = "choices"
    """For choose: column with the list of choices, or the same choices for all examples."""
    id: str = ""
    """Column with the name of an example. Empty: its number."""
    extract: str = ""
    """For answer: a pattern whose first group is what counts, such as "#### (-?[0-9.,]+)". Empty: all of it."""
    stops: tuple[str, ...] = ()
    """For answer and summary: texts before which the model's answer ends."""
    max_tokens: int = 256
    """For answer and summary: longest answer."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """For what a worker says: its column names where the file uses others, such as {text = "body"}."""
    documents: str = "documents.jsonl"
    """For retrieve: JSONL with the documents, each with id and text."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.extract)
        except re.error as error:
            raise ConfigError(f"extract = {self.extract!r} is no pattern: {error}", "see the regular expressions of Python") from error
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens = {self.max_tokens} says nothing", "256 is usual")


WORKED = ("label", "labels", "number", "order", "spans")
"""Kinds whose examples a worker reads by its own columns."""
KINDS: dict[str, Callable[[OwnTaskSettings], Kind]] = {
    "bits": lambda s: Bits(),
    "choose": lambda s: Choose(),
    "continue": lambda s: Continue(),
    "answer": lambda s: Answer(s.max_tokens, s.stops, s.extract),
    "summary": lambda s: Summary(s.max_tokens, s.stops),
    "label": lambda s: Label(),
    "labels": lambda s: Labels(),
    "number": lambda s: Numbers(),
    "order": lambda s: Order(),
    "spans": lambda s: Spans(),
    "retrieve": lambda s: Retrieve(),
}


def own_task(path: Path) -> Task:
    """The task of a TOML file; its name is the file's.

    Raises:
        ConfigError: the file is missing, or says something that no task knows.
    """
    settings = load(OwnTaskSettings, path=path).value
    return Task(path.stem, f"{settings.kind}: {settings.file}", KINDS[settings.kind](settings), lambda files, shots: _read(settings, files), folder=path.parent)


def _read(settings: OwnTaskSettings, files: Files) -> list[Example]:
    documents = {str(row.get("id", n)): cell(row, "text", n) for n, row in enumerate(files.rows(settings.documents))} if settings.kind == "retrieve" else {}
    return [_example(settings, files.task, n, row, documents) for n, row in enumerate(files.rows(settings.file), 1)]


def _example(settings: OwnTaskSettings, task: str, number: int, row: Mapping[str, Any], documents: Mapping[str, str]) -> Example:
    name = f"{task}/{cell(row, settings.id, number, object) if settings.id else number}"
    if settings.kind in WORKED:
        renamed = {column: row[theirs] for column, theirs in settings.columns.items() if theirs in row}
        return Example(name, answer=cell(row, settings.answer, number, object), cells={**row, **renamed})
    prompt = filled(settings.prompt, row, number)
    if settings.kind == "bits":
        return Example(name, prompt)
    wanted = cell(row, settings.answer, number, object)
    if settings.kind == "retrieve":
        graded = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted if isinstance(wanted, list) else [wanted], 1)
        return Example(name, prompt, cells={"documents": documents, "relevant": {str(key): float(grade) for key, grade in graded.items()}})
    if settings.kind == "choose":
        choices = tuple(map(str, settings.choices if isinstance(settings.choices, tuple) else cell(row, settings.choices, number, list)))
        if isinstance(wanted, str) and wanted not in choices:
            raise DataError(f"row {number}: the answer {wanted!r} is none of the choices", f"they are {', '.join(choices)}")
        return Example(name, prompt, choices, choices.index(wanted) if isinstance(wanted, str) else wanted)
    return Example(name, prompt, answer=str(wanted) if settings.kind != "continue" or str(wanted).startswith(" ") else f" {wanted}")


def filled(template: str, row: Mapping[str, Any], number: int) -> str:
    """A template with cells in place of {column}; other braces stay.

    Raises:
        DataError: there is no such column.
    """
    return re.sub(r"\{(\w+)\}", lambda match: str(cell(row, match[1], number, object)), template)
