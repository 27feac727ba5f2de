"""The token engine's slow twin: one request at a time, one position a step, nothing kept between requests. What it says is what the engine has to say."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from bedplate.adapt.base import Base
from bedplate.adapt.encode import collate
from bedplate.adapt.loop import restore
from bedplate.core.artifact import verify
from bedplate.core.errors import ConfigError, ResourceError, StateError, did_you_mean
from bedplate.core.generation import Finish, Load, Sampling, Ticket
from bedplate.infer.adapters import Registered
from bedplate.infer.request import Drawn, Listener, Request
from bedplate.model.batch import to_torch
from bedplate.model.foundation import FoundationModel, attention_mask
from bedplate.model.transformer import Cache
from bedplate.testing.slow_units import units


class SlowTicket:
    """A request under way."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


class SlowEngine:
    """Answers requests one after the other.

    Args:
        base: the model.
        adapters: name -> adapter folder. Each gets a base of its own, read again.
        folder: where the base was read from, where there are adapters.
        most_waiting: requests that may wait.
    """

    def __init__(self, base: Base, adapters: Mapping[str, Path] | None = None, folder: Path | None = None, most_waiting: int = 1000) -> None:
        self.base, self.context = base, base.model.config.max_position_embeddings
        self._folder = folder
        self._bases: dict[str, Base] = {"": base}
        self.adapters: dict[str, Registered] = {}
        for name, adapter in (adapters or {}).items():
            self.register(name, adapter)
        self._most_waiting = most_waiting
        self._requests: queue.SimpleQueue[tuple[Request, Listener, SlowTicket] | None] = queue.SimpleQueue()
        self._closed = False
        self._running = 0
        self._counters = {"prompt_tokens": 0, "completion_tokens": 0}
        self._thread = threading.Thread(target=self._serve, name="slow engine", daemon=True)
        self._thread.start()

    def register(self, name: str, folder: Path) -> Registered:
        if name in self._bases:
            raise ConfigError(f"there is a worker {name!r} already", "unregister it first, or take another name")
        assert self._folder is not None
        base = Base.load(self._folder)
        made = Registered(restore(base, folder), verify(folder, "adapter").digest, folder, True)
        self._bases[name] = base
        self.adapters[name] = made
        return made

    def unregister(self, name: str) -> None:
        if name not in self.adapters:
            raise ConfigError(f"there is no worker {name!r}", did_you_mean(name, self.adapters))
        del self.adapters[name]  # its base stays for what is under way

    def submit(self, request: Request, listener: Listener) -> Ticket:
        if self._closed:
            raise StateError("the engine is closed", "open another")
        if self._requests.qsize() >= self._most_waiting:
            raise ResourceError(f"{self._most_waiting} requests wait already", "ask again in a second")
        ticket = SlowTicket()
        self._requests.put((request, listener, ticket))
        return ticket

    def load(self) -> Load:
        return Load(self._running, self._requests.qsize(), counters=dict(self._counters))

    def close(self) -> None:
        self._closed = True
        self._requests.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (found := self._requests.get()) is not None:
            request, listener, ticket = found
            if self._closed:
                ticket.cancel()
            self._running = 1
            try:
                with torch.inference_mode():
                    self._answer(request, listener, ticket)
            except Exception as error:
                listener.failed(error)
            self._running = 0

    def _answer(self, request: Request, listener: Listener, ticket: SlowTicket) -> None:
        base = self._bases[request.adapter]
        model, sampling = base.model, request.sampling
        if (early := _early(request, ticket)) is not None:
            listener.heard((), early)
            return
        batch = to_torch(collate([request.positions], base.pad_id), model.head.device)
        listener.began(0)
        self._counters["prompt_tokens"] += len(request.positions)
        if request.making is not None:
            listener.heard((), self._make(model, request, listener, ticket))
            return
        if request.layers is not None:
            listener.state(model.hidden(batch, request.layers or None)[0].float().cpu().numpy())
            return
        cache = Cache(model.config.num_hidden_layers)
        states = model.model(model.embed(batch), attention_mask(batch), cache)[0]
        if request.prompt_logprobs is not None:
            listener.read(_read(model.logits(states[:-1]).float().cpu().numpy(), request))
        if not sampling.max_tokens:
            listener.heard((), "length")
            return
        text = request.positions.tokens[request.positions.sense == 0].tolist()
        forbidden = [number for number in model.config.special_ids.values() if number not in request.ends]
        forbidden += sorted(request.ends) if sampling.ignore_end else []
        said: list[int] = []
        state = states[-1:]
        while True:
            logits = model.logits(state)[0].float().cpu().numpy().astype(np.float64)
            if (early := _early(request, ticket)) is not None:
                listener.heard((), early)
                return
            drawn = draw(logits, request, text, said, forbidden)
            if drawn.token in request.ends:
                listener.heard((), "stop")
                return
            said.append(drawn.token)
            self._counters["completion_tokens"] += 1
            if request.constraint is not None:
                request.constraint.advance(drawn.token)
            finish: Finish | None = "length" if len(said) == sampling.max_tokens else None
            if request.constraint is not None and request.constraint.ended:
                finish = "stop"
            if listener.heard((drawn,), finish) or finish is not None:
                return
            state = model.model(model.model.embed_tokens(torch.tensor([[drawn.token]], device=model.head.device)), None, cache)[:, -1]

    def _make(self, model: FoundationModel, request: Request, listener: Listener, ticket: SlowTicket) -> Finish:
        made = 0
        for unit in units(model, request):
            listener.unit(unit)
            made += 1
            self._counters["completion_tokens"] += 1
            if (early := _early(request, ticket)) is not None:
                return early
        return "length" if made == request.wanted else "stop"


