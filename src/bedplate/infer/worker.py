"""A worker: a base with one adapter, ready for its job.

    worker = Worker.load(Path("models/base"), Path("adapters/spam"))
    worker.predict(["You have won a prize"])[0].label
    worker.generate(["Summarise: ..."])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from bedplate.adapt.base import Base
from bedplate.adapt.examples import Row
from bedplate.adapt.loop import TASK, restore
from bedplate.adapt.tasks import Task
from bedplate.adapt.tasks.generate import Generate
from bedplate.core.artifact import verify
from bedplate.core.errors import ConfigError, DataError
from bedplate.infer.answers import Answers
from bedplate.model.formats import peft

Input = str | Mapping[str, Any] | Row
"""Text; or cells by the column names of the examples (text, messages, image as bytes or a path, ...); or a row of a table."""


class Worker:
    """What an adaptation made, put to work. It answers what its task answers: `predict` for labels and the like, `generate` for text."""

    def __init__(self, base: Base, task: Task) -> None:
        self.base, self.task = base, task

    @classmethod
    def load(cls, base: Path, adapter: Path, device: str = "cpu") -> Self:
        """From a model folder and an adapter folder; the digests of both are checked.

        Raises:
            DataError: the adapter was made for another base.
            IntegrityError: a digest does not hold.
        """
        if (adapter / peft.CONFIG).is_file() and not (adapter / TASK).is_file():
            raise DataError(f"{adapter} was made by PEFT and says nothing of its base", f"bring it in first: bedplate get {adapter} --base {base}")
        verify(adapter, "adapter")
        loaded = Base.load(base, device)
        return cls(loaded, restore(loaded, adapter))

    @cached_property
    def answers(self) -> Answers:
        """What computes; opened when it is first needed."""
        return Answers(self.base)

    def predict(self, inputs: Sequence[Input]) -> list[Any]:
        """An answer for each input, in order; its type is the task's (`classify`: Label).

        Args:
            inputs: texts, or cells by column name.
        Raises:
            ConfigError: the worker's task is to generate.
        """
        if isinstance(self.task, Generate):
            raise ConfigError("this worker generates", "call generate")
        return self.answers.predict(self.task, [self.task.encode(row, learn=False) for row in rows(inputs, "text")])

    def generate(self, inputs: Sequence[Input], *, max_tokens: int = 256, temperature: float = 0.0, seed: int = 0) -> list[str]:
        """An answer to each prompt or conversation, in order.

        Args:
            inputs: prompts, or cells by column name (prompt, messages, image, ...).
            max_tokens: most tokens of each answer.
            temperature: 0 takes the likeliest token.
            seed: equal seeds give equal answers.
        Raises:
            ConfigError: the worker's task is another.
        """
        if not isinstance(self.task, Generate):
            raise ConfigError(f"this worker's task is {self.task.name}", "call predict")
        ends = self.base.template.ends() if self.task.settings.data.template == "chat" else self.base.ends.ids.tolist()
        items = [self.task.encode(row, learn=False) for row in rows(inputs, "prompt")]
        return self.answers.texts([item.sequences[0] for item in items], ends, max_tokens, temperature=temperature, seed=seed)


def rows(inputs: Sequence[Input], column: str) -> list[Row]:
    """Inputs as rows of a table; a plain string is a cell of `column`."""
    return [one if isinstance(one, Row) else Row(n, {column: one} if isinstance(one, str) else dict(one), _here) for n, one in enumerate(inputs, 1)]


def _here(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}", "paths are taken from the working folder") from error
