"""The engine: many requests, one model, one step after the other.

    engine = Engine(base, EngineSettings())
    engine.register("triage", Path("adapters/triage"))
    ticket = engine.submit(Request(positions, adapter="triage"), listener)

A thread of its own plans a step (scheduler.py), computes it (a Runner), draws tokens (sampling.py) and tells the listeners. Every request may
have another adapter, other settings, another length; none of that changes what the others are told.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from bedplate.adapt.base import Base
from bedplate.adapt.encode import collate
from bedplate.core.errors import BedplateError, ResourceError, StateError
from bedplate.core.generation import Finish, Load
from bedplate.infer.adapter_memory import AdapterMemory
from bedplate.infer.adapters import Adapters, Registered
from bedplate.infer.assemble import alike, assemble
from bedplate.infer.checks import check
from bedplate.infer.engine_settings import EngineSettings, open_runner
from bedplate.infer.maker import Made, Maker, Silent, beside
from bedplate.infer.pages import Pages
from bedplate.infer.request import Drawn, Listener, Request
from bedplate.infer.saying import Saying, read
from bedplate.infer.scheduler import Portion, Scheduler
from bedplate.infer.sequence import Running
from bedplate.infer.step import PAGE
from bedplate.model.batch import to_torch

_log = logging.getLogger(__name__)
LOOK_S = 0.05
"""After which those that wait for an adapter are looked at again: their time may be over."""
LOOK_BACK_S = 10.0
"""Over which the rate of tokens is told."""


class Handle:
    """A request under way."""

    def __init__(self, engine: Engine, running: Running) -> None:
        self._engine, self._running = engine, running

    def cancel(self) -> None:
        """Stop it; its listener hears "cancelled". Harmless where it has ended."""
        self._engine._cancel(self._running)


class Engine:
    """Safe to call from any thread."""

    def __init__(self, base: Base, settings: EngineSettings | None = None) -> None:
        """Pack the weights and start the thread.

        Args:
            base: the model with its tokenizer. An adapter that its weights carry is part of it, and others that are registered change what it makes.
            settings: how much memory, how many threads.
        Raises:
            ResourceError: there is not enough memory.
        """
        self.base, self.settings = base, settings or EngineSettings()
        self.runner, self.shape, self._instead = open_runner(base.model, self.settings)
        self.context = min(self.shape.context, self.shape.pages * PAGE)
        self._adapters = Adapters(base)
        self._memory = AdapterMemory(self._adapters, self.runner, self.settings.adapter_bytes, self._notify)
        self._scheduler = self._begin()
        self._table = base.model.model.embed_tokens.weight.detach().float().cpu().numpy()
        self._numbers = 0
        self._counters: Counter[str] = Counter()
        self._saying = Saying(set(base.model.config.special_ids.values()), self.settings.drafts, self._counters)
        self._maker = Maker(base.model)
        self._rate: deque[tuple[float, int]] = deque()
        self._arrived: deque[Running] = deque()
        self._wake = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._work, name="bedplate engine", daemon=True)
        self._thread.start()

    # Asked from any thread.

    def submit(self, request: Request, listener: Listener) -> Handle:
        """Begin a request; its listener hears from the engine's thread.

        Raises:
            ConfigError: it cannot fit, or names an unknown adapter.
            ResourceError: too many wait.
            StateError: the engine is closed.
        """
        adapter = self._adapters.find(request.adapter) if request.adapter else None
        check(request, self.base.model.config, self.context, self.shape)
        embedded = self._embed(request) if request.positions.units or request.making is not None else None
        drafting = self.settings.drafts > 0 and request.layers is None and request.making is None
        running = Running(request, listener, adapter, embedded, drafting)
        if (without := beside(request)) is not None:
            running.beside = Running(without, Silent(), adapter, self._embed(without), False)
            running.beside.lead = running
        with self._wake:
            if self._over:
                raise StateError("the engine is closed", "open another")
            waiting = self._scheduler.waiting + len(self._arrived)
            if waiting >= self.settings.most_waiting:
                rate = self._tokens_per_s()
                hint = f"try again in about {max(1, round(waiting * 100 / rate))} s" if rate else "try again in a few seconds"
                raise ResourceError(f"{waiting} requests wait already", hint)
            self._numbers += 1
            for part in running.together:
                part.number = self._numbers
            self._arrived.append(running)
            self._wake.notify()
        return Handle(self, running)

    def register(self, name: str, folder: Path) -> Registered:
        """Make an adapter known; see `Adapters.register`."""
        return self._adapters.register(name, folder)

    def unregister(self, name: str) -> None:
        """Forget an adapter; requests under way end with it."""
        self._adapters.unregister(name)

    @property
    def computed_by(self) -> str:
        """What computes, and in which numbers; why torch, where the compiled trunk should."""
        return f"{self.runner.name} ({self._instead})" if self._instead else self.runner.name

    @property
    def adapters(self) -> Mapping[str, Registered]:
        """What is registered, by name."""
        return self._adapters.registered

    def load(self) -> Load:
        """How busy it is."""
        scheduler = self._scheduler
        counters = {**self._counters, "preemptions": scheduler.preemptions, "adapters_in_memory": len(self._memory.hot)}
        used = scheduler.pages.held / scheduler.pages.count
        running = sum(one.lead is one for one in scheduler.running)
        return Load(running, scheduler.waiting + len(self._arrived), used, self._tokens_per_s(), counters)

    def close(self) -> None:
        """Cancel what is under way and end the thread."""
        with self._wake:
            self._over = True
            self._wake.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _cancel(self, running: Running) -> None:
        with self._wake:
            running.cancelled = running.cancelled or "cancelled"
            self._wake.notify()

    def _tokens_per_s(self) -> float:
        now = time.monotonic()
        recent = [(at, count) for at, count in list(self._rate) if now - at < LOOK_BACK_S]
        return sum(count for _, count in recent) / max(now - recent[0][0], 1e-3) if recent else 0.0

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    @torch.inference_mode()
    def _embed(self, request: Request) -> Float[np.ndarray, "t d"]:
        batch = to_torch(collate([request.positions], self.base.pad_id), self.base.model.head.device)
        embedded: np.ndarray = self.base.model.embed(batch)[0].float().cpu().numpy()
        return embedded

    # The engine's own thread.

    def _begin(self) -> Scheduler:
        """Nothing is asked, nothing is kept."""
        return Scheduler(
            Pages(self.shape.pages),
            positions=self.shape.positions - self.shape.block,
            most_running=self.settings.most_running,
            guesses=self.shape.cheap_rows,
            share_beginnings=self.settings.share_beginnings,
            ready=lambda running: not running.changes or (running.adapter is not None and self._memory.ready(running.adapter)),
        )

    def _work(self) -> None:
        end: Exception | None = None
        try:
            idle = False
            while self._gather(idle):
                planned = self._plan()
                idle = not planned
                for portions in alike(planned):
                    try:
                        self._step(portions)
                    except Exception as error:  # one step's failure ends its requests, not the engine
                        _log.exception("a step failed")
                        for portion in portions:
                            self._fail(portion.running, error)
        except BaseException as error:
            _log.exception("the engine ends")
            end = ResourceError(f"the engine ended: {type(error).__name__}: {error}", "open another; the log has the trace")
        finally:
            with self._wake:
                self._over = True
            for running in [*self._scheduler.all(), *self._arrived]:
                if end is None:
                    self._tell(running, (), "cancelled")
                else:
                    with _survives():
                        running.listener.failed(end)
            self._memory.close()
            self.runner.close()

    def _plan(self) -> list[Portion]:
        """The next step's portions. A request that cannot be planned ends, and no other; where none is at fault all end, and the engine begins anew."""
        while True:
            try:
                return self._scheduler.plan()
            except Exception as error:
                _log.exception("a step could not be planned")
                at_fault = self._scheduler.at_hand
                for running in list(self._scheduler.all()) if at_fault is None else [at_fault]:
                    self._fail(running, error)
                if at_fault is None:
                    preemptions, self._scheduler = self._scheduler.preemptions, self._begin()
                    self._scheduler.preemptions = preemptions

    def _gather(self, idle: bool) -> bool:
        """Take what has arrived, let go of what nobody waits for; sleeps where there is nothing to do. False: the engine is closed.

        Args:
            idle: nothing could be planned: whoever waits, waits for an adapter.
        """
        scheduler = self._scheduler
        with self._wake:
            while not self._over and not self._arrived and not scheduler.running and not scheduler.waiting:
                self._wake.wait()
            if idle and not (self._over or self._arrived or self._memory.has_read):
                self._wake.wait(LOOK_S)
            if self._over:
                return False
        while self._arrived:
            scheduler.add(running := self._arrived[0])
            self._arrived.popleft()  # not before it is in the scheduler's hands: whatever fails, somebody knows of it
            if running.most == running.asked and not running.keeps_states:
                self._end(running, (), "length")
        lost = self._memory.link({running.changes for running in scheduler.running})
        now = time.monotonic()
        for running in list(scheduler.all()):
            if running.changes in lost:
                self._fail(running, lost[running.changes])
                continue
            if running.request.deadline is not None and now >= running.request.deadline:
                running.cancelled = running.cancelled or "deadline"
            if running.cancelled:
                self._end(running, (), running.cancelled)
        return True

    def _step(self, portions: list[Portion]) -> None:
        portions = sorted(portions, key=lambda p: (p.running.changes, p.running.number))
        for portion in portions:
            if not portion.running.begun:
                portion.running.begun = True
                self._counters["prompt_tokens"] += portion.running.asked
                self._counters["cached_tokens"] += portion.start
                with _survives():
                    portion.running.listener.began(portion.start)
        states = self.runner.run(assemble(portions, self._table))
        self._counters["steps"] += 1
        self._counters["positions"] += len(states.last)
        at = 0
        drawing: list[tuple[Running, int]] = []  # a request, and the row of the state that says what follows
        for portion in portions:
            running, count = portion.running, portion.end - portion.start
            known = min(portion.end, running.length)
            if running.keeps_states:
                source = states.last if not running.request.layers else states.mean
                assert source is not None
                running.collected.append(source[at : at + count].copy())
            running.computed = known
            running.name_pages(self._scheduler.pages.name)
            if known == running.length:
                drawing.append((running, at + running.length - 1 - portion.start))
            at += count
        self._answer(drawing, states.last)

    def _answer(self, drawing: list[tuple[Running, int]], states: Float[np.ndarray, "n d"]) -> None:
        """Draw what follows, and tell."""
        made, drawing = self._maker.advance(drawing, states)
        if made:
            self._made(made)
        rows: list[int] = []
        asking: list[tuple[Running, int, int]] = []  # a request, its first row of logits, and how many
        for running, row in drawing:
            if running.request.layers is not None:
                self._finish_states(running)
                continue
            if running.request.prompt_logprobs is not None and not running.said:
                told = read(running, self.runner, self.shape.rows)
                with _survives():
                    running.listener.read(told)
                if running.most == running.asked:
                    self._end(running, (), "length")
                    continue
            asking.append((running, len(rows), 1 + len(running.drafted)))
            rows += range(row, row + 1 + len(running.drafted))
        if not rows:
            return
        logits = self.runner.logits(states[rows])
        for running, first, count in asking:
            logits[first : first + count, self._saying.never(running)] = -np.inf
        likeliest = self.runner.likeliest(logits)
        said = 0
        for running, first, count in asking:
            try:
                drawn, finish = self._saying.said(running, logits[first : first + count], likeliest[first : first + count])
                said += len(drawn)
                self._take(running, drawn, finish)
            except Exception as error:  # such as a constraint's: its request's own affair
                _log.exception("a request failed")
                self._fail(running, error)
        self._counted(said)

    def _made(self, made: Sequence[Made]) -> None:
        """Tell of units."""
        for running, unit, finish, error in made:
            if error is not None:
                self._fail(running, error)
            if unit is not None:
                with _survives():
                    running.listener.unit(unit)
            if finish is not None:
                self._end(running, (), finish)
        self._counted(sum(one.unit is not None for one in made))

    def _counted(self, said: int) -> None:
        """So many tokens or units more."""
        self._counters["completion_tokens"] += said
        self._rate.append((time.monotonic(), said))
        while self._rate and self._rate[0][0] < time.monotonic() - LOOK_BACK_S:
            self._rate.popleft()

    def _take(self, running: Running, drawn: list[Drawn], finish: Finish | None) -> None:
        """Write down what was said and tell it; guess what comes next."""
        read = len(running.drafted)
        running.drafted = np.zeros(0, np.int64)
        for one in drawn:
            running.append(one.token)
        # States of guesses that came true are computed: all but the last token's, which was drawn and not yet read.
        running.computed = min(running.length - 1, running.computed + read)
        running.name_pages(self._scheduler.pages.name)
        if finish is not None:
            self._end(running, drawn, finish)
            return
        if self._tell(running, drawn, None):
            self._scheduler.remove(running)
            return
        self._saying.guess(running, self.shape.cheap_rows // max(1, len(self._scheduler.running)) - 1)

    def _finish_states(self, running: Running) -> None:
        states = np.concatenate(running.collected)
        self._scheduler.remove(running)
        with _survives():
            running.listener.state(states)

    def _end(self, running: Running, drawn: Sequence[Drawn], finish: Finish) -> None:
        self._scheduler.remove(running)
        self._tell(running, drawn, finish)

    def _tell(self, running: Running, drawn: Sequence[Drawn], finish: Finish | None) -> bool:
        """Tell a listener; True: it has heard enough. One that fails has."""
        enough = True
        with _survives():
            enough = running.listener.heard(drawn, finish)
        return enough

    def _fail(self, running: Running, error: Exception) -> None:
        running = running.lead
        if all(one is not running for one in self._scheduler.all()):
            return  # it has ended, and its listener knows
        self._scheduler.remove(running)
        told = error if isinstance(error, BedplateError) else BedplateError(f"a step failed: {error}", "the engine's log has the trace")
        with _survives():
            running.listener.failed(told)


@contextlib.contextmanager
def _survives() -> Iterator[None]:
    """A listener's own failure is not the engine's."""
    try:
        yield
    except Exception:
        _log.exception("a listener failed")