def draw(logits: Float[np.ndarray, "v"], request: Request, asked: Sequence[int], said: Sequence[int], forbidden: Sequence[int]) -> Drawn:
    """The next token, in the plainest way: one rule after the other on all logits.

    Args:
        logits: of every token.
        request: how to draw.
        asked: tokens of the question.
        said: tokens of the answer so far.
        forbidden: tokens that are never drawn.
    """
    sampling = request.sampling
    logs = logits - np.logaddexp.reduce(logits)
    changed = penalised(logits, sampling, asked, said)
    changed[list(forbidden)] = -np.inf
    if request.constraint is not None:
        words = np.zeros((len(logits) + 31) // 32, np.int32)
        if request.constraint.allow(words):
            bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: len(logits)]
            changed[bits == 0] = -np.inf
    if sampling.temperature == 0:
        token = int(changed.argmax())
    else:
        noise = np.random.default_rng([sampling.seed & 0xFFFFFFFFFFFFFFFF, len(said)]).gumbel(size=len(logits))
        token = int((_kept(changed / sampling.temperature, sampling) + noise).argmax())
    if sampling.logprobs is None:
        return Drawn(token, float("nan"))
    return Drawn(token, float(logs[token]), _top(logs, sampling.logprobs))


def penalised(logits: Float[np.ndarray, "v"], sampling: Sampling, asked: Sequence[int], said: Sequence[int]) -> Float[np.ndarray, "v"]:
    """Logits after penalties and bias."""
    changed: np.ndarray = logits.copy()
    seen = np.array(sorted({*asked, *said}), np.int64)
    if len(seen) and sampling.repetition_penalty != 1:
        held = changed[seen]
        changed[seen] = np.where(held > 0, held / sampling.repetition_penalty, held * sampling.repetition_penalty)
    if said:
        counts = np.bincount(np.array(said, np.int64), minlength=len(logits))
        changed -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
    for token, bias in sampling.logit_bias.items():
        changed[token] += bias if -100 < bias < 100 else np.inf * bias if bias < 0 else 1e9
    return changed


def _kept(scaled: Float[np.ndarray, "v"], sampling: Sampling) -> Float[np.ndarray, "v"]:
    """Scaled logits of the tokens that top-k, top-p and min-p leave, one after the other."""
    order = np.argsort(-scaled, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    shares = np.exp(scaled[order] - scaled[order].max())
    shares /= shares.sum()
    stays = (np.cumsum(shares) - shares < sampling.top_p) & (shares >= sampling.min_p * shares[0])
    kept = np.full_like(scaled, -np.inf)
    kept[order[stays]] = scaled[order[stays]]
    return kept


def _top(logs: Float[np.ndarray, "v"], k: int) -> list[tuple[int, float]]:
    order = np.argsort(-logs, kind="stable")[:k]
    return [(int(token), float(logs[token])) for token in order]


def _read(logits: Float[np.ndarray, "t v"], request: Request) -> list[Drawn]:
    """Each token of the question with its numbers."""
    assert request.prompt_logprobs is not None
    tokens, sense = request.positions.tokens, request.positions.sense
    found = [Drawn(int(tokens[0]), float("nan"))]
    for place in range(1, len(tokens)):
        if sense[place]:
            found.append(Drawn(int(tokens[place]), float("nan")))
            continue
        row = logits[place - 1].astype(np.float64)
        logs = row - np.logaddexp.reduce(row)
        found.append(Drawn(int(tokens[place]), float(logs[tokens[place]]), _top(logs, request.prompt_logprobs)))
    return found


def _early(request: Request, ticket: SlowTicket) -> Finish | None:
    if ticket.cancelled.is_set():
        return "cancelled"
    return "deadline" if request.deadline is not None and time.monotonic() >= request.deadline else None


