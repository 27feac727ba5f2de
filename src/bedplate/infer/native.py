"""The native generator: turns, pictures and texts in, words out, over the engine's tokens.

    native = Native(engine)                      # engine: infer/engine.py, or any TokenEngine
    for piece in stream(native, Ask(turns=(Turn.of("user", "hello"),))): ...

A question becomes positions (`reading.py`), each of its n answers a request to the engine, and what the engine says becomes pieces: whole
characters, nothing of a stop string, complete tool calls. It refuses to know how tokens are computed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float

from bedplate.adapt.base import Base
from bedplate.adapt.tasks import Task
from bedplate.adapt.tasks.base import upper_half
from bedplate.adapt.tasks.embed import Embed
from bedplate.adapt.tasks.generate import Generate
from bedplate.core.errors import BedplateError, ConfigError, StateError, did_you_mean
from bedplate.core.generation import THINGS, Alternative, Ask, Deliver, Finish, Load, Piece, Ticket, TokenLogprob, ToolCall, Usage, WorkerCard
from bedplate.infer import things, tools
from bedplate.infer.adapters import Registered
from bedplate.infer.engine import Engine
from bedplate.infer.failure import as_told
from bedplate.infer.grammar import Bridge
from bedplate.infer.head import Head
from bedplate.infer.reading import Question, ends_of, read
from bedplate.infer.request import Drawn, Listener, Request
from bedplate.infer.seeds import seed_of
from bedplate.infer.words import Said, Words, decoder


class TokenEngine(Protocol):
    """What computes tokens and states: infer/engine.py, and its slow twin in testing/slow_engine.py."""

    base: Base
    context: int
    """Longest question and answer together, in positions."""

    @property
    def adapters(self) -> Mapping[str, Registered]:
        """What is registered, by name."""
        ...

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Begin; the listener hears from the engine's own thread."""
        ...

    def load(self) -> Load:
        """How busy it is."""
        ...

    def register(self, name: str, folder: Path) -> Registered:
        """Hold another adapter."""
        ...

    def unregister(self, name: str) -> None:
        """Let go of one, once what it is answering is said."""
        ...

    def close(self) -> None:
        """End what is under way and the thread."""
        ...


