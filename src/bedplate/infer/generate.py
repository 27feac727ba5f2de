"""Generation in every sense from one model, for programs that wait: text, filled-in middles, pictures, sounds, clips, forecasts.

    with Generation.load(Path("runs/first/model")) as made:
        made.text("The first rule of incident response is")
        made.image("handwritten digit seven", n=4)

An engine of its own makes all that one call asks for side by side. Who serves many at once asks the engine through infer/native.py.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float, UInt8

from bedplate.adapt.base import Base
from bedplate.core.errors import ConfigError, DataError
from bedplate.core.generation import Finish, Sampling
from bedplate.data.chat import ChatTemplate
from bedplate.data.tokenizer import Encoder
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.forecast import Forecast, of_paths
from bedplate.infer.request import Drawn, Request
from bedplate.infer.seeds import seeds
from bedplate.infer.units import Clip, Future, Picture, Plan, Sound, Wanted, at_least, planned, spec_of
from bedplate.modality import audio
from bedplate.modality.chat_template import CHATML
from bedplate.modality.sequence import Sequence as Positions
from bedplate.model.foundation import FoundationModel

EXACT = EngineSettings(precision="float32")
"""Weights as they are: what is made here is looked at, and mostly by whoever trained the model."""


class Generation:
    """A model with its tokenizer, ready to make things. Equal seeds make equal things. Close it, or use it in a `with` block."""

    def __init__(self, model: FoundationModel, tokenizer_json: str, settings: EngineSettings = EXACT) -> None:
        """Open an engine.

        Args:
            model: it must not learn while this is open.
            tokenizer_json: what `tokenizers` wrote.
            settings: of the engine.
        Raises:
            DataError: they do not belong together.
        """
        encoder = Encoder(tokenizer_json)
        special = model.config.special_ids
        marks = ["<|endoftext|>", *(f"<|{sense}|>" for sense in model.config.senses.present())]
        if missing := [mark for mark in marks if mark not in special]:
            raise DataError(f"the model has no id of {missing[0]}", "it was made without a corpus; train it on one")
        if encoder.size > model.config.vocab_size:
            raise DataError(f"the tokenizer has {encoder.size} tokens, the model {model.config.vocab_size}", "take the one that the model came with")
        self.base = Base(model.eval(), encoder, ChatTemplate(CHATML, special), "")
        self.special = special
        self.engine = Engine(self.base, settings)

    @classmethod
    def load(cls, folder: Path, settings: EngineSettings = EXACT) -> Self:
        """From a model folder.

        Raises:
            DataError: it is no model, or has no tokenizer that fits.
            IntegrityError: a digest does not hold.
        """
        model = FoundationModel.load(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            raise DataError(f"{folder} has no tokenizer.json", "train the model on a corpus, which brings its tokenizer along")
        written = path.read_text(encoding="utf-8")
        try:
            Encoder(written)
        except Exception as error:  # `tokenizers` raises plain Exceptions on damage
            raise DataError(f"{path} is not a tokenizer: {error}", "restore the model folder from a copy") from error
        return cls(model, written, settings)

    @property
    def model(self) -> FoundationModel:
        """The network."""
        return self.base.model

    def close(self) -> None:
        """Let go of the engine."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def text(
        self, prompt: str, n: int = 1, most_tokens: int = 100, temperature: float = 0.8, top_k: int = 0, top_p: float = 0.95, seed: int = 0
    ) -> list[str]:
        """Continuations of a prompt, without it.

        Args:
            prompt: what stands before; may be empty.
            n: how many.
            most_tokens: longest continuation.
            temperature: 0 takes the likeliest token.
            top_k: only the k likeliest tokens; 0: all.
            top_p: only the likeliest tokens that together have this probability.
            seed: of the draws.
        """
        ids = [self.special["<|endoftext|>"], *self._encode(prompt)]
        return self._continue(ids, n, most_tokens, temperature, top_k, top_p, seed)

    def fill_in(
        self, before: str, after: str, n: int = 1, most_tokens: int = 60, temperature: float = 0.6, top_k: int = 0, top_p: float = 0.95, seed: int = 0
    ) -> list[str]:
        """What may stand between two texts."""
        marks = [self.special[f"<|fim_{part}|>"] for part in ("prefix", "suffix", "middle")]
        left, right = self._encode(before), self._encode(after)
        room = max(2, self.engine.context - most_tokens - len(marks) - 1)
        right = right[: max(room // 2, room - len(left))]  # what does not fit is left out far from the middle
        left = left[max(0, len(left) + len(right) - room) :]
        ids = [self.special["<|endoftext|>"], marks[0], *left, marks[1], *right, marks[2]]
        return self._continue(ids, n, most_tokens, temperature, top_k, top_p, seed)

    def image(
        self,
        prompt: str = "",
        n: int = 1,
        guidance: float = 2.0,
        seed: int = 0,
        steps: int = 20,
        side: tuple[int, int] | None = None,
        known: UInt8[np.ndarray, "h w c"] | None = None,
        known_share: float = 0.5,
    ) -> list[UInt8[np.ndarray, "h w c"]]:
        """Pictures from a text, or the rest of a picture.

        Args:
            prompt: caption; empty: any picture.
            n: how many.
            guidance: 1 follows the caption, 1.5 to 3 insists on it.
            seed: of the noise.
            steps: Euler steps a patch.
            side: (height, width) in pixels; by default the size the model learned.
            known: a picture whose first patches are kept.
            known_share: share of its patches that are kept.
        """
        return self._make(Picture(prompt, side, known, known_share, guidance, steps), n, seed)

    def video(self, prompt: str = "", n: int = 1, frames: int = 8, guidance: float = 2.0, seed: int = 0, steps: int = 20) -> list[UInt8[np.ndarray, "f h w c"]]:
        """Clips from a text."""
        return self._make(Clip(prompt, frames, guidance, steps), n, seed)

    def audio(
        self, prompt: str = "", n: int = 1, most_s: float = 3.0, guidance: float = 1.5, seed: int = 0, steps: int = 20
    ) -> list[Float[np.ndarray, "t"]]:
        """Sounds from a text, as samples at the model's sample rate; each ends where the model ends it."""
        return [audio.to_waveform(frames, spec_of(self.base, "audio")) for frames in self.log_mel(prompt, n, most_s, guidance, seed, steps)]

    def log_mel(
        self, prompt: str = "", n: int = 1, most_s: float = 3.0, guidance: float = 1.5, seed: int = 0, steps: int = 20
    ) -> list[Float[np.ndarray, "f m"]]:
        """The same as log-mel frames, before they are made audible."""
        return self._make(Sound(prompt, most_s, guidance, steps), n, seed)

    def series(self, values: Float[np.ndarray, "t"], points: int, name: str = "", samples: int = 16, seed: int = 0, steps: int = 20) -> Forecast:
        """What may follow a channel.

        Args:
            values: its past, at least one unit's points.
            points: how many points to forecast.
            name: the channel's name, as in training.
            samples: paths that are drawn.
            seed: of the noise.
            steps: Euler steps a unit.
        """
        at_least(samples=samples)
        return of_paths(self._make(Future(values, points, name, steps), samples, seed))

    def _make(self, wanted: Wanted, n: int, seed: int) -> list[np.ndarray]:
        at_least(n=n)
        plan: Plan = planned(self.base, wanted, self.engine.context)
        heard = self._ask([plan.request(one) for one in seeds(seed, n)])
        return [plan.value(one.units) for one in heard]

    def _continue(self, ids: list[int], n: int, most_tokens: int, temperature: float, top_k: int, top_p: float, seed: int) -> list[str]:
        at_least(n=n, most_tokens=most_tokens)
        longest = self.engine.context
        room = longest - most_tokens
        if room < 1:
            raise ConfigError(f"{most_tokens} tokens are more than the model's {longest} positions", f"ask for at most {longest // 2}")
        tokens = np.array(ids[-room:], np.int32)
        nothing = np.zeros(len(tokens), np.int32)
        positions = Positions(tokens, nothing.astype(np.int8), nothing, nothing.astype(bool))
        ends = frozenset({self.special["<|endoftext|>"]})
        asked = [Request(positions, Sampling(most_tokens, temperature, top_k, top_p, seed=one), ends=ends) for one in seeds(seed, n)]
        return [self.base.decode(np.array(one.tokens, np.int64)) if one.tokens else "" for one in self._ask(asked)]

    def _ask(self, requests: Sequence[Request]) -> list[_Heard]:
        """What requests come to, once all have ended."""
        heard = [_Heard() for _ in requests]
        tickets = [self.engine.submit(request, one) for request, one in zip(requests, heard)]
        try:
            for one in heard:
                one.over.wait()
                if one.error is not None:
                    raise one.error
        finally:
            for ticket in tickets:
                ticket.cancel()
        return heard

    def _encode(self, text: str) -> list[int]:
        return [int(number) for number in self.base.encoder.encode(text)]


class _Heard:
    """What one request came to."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.units: list[np.ndarray] = []
        self.error: Exception | None = None
        self.over = threading.Event()

    def began(self, cached_tokens: int) -> None:
        """Reading has begun."""

    def read(self, drawn: Sequence[Drawn]) -> None:
        raise AssertionError("numbers were not asked for")

    def state(self, state: Float[np.ndarray, "t d"]) -> None:
        raise AssertionError("states were not asked for")

    def unit(self, unit: Float[np.ndarray, "p"]) -> None:
        self.units.append(unit)

    def heard(self, drawn: Sequence[Drawn], finish: Finish | None) -> bool:
        self.tokens += [one.token for one in drawn]
        if finish is not None:
            self.over.set()
        return False

    def failed(self, error: Exception) -> None:
        self.error = error
        self.over.set()
