"""Which positions the next step computes.

There is no phase of reading and none of answering: a request has positions that are known and positions that are computed, and catches up under
a budget of positions a step. Those that answer go first, one position each, so that a long prompt delays nobody by more than a portion of it.
Whose turn it is to begin is decided between tenants: the one that got the fewest positions so far. Where pages run out, the tenant that holds
most of them gives some back: its request that came last starts over later. The first of all that run never does, whoever holds what, so it ends,
and after it every other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bedplate.infer.pages import Pages, pages_for
from bedplate.infer.sequence import Running
from bedplate.infer.step import PAGE


class Portion(NamedTuple):
    """Positions start..end-1 of a request."""

    running: Running
    start: int
    end: int


class Scheduler:
    """Requests that wait and requests that run. Thinks only; nothing is computed here."""

    def __init__(
        self,
        pages: Pages,
        *,
        positions: int,
        most_running: int,
        guesses: int = 0,
        share_beginnings: bool = True,
        ready: Callable[[Running], bool] = lambda running: True,
    ) -> None:
        """Nothing waits.

        Args:
            pages: of the cache.
            positions: budget of one step; a picture that does not fit into what is left of it goes beyond.
            most_running: requests at once, at most `positions`.
            guesses: guessed tokens that are read in one step at most, all requests together.
            share_beginnings: find pages of earlier requests.
            ready: whether a request could begin now, such as one whose adapter is read.
        """
        self.pages, self.positions, self.most_running, self.share_beginnings = pages, positions, most_running, share_beginnings
        self.guesses = guesses
        self._ready = ready
        self.running: list[Running] = []
        """In order of arrival."""
        self._waiting: dict[str, deque[Running]] = {}
        self._served: dict[str, float] = {}
        """Positions that each tenant got; who comes new starts with the least of those present."""
        self.preemptions = 0
        self.at_hand: Running | None = None
        """Whose turn is being thought about: at fault, where `plan` raises. None: nobody is."""

    @property
    def waiting(self) -> int:
        """Requests that have not begun, or were put back."""
        return sum(map(len, self._waiting.values()))

    def all(self) -> Iterator[Running]:
        """Every request that has not ended, each once, with what is read beside it."""
        yield from (one for one in self.running if one.lead is one)
        for queue in self._waiting.values():
            yield from queue

    def add(self, running: Running) -> None:
        """A new request."""
        tenant = running.request.tenant
        present = {one.request.tenant for one in self.all()}
        if tenant not in present:
            least = min((self._served[other] for other in present), default=0.0)
            self._served[tenant] = max(self._served.get(tenant, 0.0), least) if present else 0.0
        self._waiting.setdefault(tenant, deque()).append(running)

    def remove(self, running: Running) -> None:
        """A request has ended: its pages are free for others."""
        if running in self.running:
            self.running = [one for one in self.running if one.lead is not running]
        elif running in (queue := self._waiting.get(running.request.tenant, deque())):
            queue.remove(running)
        for one in running.together:
            self.pages.give_back(one.pages)
            one.pages = []
        present = {one.request.tenant for one in self.all()}
        self._waiting = {tenant: queue for tenant, queue in self._waiting.items() if queue}
        self._served = {tenant: served for tenant, served in self._served.items() if tenant in present}

    def plan(self) -> list[Portion]:
        """The next step's portions; empty where nothing is to be done. Pages for them are held when it returns. It may be called again after an error."""
        self.at_hand = None
        budget = self.positions
        portions: list[Portion] = []
        answering = [one for one in self.running if one.length - one.computed == 1 and one.said]
        reading = [one for one in self.running if one not in answering]
        guesses = max(0, min(self.guesses, budget - len(answering) - bool(reading or self.waiting)))  # after everybody's own position
        for one in answering:
            one.drafted = one.drafted[:guesses]
            guesses -= len(one.drafted)
        for one in [*answering, *reading]:
            budget -= self._give(one, budget, portions)
        while budget > 0 and len(self.running) < self.most_running and (first := self._next()) is not None:
            if not self._begin(first) or not (given := self._give(first, budget, portions)):
                break
            budget -= given
            if first.beside is not None:
                budget -= self._give(first.beside, budget, portions)
        self.at_hand = None
        for portion in portions:
            self._served[portion.running.request.tenant] += portion.end - portion.start
        return portions

    def _give(self, one: Running, budget: int, portions: list[Portion]) -> int:
        """Give a request its portion within the budget; the positions that it takes."""
        if one not in self.running:  # it was put back for the sake of another
            return 0
        self.at_hand = one
        start, behind = one.computed, one.length - one.computed + len(one.drafted)
        end = start + min(behind, budget)
        if end < one.length:
            end = one.may_stop_at(end)
            if end <= start and budget > 0:
                end = one.block_end(start)  # once a step: there is no budget left afterwards
        elif len(one.drafted):
            end = max(one.length, min(end, (len(one.pages) + self.pages.available) * PAGE))  # nobody is put back for the sake of a guess
        if end <= start or not self._room(one, end, portions):
            return 0
        one.drafted = one.drafted[: max(0, end - one.length)]
        portions.append(Portion(one, start, end))
        return end - start

    def _room(self, one: Running, end: int, portions: list[Portion]) -> bool:
        """Hold the pages for its positions up to `end`, putting others back where there are too few. False: it was put back itself."""
        wanted = pages_for(end) - len(one.pages)
        while wanted > 0:
            if (taken := self.pages.take(wanted)) is not None:
                one.pages += taken
                return True
            victim = self._victim()
            portions[:] = [portion for portion in portions if portion.running.lead is not victim]
            self._put_back(victim)
            if victim is one.lead:
                return False
        return True

    def _victim(self) -> Running:
        """Who gives its pages back: of all but the first, the last of the tenant that holds most pages; between equals, of the one that came last."""
        held: dict[str, set[int]] = {}
        for one in self.running:
            held.setdefault(one.request.tenant, set()).update(one.pages)  # pages that two share count once
        others = [one.lead for one in self.running if one.lead is not self.running[0].lead]
        return max(others or self.running[:1], key=lambda one: (len(held[one.request.tenant]), one.number))

    def _put_back(self, one: Running) -> None:
        self.preemptions += 1
        self.running = [other for other in self.running if other.lead is not one]
        for part in one.together:
            self.pages.give_back(part.pages)
            part.start_over()
        self._waiting.setdefault(one.request.tenant, deque()).appendleft(one)

    def _next(self) -> Running | None:
        """Who may begin: the first that is ready, of the tenant that got the fewest positions."""
        tenants = [tenant for tenant, queue in self._waiting.items() if queue]
        for tenant in sorted(tenants, key=lambda name: (self._served[name], self._waiting[name][0].number)):
            for one in self._waiting[tenant]:
                self.at_hand = one
                if self._ready(one):
                    return one
        return None

    def _begin(self, one: Running) -> bool:
        """Start a request, and what is read beside it, on what is kept of earlier ones; False: there is no room for a useful portion of it yet."""
        self.at_hand = one
        wanted = 0
        for part in one.together:
            part.pages = [] if part.keeps_states or not self.share_beginnings else self.pages.share(part.known_keys())
            wanted += min(pages_for(part.length) - len(part.pages), pages_for(self.positions))
        if self.pages.available < wanted and self.running:
            for part in one.together:
                self.pages.give_back(part.pages)
                part.pages = []
            return False
        self._waiting[one.request.tenant].remove(one)
        for part in one.together:
            part.computed, part.named = len(part.pages) * PAGE, len(part.pages)
        place = next((i for i, other in enumerate(self.running) if other.number > one.number), len(self.running))
        self.running[place:place] = one.together
        return True