class Native:
    """A `Generator` over the engine. Safe to call from any thread.

    Args:
        engine: computes tokens; closed with this.
        most_choices: answers to one question.
    """

    def __init__(self, engine: TokenEngine, most_choices: int = 128) -> None:
        self._engine, self._most_choices = engine, most_choices
        self._bridge = Bridge(engine.base.encoder, engine.base.model.config.vocab_size)
        self._bridge.begin(ends_of(engine.base, None))  # the first form that is asked for finds it done
        self._closed = False
        self._finishing = ThreadPoolExecutor(1, "bedplate things")

    def submit(self, ask: Ask, deliver: Deliver) -> Ticket:
        if self._closed:
            raise StateError("the generator is closed", "open another")
        task = self._task(ask)
        if ask.want in THINGS:
            self._check_choices(ask)
            return things.begin(self._engine, ask, deliver, self._finishing)
        question = read(self._engine.base, task, ask)
        self._check(ask, question)
        deadline = None if ask.deadline_s is None else time.monotonic() + ask.deadline_s
        ends = ends_of(self._engine.base, task)
        request = Request(question.sequences[0], ask.sampling, ask.worker, ends, None, ask.tenant, ask.policy, deadline)
        if ask.want != "text":
            head = Head(task, question, deliver)
            layers = upper_half(self._engine.base.model.config) if task is None else task.layers
            return self._begin([replace(request, positions=one, layers=layers) for one in question.sequences], head.listeners, head)
        form = ask.form if (required := tools.form(ask.tools, ask.tool_choice)) is None else required
        answer = _Answer(ask, question, self._engine.base, deliver)
        requests = []
        for choice in range(ask.sampling.n):
            constraint = self._bridge.constraint(form, request.ends) if form is not None else None
            sampling = replace(ask.sampling, seed=seed_of(ask.sampling.seed, choice), n=1)
            asked = ask.sampling.logprobs if ask.echo else None
            requests.append(replace(request, sampling=sampling, constraint=constraint, prompt_logprobs=asked))
        return self._begin(requests, answer.choices, answer)

    def _begin(self, requests: Sequence[Request], listeners: Sequence[Listener], whole: _Answer | Head) -> Ticket:
        """All of a question's requests, or none."""
        try:
            for one, listener in zip(requests, listeners):
                whole.tickets.append(self._engine.submit(one, listener))
        except BedplateError:
            whole.abandon()
            raise
        return whole

    @property
    def computed_by(self) -> str:
        """What computes, and in which numbers: "cpu int8", "torch float32 cpu"; why torch, where the compiled trunk should."""
        return self._engine.computed_by if isinstance(self._engine, Engine) else type(self._engine).__name__

    def workers(self) -> Sequence[WorkerCard]:
        return [self._card("", None), *(self._card(name, one) for name, one in sorted(self._engine.adapters.items()))]

    def register(self, name: str, folder: Path) -> WorkerCard:
        """Another worker from now on.

        Args:
            name: as questions will name it.
            folder: of an adapter made for this base.
        Raises:
            ConfigError: the name is taken.
            DataError: the adapter was made for another base.
            IntegrityError: a digest does not hold.
        """
        return self._card(name, self._engine.register(name, folder))

    def unregister(self, name: str) -> None:
        """One worker fewer; what it is answering, it answers to the end.

        Raises:
            ConfigError: there is no such worker.
        """
        self._engine.unregister(name)

    def _card(self, name: str, registered: Registered | None) -> WorkerCard:
        base = self._engine.base
        senses = ("text", *base.model.config.senses.present())
        digests = {"model": base.digest} if registered is None else {"model": base.digest, "adapter": registered.digest}
        does = "generate" if registered is None or isinstance(registered.task, Generate) else registered.task.name
        return WorkerCard(name, does, digests, self._engine.context, senses, senses[1:] if does == "generate" else ())

    def count(self, ask: Ask) -> int:
        if ask.want in THINGS:
            self._task(ask)
            return len(things.plan_of(self._engine.base, self._engine.context, ask).positions)
        return read(self._engine.base, self._task(ask), ask).positions

    def load(self) -> Load:
        return self._engine.load()

    def close(self) -> None:
        self._closed = True
        self._engine.close()
        self._finishing.shutdown()

    def _task(self, ask: Ask) -> Task | None:
        """The worker's task; None for the base."""
        if ask.worker:
            registered = self._engine.adapters.get(ask.worker)
            if registered is None:
                raise ConfigError(f"there is no worker {ask.worker!r}", did_you_mean(ask.worker, self._engine.adapters))
            task = registered.task
        else:
            task = None
        generates = task is None or isinstance(task, Generate)
        if ask.want in ("text", *THINGS) and not generates:
            raise ConfigError(f"the worker {ask.worker!r} does not generate: its task is {task.name if task else ''}", "ask for its prediction")
        if ask.want == "prediction" and generates:
            raise ConfigError(f"{ask.worker or 'the base'!r} generates, and predicts nothing", _those(self._engine.adapters, *PREDICTING))
        if ask.want == "vector" and not (generates or isinstance(task, Embed)):
            raise ConfigError(f"the worker {ask.worker!r} gives no vectors", _those(self._engine.adapters, "embed") + "; the base gives plain ones")
        return task

    def _check(self, ask: Ask, question: Question) -> None:
        held, length = self._engine.context, max(map(len, question.sequences))
        wanted = ask.sampling.max_tokens if ask.want == "text" else 0
        if length + wanted > held:
            fits = f"at most {held - length} tokens of an answer fit behind it" if length < held else f"the model holds {held} positions"
            raise ConfigError(f"the question takes {length} positions and its answer {wanted}", fits)
        self._check_choices(ask)
        vocabulary = self._engine.base.model.config.vocab_size
        if unknown := [token for token in ask.sampling.logit_bias if not 0 <= token < vocabulary]:
            raise ConfigError(f"logit_bias names token {unknown[0]}", f"tokens go from 0 to {vocabulary - 1}")

    def _check_choices(self, ask: Ask) -> None:
        for name, number in (("n", ask.sampling.n), *([("paths", ask.make.paths)] if ask.want == "series" else [])):
            if number > self._most_choices:
                raise ConfigError(f"{name} = {number} answers are too many at once", f"at most {self._most_choices}")


PREDICTING = ("classify", "regress", "embed", "rank", "extract")
"""Tasks whose workers predict."""


