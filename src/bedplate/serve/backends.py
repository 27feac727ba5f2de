"""Backends: from a model in the settings to the generator that answers for it. Each is imported only where it is asked for."""

from __future__ import annotations

import importlib
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bedplate.core.contracts import AdapterHost, Generator
from bedplate.core.errors import BedplateError, ConfigError, DataError, IntegrityError, ResourceError
from bedplate.serve.policy import Policy
from bedplate.serve.settings import ModelSettings, ServeSettings


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


def open_places(policy: Policy) -> dict[str, Generator]:
    """A generator for each remote place of the routes."""
    if policy.routes is None:
        return {}
    opened: dict[str, Generator] = {}
    for name, place in policy.routes.places.items():
        if place.where == "remote":
            opened[name] = _remote(ModelSettings(place.url, "remote", key_file=place.key_file, remote_model=place.worker), place.timeout_s)
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
    from bedplate.infer.native import Native

    engine = _module("bedplate.infer.engine", "the native engine")
    settings = _module("bedplate.infer.engine_settings", "the native engine")
    given = {name: value for name, value in (("context", model.context_tokens), ("most_running", model.side_by_side)) if value}
    generator: Generator = Native(engine.Engine(Base.load(Path(model.path)), settings.EngineSettings(**given)))
    return generator


def _llama_cpp(model: ModelSettings) -> Generator:
    backend = _module("bedplate.infer.backends.llama_cpp", "llama.cpp")
    given = {name: value for name, value in (("context_tokens", model.context_tokens), ("slots", model.side_by_side)) if value}
    generator: Generator = backend.LlamaCpp(Path(model.path), backend.Settings(**given))
    return generator


def _remote(model: ModelSettings, timeout_s: float = 60.0) -> Generator:
    backend = _module("bedplate.infer.backends.remote", "the remote backend")
    key = "" if model.key_file is None else secret(model.key_file)
    generator: Generator = backend.Remote(model.path, backend.Settings(model=model.remote_model, key=key, timeout_s=timeout_s))
    return generator


BACKENDS: dict[str, Callable[[ModelSettings], Generator]] = {"native": _native, "llama.cpp": _llama_cpp, "remote": _remote}
"""Name -> how it is opened."""


def secret(file: Path) -> str:
    """What a file that only its owner can read says, without the end of its line.

    Raises:
        DataError: it is missing.
        IntegrityError: others can read it.
    """
    try:
        if file.stat().st_mode & stat.S_IRWXO:
            raise IntegrityError(f"others can read {file}", f"chmod 600 {file}")
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read", "it holds the key for a remote endpoint, on one line") from error


def _module(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ResourceError(f"{what} is not here: {error}", "pip install 'bedplate[serve,edge]'") from error
