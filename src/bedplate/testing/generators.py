"""A fake Generator: answers are a pure function of the question and its seed, and come as an engine's do, a token of everybody's a step.

    fake = FakeGenerator(workers=("triage",))
    whole(fake, Ask(turns=(Turn.of("user", "hello"),)))      # the same words every time

It has a vocabulary (bytes and some words), so that token ids, logprobs, echo, stop texts and limits on context mean what they mean elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bedplate.core.errors import BedplateError, ConfigError, ResourceError, StateError, did_you_mean
from bedplate.core.generation import THINGS, Alternative, Ask, Deliver, Finish, Load, Piece, TokenLogprob, ToolCall, Usage, WorkerCard
from bedplate.testing.fake_predictions import PREDICTING, check, predicted
from bedplate.testing.fake_words import WORDS, Draw, decode, encode, example, formed


@dataclass
class _Choice:
    """One answer under way."""

    script: list[int]
    """What it will say."""
    finish: Finish
    calls: tuple[ToolCall, ...] = ()
    at: int = 0
    held: str = ""
    """Said, but perhaps the beginning of a stop text."""
    held_logprobs: list[TokenLogprob] = field(default_factory=list)
    half: list[int] = field(default_factory=list)
    """Bytes of a character that is not complete."""
    ended: bool = False
    said: int = 0


@dataclass
class _Running:
    """One question under way; it is also its ticket."""

    ask: Ask
    deliver: Deliver
    prompt: tuple[int, ...]
    choices: list[_Choice]
    until_s: float
    due_s: float
    task: str
    cancelled: bool = False
    wake: Callable[[], None] = lambda: None

    def cancel(self) -> None:
        """Stop."""
        self.cancelled = True
        self.wake()


class FakeGenerator:
    """Deterministic, streaming, as slow and as faulty as it is told to be."""

    def __init__(
        self,
        *,
        workers: Sequence[str] = (),
        predictors: Mapping[str, str] | None = None,
        senses: tuple[str, ...] = ("text", "image", "audio", "series"),
        context_tokens: int = 4096,
        step_s: float = 0.0,
        first_s: float = 0.0,
        most_running: int = 64,
        most_waiting: int = 4096,
        fails: Callable[[Ask], BedplateError | None] = lambda ask: None,
        fails_after: int = 3,
        work: Callable[[int], None] = lambda running: None,
        digest: str = "0" * 64,
    ) -> None:
        """
        Args:
            workers: adapters that generate.
            predictors: adapters that do not: name -> task, one of classify, regress, embed, rank, extract.
            senses: what it takes in.
            context_tokens: longest question and answer together.
            step_s: seconds between the steps, in each of which every answer under way gets a token.
            first_s: seconds before the first token of an answer.
            most_running: answers worked on at once; others wait.
            most_waiting: questions that may wait; more are refused.
            fails: question -> the error that its answer ends with, after `fails_after` tokens; None: it is answered.
            work: done in every step, told how many answers are under way: what an engine would compute.
            digest: of its model.
        """
        self._cards: dict[str, WorkerCard] = {}
        for name, task in [("", "generate"), *((worker, "generate") for worker in workers), *(predictors or {}).items()]:
            digests = {"model": digest} | ({"adapter": hashlib.sha256(name.encode()).hexdigest()} if name else {})
            self._cards[name] = WorkerCard(name, task, digests, context_tokens, senses)
        self._context = context_tokens
        self._step_s, self._first_s = step_s, first_s
        self._most_running, self._most_waiting = most_running, most_waiting
        self._fails, self._fails_after = fails, fails_after
        self._work_of_step = work
        self._turn = threading.Condition()
        self._waiting: list[_Running] = []
        self._running: list[_Running] = []
        self._closed = False
        self._counters: Counter[str] = Counter()
        self._recent: list[tuple[float, int]] = []
        self.asked: list[Ask] = []
        """The last questions, newest last; at most 1000."""
        self._thread = threading.Thread(target=self._work, name="fake generator", daemon=True)
        self._thread.start()

    # The contract.

    def submit(self, ask: Ask, deliver: Deliver) -> _Running:
        """Begin an answer."""
        card = self._card(ask)
        prompt = self._prompt(ask)
        room = self._context - len(prompt)
        if room < (1 if ask.want == "text" and ask.sampling.max_tokens else 0):
            raise ConfigError(f"the question is {len(prompt)} tokens long", f"at most {self._context} fit with the answer")
        if ask.want in THINGS:
            raise ConfigError(f"{card.name or 'the base'} makes no {ask.want}", "ask for text, a vector or a prediction; a model of its senses makes things")
        check(card, ask)
        now_s = time.monotonic()
        choices = [self._choice(ask, prompt, number, room) for number in range(ask.sampling.n)] if ask.want == "text" else [_Choice([], "stop")]
        until_s = math.inf if ask.deadline_s is None else now_s + ask.deadline_s
        running = _Running(ask, deliver, prompt, choices, until_s, now_s + self._first_s, card.task, wake=self._wake)
        with self._turn:
            if self._closed:
                raise StateError("the generator is closed", "make another")
            if len(self._waiting) >= self._most_waiting:
                raise ResourceError(f"{len(self._waiting)} questions wait already", "ask again in a second")
            self.asked = [*self.asked[-999:], ask]
            self._waiting.append(running)
            self._turn.notify()
        return running

    def workers(self) -> Sequence[WorkerCard]:
        """What can be asked for, the base first."""
        return list(self._cards.values())

    def count(self, ask: Ask) -> int:
        """Positions of a question."""
        self._card(ask)
        return len(self._prompt(ask))

    def load(self) -> Load:
        """How busy it is."""
        now_s = time.monotonic()
        with self._turn:
            self._recent = [(at, said) for at, said in self._recent if at > now_s - 5]
            speed = sum(said for _, said in self._recent) / 5
            return Load(len(self._running), len(self._waiting), len(self._running) / self._most_running, speed, dict(self._counters))

    def close(self) -> None:
        """Cancel what is under way."""
        with self._turn:
            self._closed = True
            self._turn.notify()
        self._thread.join()

    # Adapters come and go while it serves.

    def register(self, name: str, folder: Path) -> WorkerCard:
        """Another worker from now on; its task is the folder's first word before a dash, where that is a task."""
        if name in self._cards:
            raise ConfigError(f"there is a worker {name!r} already", "unregister it first")
        task = folder.name.partition("-")[0]
        base = self._cards[""]
        digests = {**base.digests, "adapter": hashlib.sha256(str(folder).encode()).hexdigest()}
        card = WorkerCard(name, task if task in PREDICTING else "generate", digests, self._context, base.senses)
        self._cards = {**self._cards, name: card}
        return card

    def unregister(self, name: str) -> None:
        """One worker fewer; what it is answering, it answers to the end."""
        if not name or name not in self._cards:
            raise ConfigError(f"there is no worker {name!r}", did_you_mean(name, [known for known in self._cards if known]))
        self._cards = {known: card for known, card in self._cards.items() if known != name}

    # The words.

    def _card(self, ask: Ask) -> WorkerCard:
        if ask.worker not in self._cards:
            raise ConfigError(f"there is no worker {ask.worker!r}", did_you_mean(ask.worker, self._cards))
        return self._cards[ask.worker]

    def _prompt(self, ask: Ask) -> tuple[int, ...]:
        if isinstance(ask.prompt, tuple):
            if unknown := [token for token in ask.prompt if not 0 <= token < 256 + len(WORDS)]:
                raise ConfigError(f"there is no token {unknown[0]}", f"ids go from 0 to {255 + len(WORDS)}")
            return ask.prompt
        if isinstance(ask.prompt, str):
            return encode(ask.prompt)
        ids: list[int] = []
        for turn in ask.turns:
            ids += encode(f"<{turn.role}>")
            for part in turn.parts:
                ids += encode(part.text) if part.sense == "text" else [0] * 4  # the units of a picture or a sound
            for call in turn.tool_calls:
                ids += encode(f"{call.name}({call.arguments})")
        return tuple(ids)

    def _choice(self, ask: Ask, prompt: tuple[int, ...], number: int, room: int) -> _Choice:
        sampling = ask.sampling
        seed = sampling.seed + number if sampling.temperature > 0 else 0
        draw = Draw(ask.worker, repr(prompt), str(seed))
        tool = self._tool(ask)
        if tool:
            arguments = json.dumps(example(next(one.parameters for one in ask.tools if one.name == tool), draw))
            call = ToolCall("call_" + draw.hex(24), tool, arguments)
            return _Choice(list(encode(arguments))[: sampling.max_tokens], "tool_calls", (call,))
        if ask.form is not None:
            script = list(encode(formed(ask, draw)))
        else:
            length = 8 + draw.below(24)
            if sampling.ignore_end:
                length = sampling.max_tokens
            allowed = [256 + n for n in range(len(WORDS)) if sampling.logit_bias.get(256 + n, 0) > -100]
            forced = [256 + n for n in range(len(WORDS)) if sampling.logit_bias.get(256 + n, 0) >= 100]
            allowed = forced or allowed or [0x2E]
            script = [allowed[draw.below(len(allowed))] for _ in range(length)]
        most = min(sampling.max_tokens, room)
        return _Choice(script[:most], "length" if len(script) > most or not most or sampling.ignore_end else "stop")

    def _tool(self, ask: Ask) -> str:
        """The tool that is called: the one that must be, or one whose name the last turn of a user holds."""
        names = [tool.name for tool in ask.tools]
        if not names or ask.tool_choice == "none":
            return ""
        if ask.tool_choice in names:
            return ask.tool_choice
        last = ask.turns[-1] if ask.turns else None
        spoken = [name for name in names if last is not None and last.role == "user" and name in last.text]
        return (spoken or names)[0] if spoken or ask.tool_choice == "required" else ""

    # The steps.

    def _wake(self) -> None:
        with self._turn:
            self._turn.notify()

    def _work(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._closed or self._waiting or self._running)
                if self._closed:
                    for running in [*self._running, *self._waiting]:
                        running.cancelled = True
                while self._waiting and (len(self._running) < self._most_running or self._closed):
                    self._running.append(self._waiting.pop(0))
                active = list(self._running)
                self._counters["steps"] += 1
            began = time.monotonic()
            self._work_of_step(len(active))
            ended = [running for running in active if self._advance(running, time.monotonic())]
            with self._turn:
                self._running = [running for running in self._running if running not in ended] if ended else self._running
                if self._closed and not self._running:
                    return
            rest_s = self._step_s - (time.monotonic() - began)
            if self._running and not self._closed:
                due_s = min((running.due_s for running in self._running), default=0.0) - time.monotonic()
                time.sleep(max(0.0, rest_s, min(due_s, 0.01)))

    def _advance(self, running: _Running, now_s: float) -> bool:
        """One step of one question; whether it has ended."""
        ask = running.ask
        if running.cancelled or now_s >= running.until_s:
            self._end_all(running, "cancelled" if running.cancelled else "deadline")
            return True
        if now_s < running.due_s:
            return False
        error = self._fails(ask)
        if error is not None and (ask.want != "text" or max(choice.said for choice in running.choices) >= self._fails_after):
            running.deliver(Piece(finish="error", error=error))
            return True
        if ask.want != "text":
            self._think(running)
            return True
        if ask.echo:
            first = all(choice.at == 0 and not choice.ended for choice in running.choices)
            if first:
                for number in range(len(running.choices)):
                    logprobs = tuple(self._logprob(ask, running.prompt, n) for n in range(len(running.prompt))) if ask.sampling.logprobs is not None else ()
                    running.deliver(Piece(number, decode(running.prompt), logprobs=logprobs))
        for number, choice in enumerate(running.choices):
            if not choice.ended:
                self._say(running, number, choice)
        if all(choice.ended for choice in running.choices):
            self._last(running)
            return True
        return False

    def _say(self, running: _Running, number: int, choice: _Choice) -> None:
        ask, sampling = running.ask, running.ask.sampling
        finish: Finish | None = None
        if choice.at < len(choice.script):
            token = choice.script[choice.at]
            choice.at += 1
            choice.said += 1
            if choice.calls:  # complete calls, never fragments
                if choice.at < len(choice.script):
                    return
            else:
                choice.half.append(token)
                text = decode(choice.half)
                if not text.endswith("\ufffd") or len(choice.half) >= 4:
                    choice.held += text
                    choice.half = []
                if sampling.logprobs is not None:
                    choice.held_logprobs.append(self._logprob(ask, (*running.prompt, *choice.script[: choice.at]), len(running.prompt) + choice.at - 1))
        if choice.at >= len(choice.script):
            finish = choice.finish
        stopped = [at for at in (choice.held.find(stop) for stop in sampling.stop) if at >= 0]
        if stopped and not choice.calls:
            choice.held, finish = choice.held[: min(stopped)], "stop"
        if finish is None and any(stop.startswith(choice.held[-k:]) for stop in sampling.stop for k in range(1, len(stop)) if len(choice.held) >= k):
            return  # perhaps the beginning of a stop text
        text, logprobs = choice.held, tuple(choice.held_logprobs)
        choice.held, choice.held_logprobs = "", []
        choice.ended = finish is not None
        if choice.calls and finish == "length":
            running.deliver(Piece(number, finish="length"))
        elif text or logprobs or finish is not None:
            usage = self._usage(running) if all(one.ended for one in running.choices) else None
            running.deliver(Piece(number, text, choice.calls if finish == "tool_calls" else (), logprobs, finish, usage))

    def _last(self, running: _Running) -> None:
        usage = self._usage(running)
        with self._turn:
            self._counters["prompt_tokens"] += usage.prompt_tokens
            self._counters["completion_tokens"] += usage.completion_tokens
            self._recent.append((time.monotonic(), usage.completion_tokens))

    def _end_all(self, running: _Running, finish: Finish) -> None:
        open_choices = [number for number, choice in enumerate(running.choices) if not choice.ended]
        for number in open_choices:
            running.choices[number].ended = True
            usage = self._usage(running) if number == open_choices[-1] else None
            running.deliver(Piece(number, finish=finish, usage=usage))
        self._last(running)

    def _usage(self, running: _Running) -> Usage:
        return Usage(len(running.prompt), 0, sum(choice.said for choice in running.choices))

    def _think(self, running: _Running) -> None:
        """A prediction."""
        ask = running.ask
        draw = Draw(ask.worker, repr(running.prompt), *(part.sense + hashlib.sha256(part.data).hexdigest() for turn in ask.turns for part in turn.parts))
        usage = Usage(len(running.prompt), 0, 0)
        text = ask.turns[-1].text if ask.turns else decode(running.prompt)
        running.deliver(Piece(prediction=predicted(running.task, ask, text, draw), finish="stop", usage=usage))
        running.choices[0].ended = True
        self._last(running)

    def _logprob(self, ask: Ask, tokens: tuple[int, ...], at: int) -> TokenLogprob:
        """Of a token in its place: the likeliest one, or one of the less likely."""
        token = tokens[at]
        if at == 0:
            return TokenLogprob(Alternative(decode(tokens[:1]), math.nan, token))
        draw = Draw("logprob", repr(tokens[:at]))
        likeliest = 256 + draw.below(len(WORDS))
        others = [likeliest, *(256 + (likeliest - 256 + k) % len(WORDS) for k in range(1, len(WORDS)))]
        ranked = [Alternative(WORDS[other - 256], -0.5 - 0.25 * rank, other) for rank, other in enumerate(others)]
        said = next((one for one in ranked if one.id == token), Alternative(decode((token,)), -12.0, token))
        return TokenLogprob(said, tuple(ranked[: ask.sampling.logprobs or 0]))
