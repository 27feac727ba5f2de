"""A question on its way through the places of a router: the next one where one fails, another one where an answer is unsure, and never two that speak."""

from __future__ import annotations

import dataclasses
import math
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bedplate.core.errors import BedplateError, ConfigError, PolicyError, RemoteError, ResourceError
from bedplate.core.generation import Ask, Deliver, Piece, Ticket
from bedplate.serve.breaker import Pass
from bedplate.serve.budget import Reservation
from bedplate.serve.routes import Decision, Plan, Refused

if TYPE_CHECKING:
    from bedplate.serve.router import Router


class RoutedTicket:
    """An answer under way at one place or another."""

    def __init__(self, answer: RoutedAnswer) -> None:
        self._answer = answer

    @property
    def decision(self) -> Decision | None:
        """Where it is answered, and why; None before its first piece. With its cost from the last piece on."""
        return self._answer.decision

    def cancel(self) -> None:
        """Stop wherever it is."""
        self._answer.cancel()


@dataclass
class _Try:
    """One place at work on the question."""

    place: str
    leave: Pass
    money: Reservation | None
    prompt_tokens: int = 0
    """As counted here, where what it costs is asked."""
    ticket: Ticket | None = None
    heard: bool = False
    held: list[Piece] = field(default_factory=list)
    """Pieces that are not passed on yet."""
    judged: bool = True
    """False: its confidence is not known yet."""
    logprobs: list[float] = field(default_factory=list)


