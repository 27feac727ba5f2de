"""`bedplate serve`: answers over HTTP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from bedplate.cli.app import Here, ModelFolder, Overrides


def serve(
    model: ModelFolder | None = None,
    *,
    adapter: tuple[str, ...] = (),
    name: str = "",
    settings: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    keys: Path | None = None,
    overrides: Overrides = (),
    console: Here,
) -> None:
    """Answer over HTTP for a model and its adapters. SIGTERM ends what is under way and stops, SIGHUP reads the settings again.

    Args:
        model: a model folder, the name of a fetched model, or a GGUF file, in place of the models in the settings.
        adapter: an adapter of it, as name=folder; may be repeated.
        name: what clients call the model; by default what its folder is called.
        settings: a TOML file.
        host: address to listen on; any other than this machine's own needs keys.
        port: TCP port.
        keys: the keys file that `bedplate serve key add` writes.
    """
    from bedplate.core.config import load
    from bedplate.core.errors import ConfigError
    from bedplate.infer.native import Native
    from bedplate.serve.backends import closing, open_models, open_places
    from bedplate.serve.gateway import Gateway, create_app
    from bedplate.serve.listen import run
    from bedplate.serve.policy import Policy
    from bedplate.serve.settings import ServeSettings

    given: dict[str, Any] = {"listen.host": host, "listen.port": port, "keys": keys}
    if model is not None:
        given["models"] = {name or _called(model): {"path": str(model), "adapters": _adapters(adapter)}}
    elif adapter or name:
        raise ConfigError("an adapter or a name was given without its model", "bedplate serve MODEL --adapter name=folder")

    def reread() -> ServeSettings:
        return load(ServeSettings, path=settings, overrides=overrides, given=given).value

    now = reread()
    if not now.models:
        raise ConfigError("there is nothing to serve", "bedplate serve MODEL, or [models.NAME] in the settings")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    with closing(open_models(now)) as generators, closing(open_places(Policy.read(now), now)) as places:
        gateway = Gateway(now, generators, places)
        gateway.reread = reread
        names = ", ".join(target.name for target in gateway.models.all())

        def ready(address: str) -> None:
            console.say(f"{names} at {address}/v1")
            for called, generator in generators.items():
                if isinstance(generator, Native):
                    console.say(f"{called} is computed by {generator.computed_by}")
            if gateway.reception.open:
                console.say("there are no keys: anybody on this machine may ask for anything")
            console.data({"address": address, "models": [target.name for target in gateway.models.all()]})

        run(gateway, create_app(gateway), ready)
    console.say("stopped; nothing was under way")


def _called(model: Path) -> str:
    """What a model is called, from where it lies."""
    return model.stem if model.suffix == ".gguf" else model.resolve().name


def _adapters(given: tuple[str, ...]) -> dict[str, str]:
    from bedplate.core.errors import ConfigError

    found: dict[str, str] = {}
    for one in given:
        called, equals, folder = one.partition("=")
        if not equals or not called or not folder or called in found:
            raise ConfigError(f"--adapter {one!r} is not name=folder, or its name is given twice", "--adapter triage=adapters/triage")
        found[called] = folder
    return found
