"""Things as a Generator gives them: a caption in, the bytes of a picture, a sound, a clip or a forecast's table out, over the engine's units.

The engine's thread only collects units. Pixels and waveforms are worked out, written as files and delivered by a thread of their own, in order, so that
no token waits for a sound to become audible.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Protocol

import numpy as np
from jaxtyping import Float

from bedplate.adapt.base import Base
from bedplate.core.errors import BedplateError, ConfigError
from bedplate.core.generation import Ask, Deliver, Finish, Part, Piece, Ticket, Usage
from bedplate.infer import forecast
from bedplate.infer.failure import as_told
from bedplate.infer.reading import MOST_BYTES, numbers
from bedplate.infer.request import Drawn, Listener, Request
from bedplate.infer.seeds import seeds
from bedplate.infer.units import Clip, Future, Picture, Plan, Sound, Wanted, at_least, planned, spec_of
from bedplate.modality import audio, image, video


class UnitEngine(Protocol):
    """What makes units: a TokenEngine does."""

    base: Base
    context: int

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Begin; the listener hears from the engine's own thread."""
        ...


def plan_of(base: Base, context: int, ask: Ask) -> Plan:
    """What a question for a thing comes to.

    Raises:
        ConfigError: the model never learned the sense, or what is asked is too long or makes nothing.
        DataError: what is known cannot be read.
    """
    return planned(base, _wanted(base, ask), context)


def begin(engine: UnitEngine, ask: Ask, deliver: Deliver, finishing: Executor) -> Ticket:
    """Begin to make a thing, or several.

    Args:
        engine: makes units.
        ask: the question; `ask.want` is one of THINGS.
        deliver: takes the pieces, from the thread of `finishing`.
        finishing: one thread, in which units become files.
    Raises:
        ConfigError: it cannot be made.
        ResourceError: too many wait.
    """
    plan = plan_of(engine.base, engine.context, ask)
    paths = ask.make.paths if ask.want == "series" else 1
    if ask.want == "series" and ask.sampling.n > 1:
        raise ConfigError(f"n = {ask.sampling.n} forecasts are one forecast", "ask for more paths")
    deadline = None if ask.deadline_s is None else time.monotonic() + ask.deadline_s
    answer = _Things(ask, plan, deliver, finishing, paths)
    try:
        for seed, listener in zip(seeds(ask.sampling.seed, ask.sampling.n * paths), answer.heard):
            request = replace(plan.request(seed), adapter=ask.worker, tenant=ask.tenant, policy=ask.policy, deadline=deadline)
            answer.begun(engine.submit(request, listener))
    except BedplateError:
        answer.abandon()
        raise
    return answer


def _wanted(base: Base, ask: Ask) -> Wanted:
    assert isinstance(ask.prompt, str)
    make, guidance = ask.make, {} if ask.make.guidance is None else {"guidance": ask.make.guidance}
    if len(make.known) > MOST_BYTES:
        raise ConfigError(f"what is known has {len(make.known):,} bytes", f"at most {MOST_BYTES:,} are read")
    if ask.want == "image":
        known = image.decode(make.known, spec_of(base, "image")) if make.known else None
        return Picture(ask.prompt, make.side, known, make.known_share, steps=make.steps, **guidance)
    if ask.want == "video":
        return Clip(ask.prompt, make.frames, steps=make.steps, **guidance)
    if ask.want == "audio":
        return Sound(ask.prompt, make.most_s, steps=make.steps, **guidance)
    spec_of(base, "series")
    if not make.known:
        raise ConfigError("a forecast needs the past", "give it as a CSV table in make.known")
    at_least(paths=make.paths)
    return Future(numbers(make.known), make.points, ask.prompt, make.steps)


