"""Backends: from a model in the settings to the generator that answers for it. Each is imported only where it is asked for."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from bedplate.core.config import from_mapping
from bedplate.core.contracts import AdapterHost, Generator
from bedplate.core.errors import BedplateError, ConfigError, DataError, IntegrityError
from bedplate.serve.policy import Policy
from bedplate.serve.settings import ModelSettings, ServeSettings

T = TypeVar("T")


def open_models(settings: ServeSettings) -> dict[str, Generator]:
    """A generator for each model, its adapters registered.

    Raises:
        ConfigError: a model names no path, or adapters where there can be none.
        DataError: a model or an adapter cannot be read.
        IntegrityError: a digest does not hold, or others can read a key.
        ResourceError: a backend is not installed, or there is not enough memory.
    """
    opened: dict[str, Generator] = {}
    try:
        for name, model in settings.models.items():
            opened[name] = open_model(name, model)
    except BedplateError:
        close_all(opened)
        raise
    return opened


def open_model(name: str, model: ModelSettings) -> Generator:
    """One of them."""
    if not model.path:
        raise ConfigError(f"the model {name!r} has no path", f'[models.{name}] path = "models/{name}"')
    generator = BACKENDS[model.chosen](model)
    if model.adapters and not isinstance(generator, AdapterHost):
        generator.close()
        raise ConfigError(f"{name}: adapters do not go with the backend {model.chosen}", "serve the model from its folder, or merge the adapter into it")
    for adapter, folder in model.adapters.items():
        assert isinstance(generator, AdapterHost)
        try:
            generator.register(adapter, Path(folder))
        except BedplateError:
            generator.close()
            raise
    return generator


def open_places(policy: Policy, settings: ServeSettings) -> dict[str, Generator]:
    """A generator for each remote place of the routes; a place that names no model of its own is asked for ours by our names."""
    if policy.routes is None:
        return {}
    opened: dict[str, Generator] = {}
    for name, place in policy.routes.places.items():
        if place.where == "remote":
            ours = {adapter: adapter for model in settings.models.values() for adapter in model.adapters}
            named = ModelSettings(place.url, "remote", key_file=place.key_file, remote_model=place.worker or next(iter(settings.models), ""))
            opened[name] = remote(named, {place.worker: place.worker} if place.worker else ours, place.timeout_s)
    return opened


@contextmanager
def closing(generators: dict[str, Generator]) -> Iterator[dict[str, Generator]]:
    """The generators, closed at the end."""
    try:
        yield generators
    finally:
        close_all(generators)


def close_all(generators: Mapping[str, Generator]) -> None:
    """Close every one."""
    for generator in generators.values():
        generator.close()


def _native(model: ModelSettings) -> Generator:
    from bedplate.adapt.base import Base
    from bedplate.infer.engine import Engine
    from bedplate.infer.engine_settings import EngineSettings
    from bedplate.infer.native import Native

    settings = _settings(EngineSettings, model.options, context=model.context_tokens, most_running=model.side_by_side)
    return Native(Engine(Base.load(Path(model.path)), settings))


def _llama_cpp(model: ModelSettings) -> Generator:
    from bedplate.infer.backends.llama_cpp import LlamaCpp, Settings

    return LlamaCpp(Path(model.path), _settings(Settings, model.options, context_tokens=model.context_tokens, slots=model.side_by_side))


def _remote(model: ModelSettings) -> Generator:
    return remote(model, {})


def remote(model: ModelSettings, workers: Mapping[str, str], silent_s: float = 120.0) -> Generator:
    """An endpoint elsewhere.

    Args:
        model: its address, key and model.
        workers: name of a worker -> its name there.
        silent_s: longest time without a byte.
    """
    from bedplate.infer.backends.remote import Remote, Settings

    if model.key_file is not None:
        private(model.key_file)
    given = {"url": model.path, "model": model.remote_model, "workers": workers, "key_file": model.key_file, "silent_s": silent_s}
    return Remote(_settings(Settings, model.options, context_tokens=model.context_tokens, **given))


def _settings(cls: type[T], options: Mapping[str, Any], **given: Any) -> T:
    """Settings of a backend: what is given here where it says anything, the model's options, and the backend's own defaults."""
    return from_mapping(cls, {**{name: value for name, value in given.items() if value}, **options}, "options.")


BACKENDS: dict[str, Callable[[ModelSettings], Generator]] = {"native": _native, "llama.cpp": _llama_cpp, "remote": _remote}
"""Name -> how it is opened."""


def private(file: Path) -> None:
    """A file with a key is there, and its owner's alone.

    Raises:
        DataError: it is missing.
        IntegrityError: others can read it.
    """
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", "it holds the key for a remote endpoint, on one line") from error
    if mode & stat.S_IRWXO:
        raise IntegrityError(f"others can read {file}", f"chmod 600 {file}")
