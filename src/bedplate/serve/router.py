"""Router: many places behind one Generator. It carries out the plans of routes.py: asks in order, falls back, escalates, and says what it did.

    router = Router(read(Path("routes.toml")), {"local": engine, "cloud": remote})
    ticket = router.submit(ask, deliver)
    ticket.decision                       # from the first piece on: where it is answered, and why

What may not leave is kept back in one place, `send`: whatever fails, nothing else hands a question to a remote. A place that fails before anything
of its answer was passed on is replaced by the next; afterwards its failure is the answer's.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

from bedplate.core.contracts import Generator
from bedplate.core.errors import ConfigError, PolicyError
from bedplate.core.generation import Ask, Deliver, Load, Ticket, WorkerCard
from bedplate.serve.breaker import Breaker, State
from bedplate.serve.budget import Budget
from bedplate.serve.guarded import texts_of
from bedplate.serve.routed import RoutedAnswer, RoutedTicket
from bedplate.serve.routes import RoutesSettings, classify, plan

__all__ = ["RoutedTicket", "Router"]

CHARACTERS_A_TOKEN = 3
"""Where no local place can count a question, it is taken to be as long as the densest usual text."""


class Router:
    """One Generator made of several.

    Args:
        settings: routes.toml.
        places: its places, by name; the router closes them.
        budget: what was spent; None: kept in memory alone.
        clock: seconds; only differences count.
    Raises:
        ConfigError: a place has no generator, or a generator no place.
    """

    def __init__(
        self, settings: RoutesSettings, places: Mapping[str, Generator], *, budget: Budget | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if set(places) != set(settings.places):
            wrong = sorted(set(places) ^ set(settings.places))[0]
            raise ConfigError(f"the place {wrong!r} is in routes.toml or is there, but not both", f"routes.toml names: {', '.join(settings.places)}")
        self.settings, self.clock = settings, clock
        self.budget = budget if budget is not None else Budget(settings.budget)
        self.breakers = {name: Breaker(settings.breaker, clock) for name in places}
        self._places = dict(places)

    def submit(self, ask: Ask, deliver: Deliver) -> RoutedTicket:
        """Begin an answer at the first place that takes it.

        Raises:
            PolicyError: no place may answer it: its data does not leave, or the budget is spent.
            ResourceError: every place that may is busy, or rests after failures.
            ConfigError: no place can answer it; the first one's reason.
        """
        answer = RoutedAnswer(self, ask, plan(ask, self.settings, lambda: self.count(ask)), deliver)
        answer.begin()
        return answer.ticket

    def workers(self) -> Sequence[WorkerCard]:
        """What the local places offer, each name once; what remote ones do where there is no local one."""
        cards: dict[str, WorkerCard] = {}
        for name in self._local() or list(self._places):
            wanted = self.settings.places[name].worker
            for card in self._places[name].workers():
                if not wanted or card.name == wanted:
                    cards.setdefault(card.name, card)
        return list(cards.values())

    def count(self, ask: Ask) -> int:
        """Positions of a question, as a local place counts them. It is never sent away to be counted."""
        for name in self._local():
            for asked in (self.asked(name, ask), dataclasses.replace(ask, worker="")):
                try:
                    return self._places[name].count(asked)
                except ConfigError:
                    continue
        characters = sum(map(len, texts_of(ask))) if not isinstance(ask.prompt, tuple) else CHARACTERS_A_TOKEN * len(ask.prompt)
        return characters // CHARACTERS_A_TOKEN + 1

    def load(self) -> Load:
        """Of the local places together."""
        loads = [self._places[name].load() for name in self._local()]
        counters: dict[str, float] = {}
        for load in loads:
            for name, value in load.counters.items():
                counters[name] = counters.get(name, 0.0) + value
        return Load(
            running=sum(load.running for load in loads),
            waiting=sum(load.waiting for load in loads),
            cache_used=max((load.cache_used for load in loads), default=0.0),
            tokens_per_s=sum(load.tokens_per_s for load in loads),
            counters=counters,
        )

    def states(self) -> dict[str, State]:
        """Place -> its breaker's state."""
        return {name: breaker.state for name, breaker in self.breakers.items()}

    def close(self) -> None:
        """Close every place, and keep what was spent."""
        try:
            for generator in self._places.values():
                generator.close()
        finally:
            self.budget.write()

    def asked(self, name: str, ask: Ask) -> Ask:
        """A question as a place gets it. Who asks, and under which policy, does not leave."""
        place = self.settings.places[name]
        if place.where == "local":
            return dataclasses.replace(ask, worker=place.worker or ask.worker)
        # A remote place with a model of its own was opened for it: it is what answers there for "".
        return dataclasses.replace(ask, worker="" if place.worker else ask.worker, tenant="", policy="", labels=())

    def send(self, name: str, ask: Ask, original: Ask, deliver: Deliver) -> Ticket:
        """The only way to a place."""
        if self.settings.places[name].where == "remote":
            data_class = classify(original, self.settings.data).name
            if data_class not in self.settings.data.may_leave:
                raise PolicyError(f"{data_class} does not leave", "label the question as what it is, or add a local place")
        return self._places[name].submit(ask, deliver)

    def _local(self) -> list[str]:
        return [name for name in self._places if name not in self.settings.remote]
