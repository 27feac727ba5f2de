"""A conversation: its turns, and answers that come piece by piece.

    talk = Conversation(Native(engine))
    for piece in talk.ask("hello"): ...

What the generator has read of the turns before it keeps by itself (`Running.known_keys`), so a turn costs only what is new.
"""

from __future__ import annotations

import time
from collections.abc import Generator as Pieces
from dataclasses import dataclass, field, replace

from bedplate.core.contracts import Generator
from bedplate.core.errors import BedplateError, ConfigError, StateError
from bedplate.core.generation import Ask, Sampling, Turn, stream
from bedplate.data.chat import Message

USUAL = Sampling(max_tokens=512, top_p=0.95)
"""How answers are drawn where nobody says."""


@dataclass
class Conversation:
    """Turns so far, with who answers."""

    generator: Generator
    worker: str = ""
    """Of the generator; "": the base."""
    turns: list[Message] = field(default_factory=list)
    sampling: Sampling = USUAL
    """n is not looked at: a conversation has one answer."""
    tokens: int = 0
    """Of the last answer; of one that was stopped, its text's."""
    seconds: float = 0.0
    """From the question to the end of the last answer."""
    first_s: float = 0.0
    """From the question to the first words of the last answer."""
    forgotten: int = 0
    """Turns that the last question had no room for."""
    drawn_again: int = 0
    """Further answers to the last question; each has the next seed."""

    def ask(self, text: str) -> Pieces[str]:
        """The answer to a new turn of the user, piece by piece. Closed early, what was said so far is the answer.

        Raises:
            ConfigError: the question alone is longer than the generator's context.
        """
        self.drawn_again = 0
        return self._answer([*self.turns, Message("user", text)])

    def again(self) -> Pieces[str]:
        """Another answer to the last question, drawn with the next seed.

        Raises:
            StateError: nothing was asked yet.
        """
        if not any(turn.role == "user" for turn in self.turns):
            raise StateError("nothing was asked yet", "ask something first")
        kept = list(self.turns)
        while kept[-1].role != "user":
            kept.pop()
        self.drawn_again += 1
        return self._answer(kept)

    def _answer(self, turns: list[Message]) -> Pieces[str]:
        began = time.monotonic()
        self.tokens, self.seconds, self.first_s = 0, 0.0, 0.0
        said, tokens, keeps = "", None, True
        pieces = stream(self.generator, self._fitting(turns))
        try:
            for piece in pieces:
                if piece.usage is not None:
                    tokens = piece.usage.completion_tokens
                if piece.text:
                    self.first_s = self.first_s or time.monotonic() - began
                    said += piece.text
                    yield piece.text
        except BedplateError:
            keeps = bool(said)  # a question that nobody could answer was not asked
            raise
        finally:
            pieces.close()
            self.seconds = time.monotonic() - began
            if keeps:
                self.turns = [*turns, Message("assistant", said)]
            if tokens is None:
                tokens = self.generator.count(Ask(prompt=said)) if said else 0
            self.tokens = tokens

    def _fitting(self, turns: list[Message]) -> Ask:
        """The question; the oldest turns that there is no room for are left out, two by two, never what the system says."""
        if self.sampling.max_tokens < 1:
            raise ConfigError(f"max_tokens = {self.sampling.max_tokens} leaves nothing to say", "512 is usual")
        sampling = replace(self.sampling, n=1, seed=self.sampling.seed + self.drawn_again)
        context = {card.name: card.context_tokens for card in self.generator.workers()}.get(self.worker, 0)
        room = context - sampling.max_tokens
        system = [turn for turn in turns if turn.role == "system"]
        rest = [turn for turn in turns if turn.role != "system"]
        self.forgotten = 0
        while True:
            ask = Ask(self.worker, tuple(Turn.of(turn.role, turn.content) for turn in (*system, *rest)), sampling=sampling)
            if (long := self.generator.count(ask)) <= room:
                return ask
            if len(rest) <= 1:
                raise ConfigError(f"the question is {long} tokens long", f"at most {max(0, room)} fit besides an answer of {sampling.max_tokens}")
            rest = rest[2:]
            self.forgotten += 2
