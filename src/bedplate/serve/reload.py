"""Reload: changed settings taken over while answers go on. First everything is read and checked, then it is put in place; what is refused changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bedplate.core.config import flatten, to_mapping
from bedplate.core.contracts import AdapterHost
from bedplate.core.errors import ConfigError, StateError
from bedplate.serve.budget import Budget
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
    for name, address in policy.addresses.items():
        if gateway.places.get(name, address) != address:
            raise StateError(f"the place {name!r} of the routes has another address, model, key or patience now", "start the gateway again")
    routes, budget = policy.routes, gateway.budget
    if routes is not None and budget is None:
        budget = Budget(routes.budget, gateway.settings.spent)
    another = policy.digests != gateway.policy.digests
    generators = policy.around(gateway.bases, gateway.remotes, budget) if another else gateway.models.generators
    steps, changed = _adapters(gateway, fresh)
    with _all_or_nothing(steps):
        gateway.models.change(generators)
    told += changed
    if another:
        told += sorted(f"{name}: another" for name, digest in policy.digests.items() if gateway.policy.digests.get(name) != digest)
        told += sorted(f"{name}: none" for name in gateway.policy.digests.keys() - policy.digests.keys())
        gateway.policy, gateway.budget = policy, budget
        if routes is not None and budget is not None:
            budget.change(routes.budget)
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


@dataclass(frozen=True)
class _Step:
    """An adapter that comes, or one that goes."""

    host: AdapterHost
    name: str
    folder: Path
    comes: bool

    def take(self, back: bool = False) -> None:
        """Do it, or undo it."""
        if self.comes != back:
            self.host.register(self.name, self.folder)
        else:
            self.host.unregister(self.name)


def _adapters(gateway: Gateway, fresh: ServeSettings) -> tuple[list[_Step], list[str]]:
    """Adapters that came and went, by base; and the same in words."""
    steps: list[_Step] = []
    told = []
    for base in gateway.bases:
        before = gateway.settings.models[base].adapters if base in gateway.settings.models else {}
        now = fresh.models[base].adapters if base in fresh.models else before
        gone = [name for name, folder in before.items() if now.get(name) != folder]
        come = [name for name, folder in now.items() if before.get(name) != folder]
        taken = {target.name for target in gateway.models.all()} - set(gone)
        if clash := sorted(taken & set(come)):
            raise ConfigError(f"two models are called {clash[0]!r}", "give one of them another name")
        host = gateway.bases[base]
        if (gone or come) and not isinstance(host, AdapterHost):
            raise StateError(f"the adapters of {base} cannot change while it runs", "start the gateway again")
        if isinstance(host, AdapterHost):
            steps += [_Step(host, name, Path(before[name]), comes=False) for name in gone]
            steps += [_Step(host, name, Path(now[name]), comes=True) for name in come]
        told += [f"{name}: gone" for name in gone if name not in come] + [f"{name}: {now[name]}" for name in come]
    return steps, told


@contextmanager
def _all_or_nothing(steps: list[_Step]) -> Iterator[None]:
    """Adapters come and go, and what stands in the block is done; where either fails, they are as they were."""
    taken: list[_Step] = []
    try:
        for step in steps:
            step.take()
            taken.append(step)
        yield
    except BaseException:
        for step in reversed(taken):
            step.take(back=True)
        raise
