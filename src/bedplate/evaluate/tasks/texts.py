"""Bits per byte of any text: Wikipedia articles as WikiText cuts them, or whole files."""

from __future__ import annotations

import re

from bedplate.core.errors import DataError
from bedplate.evaluate.files import Files
from bedplate.evaluate.kinds import Bits, Example
from bedplate.evaluate.tasks.task import Task

ARTICLE = re.compile(r"^ = [^=\n]+ = *$", re.MULTILINE)
"""The title of a WikiText article."""


def _read(files: Files, shots: int) -> list[Example]:
    text = files.text("test.txt", "*.txt")
    starts = [match.start() for match in ARTICLE.finditer(text)]
    if len(starts) > 1:
        parts = [text[start:end].strip() for start, end in zip(starts, [*starts[1:], len(text)])]
    else:
        parts = [part.strip() for part in re.split(r"\n\s*\n", text)]
    found = [Example(f"text/{number}", prompt=part) for number, part in enumerate(parts) if part]
    if not found:
        raise DataError("the text is empty", "give a test.txt with articles, or paragraphs with blank lines between them")
    return found


TEXTS = Task("wikitext2", "bits per byte of articles or paragraphs: test.txt or one *.txt", Bits(), _read)