def _part(plan: Plan, units: Sequence[Sequence[Float[np.ndarray, "p"]]]) -> Part:
    """The file that units come to; of a series, what several paths have in common."""
    values = [plan.value(one) for one in units]
    if plan.sense == "series":
        return Part("series", data=forecast.encode(forecast.of_paths(values)))
    if plan.sense == "audio":
        return Part("audio", data=audio.encode(audio.to_waveform(values[0], plan.spec), plan.spec.sample_rate))
    if plan.sense == "video":
        return Part("video", data=video.encode(values[0], plan.spec.frames_per_s))
    return Part("image", data=image.encode(values[0]))


class _Path:
    """Hears the units of one request."""

    def __init__(self, ended: Callable[[Finish | BedplateError], None]) -> None:
        self.units: list[Float[np.ndarray, "p"]] = []
        self.cached = 0
        self._ended = ended

    def began(self, cached_tokens: int) -> None:
        self.cached = cached_tokens

    def read(self, drawn: Sequence[Drawn]) -> None:
        raise AssertionError("numbers were not asked for")

    def state(self, state: Float[np.ndarray, "t d"]) -> None:
        raise AssertionError("states were not asked for")

    def unit(self, unit: Float[np.ndarray, "p"]) -> None:
        self.units.append(unit)

    def heard(self, drawn: Sequence[Drawn], finish: Finish | None) -> bool:
        if finish is not None:
            self._ended(finish)
        return False

    def failed(self, error: Exception) -> None:
        self._ended(as_told(error))


class _Things:
    """The things of one question, and the ticket of all of them."""

    def __init__(self, ask: Ask, plan: Plan, deliver: Deliver, finishing: Executor, paths: int) -> None:
        self._plan, self._deliver, self._finishing, self._paths = plan, deliver, finishing, paths
        self._turn = threading.Lock()
        self._tickets: list[Ticket] = []
        self._stopped = self._over = False
        self._left = [paths] * ask.sampling.n
        """Of each thing, the requests that have not ended."""
        self._finish: list[Finish] = ["stop"] * ask.sampling.n
        self._last = ask.sampling.n
        self.heard = [_Path(functools.partial(self._ended, number // paths)) for number in range(ask.sampling.n * paths)]

    def begun(self, ticket: Ticket) -> None:
        """The engine has taken one more of the requests."""
        with self._turn:
            self._tickets.append(ticket)
            stopped = self._stopped
        if stopped:
            ticket.cancel()

    def cancel(self) -> None:
        with self._turn:
            self._stopped = True
            tickets = list(self._tickets)
        for ticket in tickets:
            ticket.cancel()

    def abandon(self) -> None:
        """Nobody is told of anything any more."""
        self._over = True
        self.cancel()

    def _ended(self, number: int, how: Finish | BedplateError) -> None:
        """One request has ended; from the engine's thread."""
        if isinstance(how, BedplateError):
            self._finishing.submit(self._failed, how)
            return
        self._left[number] -= 1
        if how in ("cancelled", "deadline") or (how == "length" and self._plan.making.may_end and self._finish[number] == "stop"):
            self._finish[number] = how
        if self._left[number] == 0:
            self._finishing.submit(self._whole, number)

    def _whole(self, number: int) -> None:
        """A thing is whole, or will never be."""
        if self._over:
            return
        own = self.heard[number * self._paths : (number + 1) * self._paths]
        finish = self._finish[number]
        try:
            part = None if finish in ("cancelled", "deadline") else _part(self._plan, [one.units for one in own])
        except Exception as error:
            self._failed(as_told(error))
            return
        self._last -= 1
        usage = None
        if not self._last:
            cached = max(one.cached for one in self.heard)
            usage = Usage(len(self._plan.positions), cached, sum(len(one.units) for one in self.heard))
        self._tell(Piece(number, part=part, finish=finish, usage=usage))

    def _failed(self, error: BedplateError) -> None:
        """One has failed, so all have."""
        if not self._over:
            self._tell(Piece(finish="error", error=error))
            self.abandon()

    def _tell(self, piece: Piece) -> None:
        """Deliver; whoever cannot take a piece gets no other."""
        try:
            self._deliver(piece)
        except Exception:
            self.abandon()
            raise
