"""Questions answered by likelihood: PIQA, CommonsenseQA, LAMBADA. Prompts are those of the public harness, so that numbers can be compared.

Sources: Bisk et al., PIQA (2020); Talmor et al., CommonsenseQA (2019), asked in cloze form; Paperno et al., LAMBADA (2016), as OpenAI cut it.
"""

from __future__ import annotations

from bedplate.core.errors import DataError
from bedplate.evaluate.files import Files
from bedplate.evaluate.kinds import Choose, Continue, Example
from bedplate.evaluate.tasks.task import Task, cell


def _piqa(files: Files, shots: int) -> list[Example]:
    rows, labels = files.rows("valid.jsonl"), files.text("valid-labels.lst").split()
    if len(rows) != len(labels) or not set(labels) <= {"0", "1"}:
        raise DataError(f"piqa: {len(rows)} questions and {len(labels)} labels do not fit", "take valid.jsonl and valid-labels.lst of one release")
    return [
        Example(f"piqa/{n}", f"Question: {cell(row, 'goal', n)}\nAnswer:", (cell(row, "sol1", n), cell(row, "sol2", n)), int(label))
        for n, (row, label) in enumerate(zip(rows, labels))
    ]


def _commonsenseqa(files: Files, shots: int) -> list[Example]:
    found = []
    for n, row in enumerate(files.rows("dev_rand_split.jsonl")):
        question = cell(row, "question", n, dict)
        choices = {cell(choice, "label", n): cell(choice, "text", n) for choice in cell(question, "choices", n, list)}
        if (key := cell(row, "answerKey", n)) not in choices:
            raise DataError(f"commonsenseqa: row {n} has no choice {key!r}", f"its choices are {', '.join(choices)}")
        prompt = f"Question: {cell(question, 'stem', n)}\nAnswer:"
        found.append(Example(f"commonsenseqa/{row.get('id', n)}", prompt, tuple(choices.values()), list(choices).index(key)))
    return found


def _lambada(files: Files, shots: int) -> list[Example]:
    found = []
    for n, row in enumerate(files.rows("lambada_test.jsonl")):
        context, _, word = cell(row, "text", n).rpartition(" ")
        found.append(Example(f"lambada/{n}", context, answer=f" {word}"))
    return found


PIQA = Task("piqa", "which of two ways works in the physical world: valid.jsonl and valid-labels.lst", Choose(), _piqa)
COMMONSENSEQA = Task("commonsenseqa", "common sense, five choices in cloze form: dev_rand_split.jsonl", Choose(), _commonsenseqa)
LAMBADA = Task("lambada", "the last word of a passage: lambada_test.jsonl", Continue(), _lambada)
