"""Reload: changed settings taken over while answers go on. First everything is read and checked, then it is put in place; what is refused changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bedplate.core.config import flatten, to_mapping
from bedplate.core.contracts import AdapterHost, Generator
from bedplate.core.errors import ConfigError, StateError
from bedplate.serve.policy import Policy
from bedplate.serve.redact import Redactor
from bedplate.serve.settings import ServeSettings

if TYPE_CHECKING:
    from bedplate.serve.gateway import Gateway

AT_START = ("listen", "keys", "audit", "signing_key", "auditing", "oidc", "spent", "session_s")
"""Settings that are read at the start alone; so are new bases."""


def reload(gateway: Gateway, fresh: ServeSettings) -> list[str]:
    """Take settings over; what changed, in words. Not for the event loop: adapters are read from disk.

    Args:
        gateway: the running one.
        fresh: what the settings are now.
    Raises:
        ConfigError: they cannot be kept; the old ones stay.
        StateError: an adapter came or went, and its generator cannot do that while it runs.
    """
    told = _at_start(gateway.settings, fresh)
    policy = Policy.read(fresh)
    told += _adapters(gateway, fresh)
    if policy.digests != gateway.policy.digests:
        gateway.models.change(policy.around(gateway.bases, gateway.remotes, gateway.budget))
        told += sorted(f"{name}: another" for name, digest in policy.digests.items() if gateway.policy.digests.get(name) != digest)
        told += sorted(f"{name}: none" for name in gateway.policy.digests.keys() - policy.digests.keys())
        gateway.policy = policy
    else:
        gateway.models.refresh()
    if gateway.reception.ring is not None and gateway.reception.ring.refresh():
        told.append("keys: read again")
    gateway.limiter.change(fresh.limits)
    gateway.redactor = Redactor(fresh.redact)
    kept = {name: getattr(gateway.settings, name) for name in AT_START}
    gateway.settings = replace(fresh, **kept)
    return told


def _at_start(old: ServeSettings, fresh: ServeSettings) -> list[str]:
    """What is different and stays so until the next start."""
    told = []
    before = dict(flatten(to_mapping(old)))
    for key, value in flatten(to_mapping(fresh)):
        if key.split(".")[0] in AT_START and before.get(key) != value:
            told.append(f"{key}: from the next start on")
    told += [f"models.{name}: from the next start on" for name in sorted(old.models.keys() ^ fresh.models.keys())]
    return told


def _adapters(gateway: Gateway, fresh: ServeSettings) -> list[str]:
    """Adapters that came and went, by base."""
    told = []
    for base in gateway.bases:
        before = gateway.settings.models[base].adapters if base in gateway.settings.models else {}
        now = fresh.models[base].adapters if base in fresh.models else before
        gone = [name for name, folder in before.items() if now.get(name) != folder]
        come = [name for name, folder in now.items() if before.get(name) != folder]
        taken = {target.name for target in gateway.models.all()} - set(gone)
        if clash := sorted(taken & set(come)):
            raise ConfigError(f"two models are called {clash[0]!r}", "give one of them another name")
        if gone or come:
            _swap(gateway.bases[base], base, gone, {name: now[name] for name in come})
        told += [f"{name}: gone" for name in gone if name not in come] + [f"{name}: {now[name]}" for name in come]
    return told


def _swap(generator: Generator, base: str, gone: list[str], come: dict[str, str]) -> None:
    if not isinstance(generator, AdapterHost):
        raise StateError(f"the adapters of {base} cannot change while it runs", "start the gateway again")
    for name in gone:
        generator.unregister(name)
    for name, folder in come.items():
        generator.register(name, Path(folder))
