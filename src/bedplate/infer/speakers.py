"""Who answers: the base in a model folder, or one of its adapters, over one engine.

    with Speakers(Path("models/base"), EngineSettings()) as speakers:
        generator, worker = speakers.choose(Path("adapters/manners"))

Adapters are names within the engine, so changing to another costs what reading it costs. One that changed all weights cannot share the engine: its
weights are another model, which gets an engine of its own in the place of the first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from bedplate.adapt.base import Base
from bedplate.adapt.loop import TASK, task_of
from bedplate.adapt.tasks import Task
from bedplate.adapt.tasks.generate import Generate
from bedplate.core.errors import ConfigError
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.native import Native
from bedplate.infer.worker import Worker


class Speakers:
    """One at a time; an engine is opened when it is first needed."""

    def __init__(self, model: Path, settings: EngineSettings) -> None:
        """Nothing is read yet.

        Args:
            model: a model folder.
            settings: of every engine that is opened.
        """
        self.model, self.settings = model, settings
        self._base: Base | None = None
        """Without an adapter, where that is what the engine computes with."""
        self._engine: Engine | None = None
        self._worker = ""
        self._count = 0

    def choose(self, adapter: Path | None) -> tuple[Native, str]:
        """The generator to ask, and the worker's name in it. Where it raises, who answered before still does.

        Args:
            adapter: a folder made for the model, by `bedplate adapt` or PEFT; None: the base as it is.
        Raises:
            ConfigError: the adapter learned another job.
            DataError: it was made for another base.
            IntegrityError: a digest does not hold.
            ResourceError: there is not enough memory.
        """
        base = self._base or Base.load(self.model)
        if adapter is not None and (adapter / TASK).exists():
            task, method = task_of(base, adapter)
            _talks(task, self.model, adapter)
            if method.name == "full":
                self._use(Engine(Worker.load(self.model, adapter).base, self.settings))
                self._base, self._worker = None, ""
                return Native(self.engine), ""
        engine = Engine(base, self.settings) if self._engine is None or self._base is None else self._engine
        try:
            worker = self._registered(engine, adapter) if adapter is not None else ""
        except BaseException:
            if engine is not self._engine:
                engine.close()
            raise
        if engine is not self._engine:
            self._use(engine)
        elif self._worker:
            engine.unregister(self._worker)
        self._base, self._worker = base, worker
        return Native(engine), worker

    @property
    def engine(self) -> Engine:
        """That computes what the last chosen says."""
        assert self._engine is not None, "nobody was chosen yet"
        return self._engine

    def close(self) -> None:
        """End what is under way."""
        if self._engine is not None:
            self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _use(self, engine: Engine) -> None:
        """In the place of the one so far."""
        self.close()
        self._engine = engine

    def _registered(self, engine: Engine, adapter: Path) -> str:
        """A name for what the folder holds now: it may have learned more since it was read last."""
        self._count += 1
        name = f"{adapter} {self._count}"
        engine.register(name, adapter)
        return name


def _talks(task: Task, model: Path, adapter: Path) -> None:
    if not isinstance(task, Generate):
        raise ConfigError(f"{adapter} learned to {task.name}, not to talk", f"ask it with `bedplate predict {model} {adapter} FILE`")
