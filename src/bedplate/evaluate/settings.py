"""Settings of an evaluation. Whatever can change a number is written into the report as a condition.

    settings = load(EvaluateSettings, overrides=["limit=200"], given={"model": ..., "tasks": ...}).value
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bedplate.core.errors import ConfigError

Auto = Literal["auto"]


@dataclass(frozen=True)
class EvaluateSettings:
    """What is measured, on what, and how."""

    model: Path = Path("model")
    """The model folder to measure."""
    adapter: Path | None = None
    """An adapter that was made for it. None: the model itself."""
    tasks: tuple[str, ...] = ()
    """Names of tasks, or TOML files of your own."""
    data: Path = Path("data")
    """The folder with the files of the tasks: DATA/TASK, DATA/TASK.zip, or DATA itself. Nothing is fetched."""
    to: Path = Path("evaluations/new")
    """The run folder; the report is TO/report."""
    corpus: Path | None = None
    """A training corpus in which the examples are looked for: what shares a run of thirteen words counts as seen. None: nothing is looked for."""
    limit: int = 0
    """Most examples of each task, drawn evenly by the seed; 0: all."""
    shots: int | Auto = "auto"
    """Solved examples before each question of tasks that take any. auto: as many as the task is usually asked with."""
    template: Literal["raw", "chat", "auto"] = "auto"
    """How an answer is asked for: the prompt as it is, or as a turn of a conversation. auto: as the adapter was taught; raw for a base."""
    max_tokens: int | Auto = "auto"
    """Longest answer of tasks in which the model writes. auto: what the task usually allows."""
    code_seconds: float = 10.0
    """Time that a generated program may take."""
    code_memory_bytes: int = 1 << 30
    """Memory that a generated program may take."""
    positions: int = 4096
    """Positions scored at once, padding counted."""
    seed: int = 0
    """Of the draw of examples and of the resamples."""
    threads: int | Auto = "auto"
    """Processor threads. auto: all."""
    device: str = "auto"
    """cpu, cuda or cuda:1. auto: a GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the products in the network. auto: bfloat16 on a GPU, float32 on a processor."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ConfigError(f"limit = {self.limit} is below 0", "0 takes all examples")
        if self.shots != "auto" and self.shots < 0:
            raise ConfigError(f"shots = {self.shots} is below 0", "0 asks without solved examples")
        if self.max_tokens != "auto" and self.max_tokens < 1:
            raise ConfigError(f"max_tokens = {self.max_tokens} says nothing", 'give 1 or more, or "auto"')
        if self.code_seconds <= 0 or self.code_memory_bytes < 1 << 26:
            raise ConfigError("a generated program has no room", "code_seconds = 10 and code_memory_bytes = 1073741824 are usual")
        if self.positions < 1:
            raise ConfigError(f"positions = {self.positions} scores nothing", "4096 is usual")
