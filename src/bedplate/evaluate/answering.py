"""Kinds in which the model says something of its own: answers with one right form, code that is run, summaries."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from bedplate.core.errors import ConfigError, DataError
from bedplate.evaluate.kinds import Example, Job, Kind, Measure, Values, in_order
from bedplate.evaluate.sandbox import Limits, check_confinement, run_program
from bedplate.evaluate.settings import EvaluateSettings
from bedplate.evaluate.subject import Subject


@dataclass(frozen=True)
class Answering(Kind):
    """What these kinds share."""

    max_tokens: int = 256
    """Longest answer."""
    stops: tuple[str, ...] = ()
    """Texts before which an answer ends, where the prompt is asked as it is."""

    def resolved(self, settings: EvaluateSettings) -> Self:
        return self if settings.max_tokens == "auto" else replace(self, max_tokens=settings.max_tokens)

    def prepare(self, subject: Subject, examples: Sequence[Example]) -> Job:
        for example in examples:
            if not isinstance(example.answer, str):
                raise DataError(f"example {example.id} has no answer of text", "give the text that is wanted")
        stops = () if subject.template == "chat" else self.stops

        def judge(part: Sequence[int]) -> list[Values]:
            said = subject.answers([examples[i].prompt for i in part], self.max_tokens, stops)
            return [self.values(examples[i], answer) for i, answer in zip(part, said)]

        return Job(in_order(len(examples)), judge)

    @abstractmethod
    def values(self, example: Example, said: str) -> dict[str, Any]:
        """What an answer is worth."""


@dataclass(frozen=True)
class Answer(Answering):
    """An answer that must be the wanted one, once it is extracted: nothing is guessed from what lies around it."""

    measures: ClassVar = (Measure("exact_match", "share", ("right",)), Measure("in_form", "share", ("in_form",)))

    extract: str = ""
    """A pattern whose first group is the answer, such as `#### (-?[0-9.,]+)`. Empty: the whole text, without white space around it."""

    def values(self, example: Example, said: str) -> dict[str, Any]:
        found, wanted = self.final(said), self.final(example.answer)
        return {"right": found is not None and found == (wanted if wanted is not None else example.answer.strip()), "in_form": found is not None, "said": said}

    def final(self, text: str) -> str | None:
        """The extracted answer; numbers lose their commas and a full stop. None: it is not in the form."""
        if not self.extract:
            return text.strip() or None
        match = re.search(self.extract, text)
        if match is None:
            return None
        found = (match[1] if match.re.groups else match[0]).strip()
        return found.replace(",", "").removesuffix(".") if re.fullmatch(r"-?[\d.,]+", found) else found


@dataclass(frozen=True)
class Code(Answering):
    """A program that is run, confined, with the tests of its example: whether the first one written passes them all."""

    measures: ClassVar = (Measure("pass_at_1", "share", ("right",)),)

    limits: Limits = field(default_factory=Limits)

    def resolved(self, settings: EvaluateSettings) -> Self:
        limits = Limits(settings.code_seconds, settings.code_memory_bytes)
        return replace(super().resolved(settings), limits=limits)

    def prepare(self, subject: Subject, examples: Sequence[Example]) -> Job:
        check_confinement()
        return super().prepare(subject, examples)

    def values(self, example: Example, said: str) -> dict[str, Any]:
        outcome = run_program(self.program(example, said), self.limits)
        return {"right": outcome.passed, "reason": outcome.reason, "detail": outcome.detail, "said": said}

    def program(self, example: Example, said: str) -> str:
        """The whole program: what was said, in its place, and the tests (`answer`) behind it."""
        head = str(example.cells.get("head", ""))
        fenced = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", said, re.DOTALL)
        code = fenced[1] if fenced else said
        entry = example.cells.get("entry_point")
        alone = entry and re.search(rf"^def {re.escape(str(entry))}\b", code, re.MULTILINE)
        imports = "\n".join(line for line in head.splitlines() if re.match(r"(from|import) ", line))
        return f"{imports if alone else head}{chr(10) if alone else ''}{code}\n{example.answer}\n"


@dataclass(frozen=True)
class Summary(Answering):
    """A text that should say what a reference says: ROUGE, with stems, as the public package counts it."""

    measures: ClassVar = tuple(Measure(name, "mean", (name,)) for name in ("rouge1", "rouge2", "rougeL"))

    def prepare(self, subject: Subject, examples: Sequence[Example]) -> Job:
        rouge_scorer()
        return super().prepare(subject, examples)

    def values(self, example: Example, said: str) -> dict[str, Any]:
        found = rouge_scorer().score(example.answer, said)
        return {**{name: float(found[name].fmeasure) for name in ("rouge1", "rouge2", "rougeL")}, "said": said}


def rouge_scorer() -> Any:
    """The counter of the package rouge-score.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ConfigError("summaries are scored by the package rouge-score, which is not here", "pip install 'bedplate[evaluate]'") from error
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
