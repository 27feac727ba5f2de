"""Adapters that an engine knows by name, read and checked when they are registered. Which of them it can compute with: adapter_memory.py."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bedplate.adapt import methods
from bedplate.adapt.base import Base
from bedplate.adapt.loop import TASK, task_of
from bedplate.adapt.settings import AdaptSettings
from bedplate.adapt.tasks import Task
from bedplate.adapt.tasks.generate import Generate
from bedplate.core.artifact import read_manifest, verify
from bedplate.core.errors import ConfigError, DataError, IntegrityError, did_you_mean
from bedplate.core.files import sha256_bytes, sha256_file
from bedplate.model.formats import peft
from bedplate.model.projection import Adapter


class Registered(NamedTuple):
    """An adapter that the engine holds."""

    task: Task
    digest: str
    """Of its manifest; of its files, where PEFT made it and there is none."""
    folder: Path
    changes: bool
    """Whether it changes the base; a probe does not."""


class Adapters:
    """Names and what stands behind them. Safe to use from several threads."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.registered: dict[str, Registered] = {}
        self._lock = threading.Lock()

    def register(self, name: str, folder: Path) -> Registered:
        """Read what an adapter is for, and check that it fits.

        Args:
            name: to ask for it by.
            folder: what `bedplate adapt` or PEFT wrote.
        Raises:
            ConfigError: the name is taken, or it changed weights that a batch must share.
            DataError: it was made for another base.
            IntegrityError: a digest does not hold.
        """
        if not name or name in self.registered:
            raise ConfigError(f"an adapter is called {name!r} already" if name else "an adapter needs a name", "give it a name of its own")
        if (folder / TASK).exists():
            digest = _digest(folder)
            task, method = task_of(self.base, folder)
            if method.name == "full":
                hint = f"`bedplate merge` makes a model of {folder}; serve that on its own"
                raise ConfigError(f"{folder} changed all weights, so it cannot share a batch with the base", hint)
            if task.head is not None:
                methods.load_head(task.head, folder)
                task.head.requires_grad_(False)
            task.recall(folder)
            made = Registered(task, digest, folder, method.name != "probe")
        else:
            peft.read_config(folder)
            made = Registered(Generate(self.base, AdaptSettings()), _digest(folder), folder, True)
        if made.changes:
            self.read(made)  # an adapter that does not fit is told now, not when somebody asks for it
        with self._lock:
            if name in self.registered:
                raise ConfigError(f"an adapter is called {name!r} already", "give it a name of its own")
            self.registered = {**self.registered, name: made}
        return made

    def find(self, name: str) -> Registered:
        """What is registered under a name.

        Raises:
            ConfigError: nothing is.
        """
        if name not in self.registered:
            raise ConfigError(f"there is no adapter {name!r}", did_you_mean(name, self.registered))
        return self.registered[name]

    def unregister(self, name: str) -> None:
        """Forget a name. Requests under way end with it; what was packed is forgotten when the next one is."""
        with self._lock:
            self.find(name)
            self.registered = {other: one for other, one in self.registered.items() if other != name}

    def read(self, one: Registered) -> Mapping[str, Adapter]:
        """Its changes of the base, by the projection's name; any thread.

        Raises:
            DataError: it holds numbers that are none.
            IntegrityError: it cannot be read, or is not what was registered.
        """
        read = peft.read(one.folder, self.base.model, scores=isinstance(one.task.head, methods.Score))
        if _digest(one.folder) != one.digest:
            raise IntegrityError(f"{one.folder} has changed since it was registered", "unregister it, and register it anew")
        for name, adapter in read.items():
            if not all(bool(part.isfinite().all()) for part in adapter.parameters()):
                raise DataError(f"{one.folder}: the adapter of {name} holds numbers that are not finite", "it learned nothing; adapt again at a lower rate")
        return read


def _digest(folder: Path) -> str:
    """Of everything that an adapter is."""
    if (folder / TASK).exists():
        verify(folder, "adapter")
        return read_manifest(folder, "adapter").digest
    try:
        return sha256_bytes("".join(sha256_file(folder / name) for name in (peft.CONFIG, peft.WEIGHTS)).encode())
    except OSError as error:
        hint = "save it with safe_serialization=True" if (folder / "adapter_model.bin").exists() else "restore the adapter folder from a copy"
        raise IntegrityError(f"{folder} cannot be read: {error}", hint) from error
