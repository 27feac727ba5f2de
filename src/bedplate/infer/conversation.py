"""A conversation: its turns, and answers that come piece by piece. Keys and values of the turns before are kept, so a turn costs only what is new."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bedplate.adapt.base import Base
from bedplate.core.errors import ConfigError, StateError
from bedplate.data.chat import Message
from bedplate.infer.draw import check, draw
from bedplate.model.transformer import Cache

UNFINISHED = "\ufffd"
"""What a token decodes to that ends within a character; the next tokens complete it."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_tokens: int = 512
    """Longest answer."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 0.95
    """Only the likeliest tokens that together have this probability."""
    seed: int = 0
    """Equal seeds give equal answers to equal conversations."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens = {self.max_tokens} leaves nothing to say", "512 is usual")
        check(self.temperature, 0, self.top_p)


@dataclass
class Conversation:
    """Turns so far, with the model that answers."""

    base: Base
    """The model, adapted or not, with its tokenizer and chat template."""
    turns: list[Message] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)
    tokens: int = 0
    """Of the last answer."""
    seconds: float = 0.0
    """From the question to the end of the last answer."""
    first_s: float = 0.0
    """From the question to the first token of the last answer."""
    forgotten: int = 0
    """Turns that the last question had no room for."""

    def __post_init__(self) -> None:
        self._seen = np.zeros(0, np.int64)
        """Ids whose keys and values the cache holds."""
        self._cache = Cache(self.base.model.config.num_hidden_layers)

    def ask(self, text: str) -> Generator[str]:
        """The answer to a new turn of the user, piece by piece. Closed early, what was said so far is the answer.

        Raises:
            ConfigError: the question alone is longer than the model's positions.
        """
        return self._answer([*self.turns, Message("user", text)])

    def again(self) -> Generator[str]:
        """Another answer to the last question, drawn with the next seed.

        Raises:
            StateError: nothing was asked yet.
        """
        if not any(turn.role == "user" for turn in self.turns):
            raise StateError("nothing was asked yet", "ask something first")
        kept = list(self.turns)
        while kept[-1].role != "user":
            kept.pop()
        return self._answer(kept, 1)

    def _answer(self, turns: list[Message], more_seed: int = 0) -> Generator[str]:
        began = time.monotonic()
        asked = self._fitting(turns)
        ends = self.base.template.ends()
        said: list[int] = []
        told = ""
        self.tokens, self.seconds, self.first_s = 0, 0.0, 0.0
        try:
            for token in self._tokens(asked, ends, self.sampling.seed + more_seed):
                said.append(token)
                self.first_s = self.first_s or time.monotonic() - began
                if not (text := self.base.decode(np.array(said))).endswith(UNFINISHED):
                    yield text[len(told) :]
                    told = text
        finally:
            whole = self.base.decode(np.array(said)) if said else ""
            self.turns = [*turns, Message("assistant", whole)]
            self.tokens, self.seconds = len(said), time.monotonic() - began
        if whole != told:
            yield whole[len(told) :]

    def _fitting(self, turns: Sequence[Message]) -> np.ndarray:
        """Ids of the conversation; the oldest turns that there is no room for are left out, two by two, never what the system says."""
        room = self.base.model.config.max_position_embeddings - self.sampling.max_tokens
        system = [turn for turn in turns if turn.role == "system"]
        rest = [turn for turn in turns if turn.role != "system"]
        self.forgotten = 0
        while True:
            ids = self.base.template.encode([*system, *rest], self.base.encoder, ask=True).ids
            if len(ids) <= room:
                return ids.astype(np.int64)
            if len(rest) <= 1:
                hint = f"at most {max(0, room)} fit besides an answer of {self.sampling.max_tokens}"
                raise ConfigError(f"the question is {len(ids)} tokens long", hint)
            rest = rest[2:]
            self.forgotten += 2

    def _tokens(self, asked: np.ndarray, ends: Collection[int], seed: int) -> Iterator[int]:
        """Tokens of the answer, up to the one that ends it."""
        model, sampling = self.base.model, self.sampling
        shared = min(len(asked) - 1, len(self._seen))  # one position at least is computed: its state predicts the answer
        same = int(np.argmin(np.append(asked[:shared] == self._seen[:shared], False)))
        self._cache.crop(same)
        self._seen = self._seen[:same]
        step = asked[same:]
        forbidden = [number for number in model.config.special_ids.values() if number not in ends]  # marks of other senses are not text
        generator = torch.Generator(model.head.device).manual_seed(seed)
        for _ in range(sampling.max_tokens):
            with torch.inference_mode():
                last = model.model(model.model.embed_tokens(torch.from_numpy(step).to(model.head.device))[None], None, self._cache)[:, -1]
                self._seen = np.concatenate([self._seen, step])
                logits = model.logits(last).float()
                logits[:, forbidden] = -torch.inf
                token = int(draw(logits, sampling.temperature, 0, sampling.top_p, generator))
            if token in ends:
                return
            yield token
            step = np.array([token])
