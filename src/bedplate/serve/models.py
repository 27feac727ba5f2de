"""Models as clients name them: each base by its own name, and each of its adapters by that adapter's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bedplate.core.contracts import Generator
from bedplate.core.errors import ConfigError, did_you_mean
from bedplate.core.files import sha256_bytes
from bedplate.core.generation import WorkerCard
from bedplate.serve.errors import Refusal


@dataclass(frozen=True)
class Target:
    """Who answers under a name."""

    name: str
    base: str
    """Name of the base; its own, where it is the base."""
    generator: Generator
    card: WorkerCard
    since: int
    """When it appeared; seconds since 1970."""

    @property
    def fingerprint(self) -> str:
        """Changes when the weights do."""
        return "fp_" + sha256_bytes(repr(sorted(self.card.digests.items())).encode())[:10]


class Models:
    """The names that can be asked for. Replaced as a whole, so that whoever looks sees old or new, never half."""

    def __init__(self, generators: Mapping[str, Generator]) -> None:
        """
        Args:
            generators: name of a base -> who answers for it and its adapters.
        Raises:
            ConfigError: two of them share a name.
        """
        self.generators = dict(generators)
        self._targets = self._gather({})

    def refresh(self) -> None:
        """See which workers there are now.

        Raises:
            ConfigError: two of them share a name; the names stay as they were.
        """
        self._targets = self._gather(self._targets)

    def change(self, generators: Mapping[str, Generator]) -> None:
        """Other generators from now on; answers under way go on."""
        before, self.generators = self.generators, dict(generators)
        try:
            self.refresh()
        except ConfigError:
            self.generators = before
            raise

    def all(self) -> list[Target]:
        """All of them, a base before its adapters."""
        return list(self._targets.values())

    def find(self, name: str) -> Target:
        """Who answers under a name.

        Raises:
            Refusal: nobody does.
        """
        target = self._targets.get(name)
        if target is None:
            raise Refusal(404, f"there is no model {name[:100]!r}; {did_you_mean(name[:100], self._targets)}", code="model_not_found", param="model")
        return target

    def _gather(self, before: Mapping[str, Target]) -> dict[str, Target]:
        found: dict[str, Target] = {}
        for base, generator in self.generators.items():
            for card in generator.workers():
                name = card.name or base
                if name in found:
                    raise ConfigError(f"two models are called {name!r}", "give one of them another name")
                fresh = Target(name, base, generator, card, int(time.time()))
                found[name] = replace(fresh, since=before[name].since) if name in before and before[name].card == card else fresh
        return found