class RoutedAnswer:
    """One question on its way through the places. Pieces come from the thread of whichever place is at work; `_turn` is never held while one is asked."""

    def __init__(self, router: Router, ask: Ask, planned: Plan, deliver: Deliver) -> None:
        self.router, self.ask, self.plan, self._deliver = router, ask, planned, deliver
        self.ticket = RoutedTicket(self)
        self.decision: Decision | None = None
        self._turn = threading.RLock()
        self._left = list(planned.places)
        self._refused = list(planned.refused)
        self._error: BedplateError | None = None
        self._current: _Try | None = None
        self._spare: _Try | None = None
        """The local answer that was unsure, kept until the other place speaks."""
        self._why = ""
        self._passed = self._over = self._cancelled = False
        self._started_s = router.clock()

    def begin(self) -> None:
        """Ask the first place that takes it. Raises where none does."""
        if not self._next():
            raise self._verdict()

    def cancel(self) -> None:
        """Stop every place at work."""
        with self._turn:
            self._cancelled = True
            tickets = [one.ticket for one in (self._current, self._spare) if one is not None and one.ticket is not None]
        for ticket in tickets:
            ticket.cancel()

    def _next(self) -> bool:
        """Ask the next place that takes the question; False: none is left."""
        while self._left:
            if self._ask(self._left.pop(0)):
                return True
        return False

    def _ask(self, name: str) -> bool:
        router, place = self.router, self.router.settings.places[name]
        leave = router.breakers[name].enter()
        if leave is None:
            wait_s = router.breakers[name].wait_s
            self._refuse(name, "rests after failures", ResourceError(f"{name} rests after failures", f"ask again in {max(1, round(wait_s))} s"))
            return False
        money, prompt_tokens = None, 0
        if place.price_prompt or place.price_completion:
            prompt_tokens = router.count(self.ask)
            most = place.cost(prompt_tokens, self.ask.sampling.max_tokens * self.ask.sampling.n)
            money = router.budget.reserve(self.ask.tenant, most)
            if money is None:
                leave.abandoned()
                left = max(0.0, router.budget.left(self.ask.tenant))
                error = PolicyError(f"an answer of {name} may cost {most:.4g}, {left:.4g} are left today", "ask for a shorter answer")
                self._refuse(name, "the day's budget is spent", error)
                return False
        unsure = self.plan.uncertain
        judge = bool(unsure.to) and unsure.to != name and self._spare is None and self.ask.sampling.n == 1 and self.ask.want == "text" and not self.ask.echo
        one = _Try(name, leave, money, prompt_tokens, judged=not judge)
        with self._turn:
            self._current = one
        try:
            ticket = router.send(name, self._asked(name, judge), self.ask, lambda piece: self._take(one, piece))
        except Exception as error:
            self._failed(one, error)
            return False
        with self._turn:
            one.ticket = ticket
            stop = self._cancelled
        if stop:
            ticket.cancel()
        return True

    def _asked(self, name: str, judge: bool) -> Ask:
        ask = self.router.asked(name, self.ask)
        if judge and ask.sampling.logprobs is None:
            ask = dataclasses.replace(ask, sampling=dataclasses.replace(ask.sampling, logprobs=0))
        if ask.deadline_s is not None:
            ask = dataclasses.replace(ask, deadline_s=max(0.001, ask.deadline_s - (self.router.clock() - self._started_s)))
        return ask

    def _take(self, one: _Try, piece: Piece) -> None:
        """A piece of a place's answer."""
        with self._turn:
            if piece.error is not None:
                self._blame(one, piece.error)
            elif piece.last:
                self._settle(one, piece)
            if self._over or one not in (self._current, self._spare):
                return
            after = self._broke(one, piece.error) if piece.error is not None else self._heard(one, piece)
        if after == "next":
            if not self._next():
                self._end(Piece(finish="error", error=self._verdict()))
        elif after == "escalate" and not self._ask(self.plan.uncertain.to):
            self._take_back()

    def _heard(self, one: _Try, piece: Piece) -> str:
        one.heard = True
        if one is self._spare:
            one.held.append(piece)
            return ""
        if not one.judged:
            one.held.append(piece)
            one.logprobs += [token.said.logprob for token in piece.logprobs if not math.isnan(token.said.logprob)]
            enough = self.plan.uncertain.tokens
            if piece.finish is None and (enough == 0 or len(one.logprobs) < enough):
                return ""
            one.judged = True
            if self._unsure(one):
                self._spare = one
                return "escalate"
            held, one.held = one.held, []
            for earlier in held:
                self._pass(one, earlier)
            return ""
        if self._spare is not None:  # the other place speaks: the unsure answer is not needed any more
            spare, self._spare = self._spare, None
            if spare.ticket is not None:
                spare.ticket.cancel()
        self._pass(one, piece)
        return ""

    def _unsure(self, one: _Try) -> bool:
        if not one.logprobs or self._cancelled:
            return False
        mean = sum(one.logprobs) / len(one.logprobs)
        if mean >= self.plan.uncertain.mean_logprob:
            return False
        self._why = f"unsure at {one.place}: mean logprob {mean:.2f} below {self.plan.uncertain.mean_logprob:g}"
        return True

    def _broke(self, one: _Try, error: BedplateError) -> str:
        """A place failed on the way."""
        if one is self._spare:
            self._spare = None
            return ""
        if self._passed or self._cancelled:
            self._end(Piece(finish="error", error=error))
            return ""
        self._refuse(one.place, _short(error), error)
        if self._spare is not None:
            self._take_back()
            return ""
        return "next"

    def _take_back(self) -> None:
        """The other place has not answered either: the unsure answer is better than none."""
        with self._turn:
            if self._spare is None:
                self._end(Piece(finish="error", error=self._verdict()))
                return
            one, self._spare = self._spare, None
            self._current, self._why = one, f"{self._why}, and nobody else answered"
            held, one.held = one.held, []
            for piece in held:
                self._pass(one, piece)

    def _failed(self, one: _Try, error: Exception) -> None:
        """A place did not take the question."""
        foreseen = error if isinstance(error, BedplateError) else RemoteError(f"{one.place} failed: {type(error).__name__}", "see its log")
        self._blame(one, foreseen)
        self._refuse(one.place, _short(foreseen), foreseen)

    def _blame(self, one: _Try, error: BedplateError) -> None:
        at_fault = isinstance(error, RemoteError) and error.asker_is_at_fault
        if at_fault or isinstance(error, (ConfigError, PolicyError, ResourceError)):  # the question is at fault, or it is busy: not ill
            one.leave.abandoned()
        else:
            one.leave.failed()
        if one.money is not None:
            one.money.settle(None if one.heard else 0.0)

    def _settle(self, one: _Try, piece: Piece) -> None:
        if piece.finish in ("cancelled", "deadline"):
            one.leave.abandoned()
        else:
            one.leave.succeeded()
        if one.money is not None and piece.usage is not None:
            one.money.settle(self._cost(one, piece))

    def _cost(self, one: _Try, piece: Piece) -> float:
        usage = piece.usage
        if usage is None:
            return 0.0
        # An endpoint tells at the end of an answer what was asked, or never; it has read it all the same.
        return self.router.settings.places[one.place].cost(usage.prompt_tokens or one.prompt_tokens, usage.completion_tokens)

    def _pass(self, one: _Try, piece: Piece) -> None:
        if self.decision is None or self.decision.place != one.place:
            rule = f"rule {self.plan.rule}" if self.plan.rule else "no rule"
            reason = ", ".join(part for part in (rule, self.plan.data_class.why, self._why) if part)
            where = self.router.settings.places[one.place].where
            self.decision = Decision(one.place, where, self.plan.data_class.name, reason, tuple(self._refused))
        if piece.usage is not None:
            self.decision = dataclasses.replace(self.decision, cost=self._cost(one, piece))
        if piece.logprobs and self.ask.sampling.logprobs is None:
            piece = dataclasses.replace(piece, logprobs=())
        self._passed = True
        self._end(piece) if piece.last else self._deliver(piece)

    def _end(self, piece: Piece) -> None:
        with self._turn:
            if not self._over:
                self._over = True
                self._deliver(piece)

    def _refuse(self, name: str, why: str, error: BedplateError) -> None:
        self._refused.append(Refused(name, why))
        if self._error is None or (isinstance(self._error, PolicyError) and not isinstance(error, PolicyError)):
            self._error = error

    def _verdict(self) -> BedplateError:
        if self._error is not None:
            return self._error
        whys = "; ".join(f"{one.place}: {one.why}" for one in self._refused) or "no place is local"
        return PolicyError(f"nobody may answer this: {whys}", "label the question as what it is, or add a local place to routes.toml")


def _short(error: BedplateError) -> str:
    """Without the message: that of a remote may quote the question."""
    foreseen: dict[type[BedplateError], str] = {ConfigError: "cannot answer this", PolicyError: "may not answer this", ResourceError: "is busy"}
    return foreseen.get(type(error), f"failed ({type(error).__name__})")
