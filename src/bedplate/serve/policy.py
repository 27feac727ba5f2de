"""Policies in force: guards and routes around the generators, read from their files as a whole. A gateway replaces them as a whole, too.

    policy = Policy.read(settings)
    generators = policy.around({"smollm2": engine}, remotes, budget)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bedplate.core.contracts import Generator
from bedplate.core.errors import ConfigError
from bedplate.serve import guard_rules, routes
from bedplate.serve.budget import Budget
from bedplate.serve.guard_rules import GuardSettings
from bedplate.serve.guarded import Guarded, Guards
from bedplate.serve.receipts import policy_digest
from bedplate.serve.router import Router
from bedplate.serve.routes import RoutesSettings
from bedplate.serve.settings import ServeSettings

OWN = "local"
"""A local place of this name is whichever base was asked for."""


@dataclass(frozen=True)
class Policy:
    """What is checked, and where answers may come from."""

    guards: GuardSettings = field(default_factory=GuardSettings)
    routes: RoutesSettings | None = None
    """None: every base answers itself."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Name -> digest of the settings in force, for receipts."""

    @classmethod
    def read(cls, settings: ServeSettings) -> Policy:
        """As the settings' files have it.

        Raises:
            ConfigError: a file is missing or malformed, or a local place is none.
        """
        guards = GuardSettings() if settings.guards is None else guard_rules.read(settings.guards)
        routing = None if settings.routes is None else routes.read(settings.routes)
        if routing is not None:
            _stays_here(routing, settings)
        named = {"guards": guards, "routes": routing, "redact": settings.redact, "limits": settings.limits}
        return cls(guards, routing, {name: policy_digest(value) for name, value in named.items() if value is not None})

    @property
    def name(self) -> str:
        """Of all of it together; what is cached under one policy is not used under another."""
        return policy_digest(self.digests)[:16]

    @property
    def addresses(self) -> dict[str, tuple[str, ...]]:
        """Remote place -> where it is and how it is asked."""
        found = {} if self.routes is None else {name: self.routes.places[name] for name in self.routes.remote}
        return {name: (place.url, place.worker, str(place.key_file), str(place.timeout_s)) for name, place in found.items()}

    def around(self, generators: Mapping[str, Generator], remotes: Mapping[str, Generator], budget: Budget | None) -> dict[str, Generator]:
        """The generators, each behind routes and guards.

        Args:
            generators: name of a base -> its generator.
            remotes: name of a remote place -> its generator.
            budget: what was spent at them.
        Raises:
            ConfigError: a place of the routes has no generator; a rule cannot be kept.
        """
        guards = Guards(guard_rules.rule_guards(self.guards, "prompt"), guard_rules.rule_guards(self.guards, "answer"))
        return {name: self._around(name, generators, remotes, budget, guards) for name in generators}

    def _around(self, name: str, generators: Mapping[str, Generator], remotes: Mapping[str, Generator], budget: Budget | None, guards: Guards) -> Generator:
        made = generators[name]
        if self.routes is not None:
            places = {}
            for place, settings in self.routes.places.items():
                found = remotes.get(place) if settings.where == "remote" else generators.get(place, made if place == OWN else None)
                if found is None:
                    hint = f"call it {OWN!r} for the base that is asked, or one of: {', '.join(generators)}"
                    raise ConfigError(f"nothing answers for the place {place!r} of the routes", hint)
                places[place] = found
            made = Router(self.routes, places, budget=budget)
        return Guarded(made, guards) if guards.prompt or guards.answer else made


def _stays_here(routing: RoutesSettings, settings: ServeSettings) -> None:
    """What a place that is called local hands on must not leave.

    Raises:
        ConfigError: it would.
    """
    for place in routing.places.keys() - routing.remote:
        for name in [place] if place in settings.models else settings.models if place == OWN else []:
            if not (model := settings.models[name]).here:
                hint = f'write [places.{name}] with where = "remote", url and worker, and say in data.may_leave what may go there'
                raise ConfigError(f"the place {place!r} is local, but the model {name!r} answers at {model.path}", hint)
