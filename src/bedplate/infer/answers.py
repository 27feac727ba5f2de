"""Many answers for whoever waits: what a base or a worker, adapted in place, says of questions in order, computed side by side by an engine of its own.

    answers = Answers(base)
    answers.texts(prompts, ends, max_tokens=256)
    answers.predict(task, items)

Numbers are those of the network: float32 weights and products, unless others are asked for. What stands beside a question changes nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bedplate.adapt.base import Base
from bedplate.adapt.encode import Item
from bedplate.adapt.tasks import Task
from bedplate.core.errors import StateError
from bedplate.core.generation import Finish, Sampling
from bedplate.core.prediction import Prediction
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.request import Drawn, Request
from bedplate.infer.words import Words
from bedplate.modality.sequence import Sequence as Positions

AT_ONCE = 128
"""Questions that are under way or wait; the engine never runs dry, and memory does not grow with their number."""


class Answers:
    """Answers in the order of the questions; one caller at a time."""

    def __init__(self, base: Base, dtype: torch.dtype = torch.float32) -> None:
        """Pack the weights.

        Args:
            base: an adapter that its weights carry is part of it; nobody may train it meanwhile.
            dtype: of weights and products. float32 is the network's own; others are computed with a copy of it.
        Raises:
            ResourceError: there is not enough memory.
        """
        self.base = base
        exact = dtype == torch.float32
        settings = EngineSettings("float32" if exact else "auto", device=str(base.model.head.device), threads=torch.get_num_threads(), most_waiting=2 * AT_ONCE)
        self._engine = Engine(base if exact else replace(base, model=deepcopy(base.model)), settings)
        self.close = weakref.finalize(self, self._engine.close)
        """Let go of threads and memory; it happens by itself when nobody holds this any more."""

    @property
    def computed_by(self) -> str:
        """What computes, and in which numbers: "cpu float32"."""
        return self._engine.runner.name

    def texts(
        self, asked: Sequence[Positions], ends: Collection[int], max_tokens: int, stops: Sequence[str] = (), temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """What is said behind each prompt, without what ended it.

        Args:
            asked: what stands before.
            ends: ids of the tokens that end an answer.
            max_tokens: longest answer.
            stops: texts before which an answer ends.
            temperature: 0 takes the likeliest token.
            seed: equal seeds give equal answers.
        Raises:
            ConfigError: a prompt and its answer together are longer than the model's positions.
        """
        sampling = Sampling(max_tokens, temperature, top_p=0.95, seed=seed)
        listeners = [_Text(Words(self.base.encoder, stops)) for _ in asked]
        self._all([Request(one, sampling, ends=frozenset(ends)) for one in asked], listeners)
        return [listener.text for listener in listeners]

    def predict(self, task: Task, items: Sequence[Item]) -> list[Prediction]:
        """What a worker's head says of each item.

        Args:
            task: of the worker, whose network is the base.
            items: encoded without targets.
        """
        made = self.regarded([one for item in items for one in item.sequences], task.layers, task.regard)
        return [task.predict(item, torch.cat([next(made) for _ in item.sequences])) for item in items]

    def regarded(self, asked: Sequence[Positions], layers: int, regard: Callable[[Positions, Tensor], Tensor]) -> Iterator[Tensor]:
        """Something of the states of each sequence; states alone would fill the memory.

        Args:
            asked: to be read.
            layers: how many of the last layers' streams are averaged; 0: the states after the last norm.
            regard: what to keep, on the device of the base.
        """
        found: list[Tensor] = [torch.zeros(0)] * len(asked)
        device = self.base.model.head.device

        def keep(number: int) -> Callable[[np.ndarray], None]:
            def kept(state: np.ndarray) -> None:
                with torch.no_grad():
                    found[number] = regard(asked[number], torch.from_numpy(np.ascontiguousarray(state)).to(device))

            return kept

        self._all([Request(one, layers=layers) for one in asked], [_States(keep(number)) for number in range(len(asked))])
        return iter(found)

    def _all(self, requests: Sequence[Request], listeners: Sequence[_Waited]) -> None:
        """Ask, and wait until all have been heard."""
        room = threading.Semaphore(AT_ONCE)
        tickets = []
        try:
            for request, listener in zip(requests, listeners):
                room.acquire()
                listener.over = room.release
                tickets.append(self._engine.submit(request, listener))
            for _ in range(AT_ONCE):
                room.acquire()
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        for listener in listeners:
            if listener.error is not None:
                raise listener.error


class Teacher:
    """Answers of one model at a time, each asked for alone, as distillation does (`adapt.tasks.distill.Answerer`)."""

    def __init__(self) -> None:
        self._answers: Answers | None = None

    def __call__(self, base: Base, asked: Positions, ends: Collection[int], max_tokens: int) -> str:
        if self._answers is None or self._answers.base is not base:
            self._answers = Answers(base)
        return self._answers.texts([asked], ends, max_tokens)[0]


class _Waited:
    """What both kinds of listeners share."""

    def __init__(self) -> None:
        self.over: Callable[[], Any] = lambda: None
        """Called once, when nothing more is heard."""
        self.error: Exception | None = None

    def began(self, cached_tokens: int) -> None:
        """Nothing is waited for but the end."""

    def read(self, drawn: Sequence[Drawn]) -> None:
        raise AssertionError("numbers were not asked for")

    def heard(self, drawn: Sequence[Drawn], finish: Finish | None) -> bool:
        """Given up: the engine was closed."""
        if finish is not None:
            self.failed(StateError("the answer was cancelled", "ask again"))
        return finish is not None

    def unit(self, unit: Float[np.ndarray, "p"]) -> None:
        raise AssertionError("units were not asked for")

    def state(self, state: Float[np.ndarray, "t d"]) -> None:
        raise AssertionError("states were not asked for")

    def failed(self, error: Exception) -> None:
        """The request came to nothing."""
        self.error = error
        self.over()


class _Text(_Waited):
    """Hears an answer to its end."""

    def __init__(self, words: Words) -> None:
        super().__init__()
        self._words, self._parts = words, list[str]()

    @property
    def text(self) -> str:
        """What was said."""
        return "".join(self._parts)

    def heard(self, drawn: Sequence[Drawn], finish: Finish | None) -> bool:
        if finish == "cancelled":
            return super().heard(drawn, finish)
        stopped = False
        for one in drawn:
            said = self._words.push(one.token)
            self._parts.append(said.text)
            if stopped := said.stopped:
                break
        if finish is not None and not stopped:
            self._parts.append(self._words.end().text)
        if stopped or finish is not None:
            self.over()
        return stopped


class _States(_Waited):
    """Hears the states of a sequence."""

    def __init__(self, keep: Callable[[Float[np.ndarray, "t d"]], None]) -> None:
        super().__init__()
        self._keep = keep

    def state(self, state: Float[np.ndarray, "t d"]) -> None:
        try:
            self._keep(state)
        except Exception as error:  # whoever waits hears of it
            self.error = error
        self.over()