@dataclass
class _Choice:
    """One of the answers to a question: hears tokens, delivers words. Calls come from the engine's thread alone."""

    number: int
    answer: _Answer
    words: Words
    calls: tools.Calls | None
    echoes: bool = False
    """Whether the prompt is still to be said again."""
    heard_tokens: int = 0
    called: bool = False
    finished: bool = False

    def began(self, cached_tokens: int) -> None:
        self.answer.cached = max(self.answer.cached, cached_tokens)
        self._echo()

    def _echo(self) -> None:
        """Say the prompt again, once; with numbers it comes with `read`."""
        if self.echoes:
            self.echoes = False
            self.answer.tell(Piece(self.number, self.answer.question.text))

    def read(self, drawn: Sequence[Drawn]) -> None:
        self.answer.tell(Piece(self.number, self.answer.question.text, logprobs=tuple(self.answer.numbers(one) for one in drawn)))

    def heard(self, drawn: Sequence[Drawn], finish: Finish | None) -> bool:
        if self.finished:
            return True
        if self.answer.abandoned:
            self.finished = True
            return True
        self._echo()  # an answer of no tokens never begins
        asked = self.answer.ask.sampling.logprobs is not None
        parts: list[Said] = []
        for one in drawn:
            self.heard_tokens += 1
            parts.append(self.words.push(one.token, self.answer.numbers(one) if asked else None))
            if parts[-1].stopped:
                finish = "stop"
                break
        stopped = bool(parts) and parts[-1].stopped
        if finish is not None and not stopped:
            parts.append(self.words.end())
            if parts[-1].stopped:  # half a character at the end can complete no stop string, but what it reads as may
                finish = "stop"
        said = Said("".join(part.text for part in parts), tuple(number for part in parts for number in part.logprobs))
        self._deliver(said, finish)
        return stopped

    def unit(self, unit: Float[np.ndarray, "p"]) -> None:
        raise AssertionError("units were not asked for")

    def state(self, state: Float[np.ndarray, "t d"]) -> None:
        raise AssertionError("states were not asked for")

    def failed(self, error: Exception) -> None:
        if not self.finished:
            self.finished = True
            self.answer.failed(error)

    def _deliver(self, said: Said, finish: Finish | None) -> None:
        text, found = said.text, tuple[ToolCall, ...]()
        if self.calls is not None:
            heard = self.calls.push(text)
            rest = self.calls.end() if finish is not None else tools.Heard()
            text, found = heard.text + rest.text, heard.calls + rest.calls
            self.called = self.called or bool(found)
        if finish == "stop" and self.called:
            finish = "tool_calls"
        self.finished = finish is not None
        if text or found or said.logprobs or finish is not None:
            usage = self.answer.ended() if finish is not None else None
            self.answer.tell(Piece(self.number, text, found, said.logprobs, finish, usage))


class _Answer:
    """The answers to one question, and the ticket of all of them."""

    def __init__(self, ask: Ask, question: Question, base: Base, deliver: Deliver) -> None:
        self.ask, self.question = ask, question
        self._base, self._deliver = base, deliver
        self.tickets: list[Ticket] = []
        self.cached = 0
        self.abandoned = False
        self._texts: dict[int, str] = {}
        listens = ask.tools and ask.tool_choice != "none"
        echoes = ask.echo and ask.sampling.logprobs is None and bool(question.text)
        self.choices = [
            _Choice(number, self, Words(base.encoder, ask.sampling.stop), tools.Calls(ask.tools) if listens else None, echoes)
            for number in range(ask.sampling.n)
        ]
        self._left = len(self.choices)

    def cancel(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()

    def abandon(self) -> None:
        """Some of the answers could not begin: none is told of."""
        self.abandoned = True
        self.cancel()

    def ended(self) -> Usage | None:
        """Counts a choice that has ended; what all cost, once the last has."""
        self._left -= 1
        if self._left:
            return None
        return Usage(self.question.positions, self.cached, sum(choice.heard_tokens for choice in self.choices))

    def failed(self, error: Exception) -> None:
        """One has failed, so all have."""
        if self.abandoned:
            return
        self.abandon()
        self._deliver(Piece(finish="error", error=as_told(error)))

    def tell(self, piece: Piece) -> None:
        """Deliver; whoever cannot take a piece gets no other."""
        try:
            self._deliver(piece)
        except Exception:
            self.abandon()
            raise

    def numbers(self, drawn: Drawn) -> TokenLogprob:
        """A token's numbers in words."""
        return TokenLogprob(
            Alternative(self._text(drawn.token), drawn.logprob, drawn.token), tuple(Alternative(self._text(token), log, token) for token, log in drawn.top)
        )

    def _text(self, token: int) -> str:
        if token not in self._texts:
            alone = decoder(self._base.encoder)
            self._texts[token] = alone.push(token) + alone.end()
        return self._texts[token]


def _those(adapters: Mapping[str, Registered], *tasks: str) -> str:
    names = sorted(name for name, one in adapters.items() if one.task.name in tasks)
    return f"those that do: {', '.join(names)}" if names else f"adapt the base first: {', '.join(tasks)}"
