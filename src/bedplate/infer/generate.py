"""Generation in every sense from one model: text, filled-in middles, pictures, sounds, forecasts.

    made = Generation.load(Path("runs/first/model"))
    made.text("The first rule of incident response is")
    made.image("handwritten digit seven", n=4)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bedplate.core.errors import BedplateError, ConfigError, DataError
from bedplate.data.tokenizer import Encoder
from bedplate.infer.draw import check, draw
from bedplate.infer.stream import Stream
from bedplate.modality import audio, series
from bedplate.modality.senses import HANDLERS
from bedplate.modality.specs import CONTINUOUS, AudioSpec, ContinuousSense, SeriesSpec
from bedplate.modality.units import grid_of
from bedplate.model.foundation import FoundationModel

FEWEST_UNITS = 3
"""A sound is never ended before this many units."""


class Forecast(NamedTuple):
    """What may follow a series, in its own unit."""

    median: Float[np.ndarray, "t"]
    low: Float[np.ndarray, "t"]
    """A tenth of the sampled paths lie below."""
    high: Float[np.ndarray, "t"]
    """A tenth lie above."""


class Generation:
    """A model with its tokenizer, ready to make things. Equal seeds make equal things."""

    def __init__(self, model: FoundationModel, tokenizer_json: str) -> None:
        self.model = model.eval()
        self.encoder = Encoder(tokenizer_json)
        self.special = model.config.special_ids
        marks = ["<|endoftext|>", *(f"<|{sense}|>" for sense in model.config.senses.present())]
        if missing := [mark for mark in marks if mark not in self.special]:
            raise DataError(f"the model has no id of {missing[0]}", "it was made without a corpus; train it on one")
        if self.encoder.size > model.config.vocab_size:
            raise DataError(f"the tokenizer has {self.encoder.size} tokens, the model {model.config.vocab_size}", "take the one that the model came with")
        self.device = model.head.device

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """From a model folder.

        Raises:
            DataError: it is no model, or has no tokenizer that fits.
            IntegrityError: a digest does not hold.
        """
        model = FoundationModel.load(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            raise DataError(f"{folder} has no tokenizer.json", "train the model on a corpus, which brings its tokenizer along")
        try:
            return cls(model.to(device), path.read_text(encoding="utf-8"))
        except BedplateError:
            raise
        except Exception as error:  # `tokenizers` raises plain Exceptions on damage
            raise DataError(f"{path} is not a tokenizer: {error}", "restore the model folder from a copy") from error

    @torch.inference_mode()
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

    @torch.inference_mode()
    def fill_in(
        self, before: str, after: str, n: int = 1, most_tokens: int = 60, temperature: float = 0.6, top_k: int = 0, top_p: float = 0.95, seed: int = 0
    ) -> list[str]:
        """What may stand between two texts."""
        marks = [self.special[f"<|fim_{part}|>"] for part in ("prefix", "suffix", "middle")]
        left, right = self._encode(before), self._encode(after)
        room = max(2, self.model.config.max_position_embeddings - most_tokens - len(marks) - 1)
        right = right[: max(room // 2, room - len(left))]  # what does not fit is left out far from the middle
        left = left[max(0, len(left) + len(right) - room) :]
        ids = [self.special["<|endoftext|>"], marks[0], *left, marks[1], *right, marks[2]]
        return self._continue(ids, n, most_tokens, temperature, top_k, top_p, seed)

    @torch.inference_mode()
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
        spec = self._spec("image")
        given = None
        if known is not None:
            values = HANDLERS["image"].cut(known, spec).values
            given = values[: max(1, min(len(values) - 1, round(known_share * len(values))))]
        height, width = known.shape[:2] if known is not None else side or self._usual_side()
        grid = self._grid(prompt, spec, 1, height // spec.patch, width // spec.patch)
        made = self._units("image", prompt, n, grid, given, guidance, seed, steps)[0]
        return [HANDLERS["image"].join(v, grid, spec) for v in made]

    @torch.inference_mode()
    def video(self, prompt: str = "", n: int = 1, frames: int = 8, guidance: float = 2.0, seed: int = 0, steps: int = 20) -> list[UInt8[np.ndarray, "f h w c"]]:
        """Clips from a text."""
        spec = self._spec("video")
        height, width = self._usual_side("video")
        grid = self._grid(prompt, spec, -(-frames // spec.frames), height // spec.patch, width // spec.patch)
        made = self._units("video", prompt, n, grid, None, guidance, seed, steps)[0]
        return [HANDLERS["video"].join(v, grid, spec) for v in made]

    @torch.inference_mode()
    def audio(
        self, prompt: str = "", n: int = 1, most_s: float = 3.0, guidance: float = 1.5, seed: int = 0, steps: int = 20
    ) -> list[Float[np.ndarray, "t"]]:
        """Sounds from a text, as samples at the model's sample rate; each ends where the model ends it."""
        return [audio.to_waveform(frames, self._spec("audio")) for frames in self.log_mel(prompt, n, most_s, guidance, seed, steps)]

    @torch.inference_mode()
    def log_mel(
        self, prompt: str = "", n: int = 1, most_s: float = 3.0, guidance: float = 1.5, seed: int = 0, steps: int = 20
    ) -> list[Float[np.ndarray, "f m"]]:
        """The same as log-mel frames, before they are made audible."""
        spec = self._spec("audio")
        most = max(FEWEST_UNITS, round(most_s * 1000 / spec.hop_ms / spec.frames))
        grid = self._grid(prompt, spec, most)
        values, lengths = self._units("audio", prompt, n, grid, None, guidance, seed, steps)
        return [HANDLERS["audio"].join(v[:length], grid[:length], spec) for v, length in zip(values, lengths)]

    @torch.inference_mode()
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
        spec = self._spec("series")
        _at_least(points=points, samples=samples)
        if len(values) < spec.points:
            raise DataError(f"{len(values)} points are too few to forecast from", f"give at least {spec.points}")
        past = np.asarray(values, np.float64)[len(values) % spec.points :][-spec.max_points // 2 :]
        scale = series.Normalisation(float(past.mean()), max(float(past.std()), 1e-6 * max(1.0, abs(float(past.mean())))))
        units = series.cut(past, spec, scale).values
        count = -(-points // spec.points)
        grid = self._grid(name, spec, len(units) + count)
        made = self._units("series", name, samples, grid, units, 1.0, seed, steps)[0]
        paths = np.stack([series.join(v, grid, spec, scale)[len(past) : len(past) + points] for v in made])
        low, median, high = np.quantile(paths, [0.1, 0.5, 0.9], axis=0)
        return Forecast(median, low, high)

    def _units(
        self, sense: ContinuousSense, prompt: str, n: int, grid: np.ndarray, given: np.ndarray | None, guidance: float, seed: int, steps: int
    ) -> tuple[list[np.ndarray], list[int]]:
        """(units [n p] of each sequence, how many of them it wanted)."""
        _at_least(n=n, steps=steps)
        spec, heads = self._spec(sense), self._heads(sense)
        generator = torch.Generator(self.device).manual_seed(seed)
        places = torch.from_numpy(grid.astype(np.int64)).to(self.device)
        start, mark = self.special["<|endoftext|>"], self.special[f"<|{sense}|>"]
        known, kept = None, 0
        if given is not None:
            kept = len(given)
            known = (torch.from_numpy(given).to(self.device), places[:kept])
        two_way = known if sense in ("image", "video") else None
        caption = self._encode(prompt)
        streams = [Stream(self.model, n, [start, *caption, mark], sense, two_way)]
        if caption and guidance != 1.0:
            streams.append(Stream(self.model, n, [start, mark], sense, two_way))
        units: list[Tensor] = [] if known is None else [unit.expand(n, -1) for unit in known[0]]
        if known is not None and two_way is None:
            for number in range(kept):
                for stream in streams:
                    stream.push_units(sense, units[number], places[number])
        lengths = [len(grid)] * n
        ended = torch.zeros(n, dtype=torch.bool, device=self.device)
        for number in range(kept, len(grid)):
            place = places[number : number + 1].expand(n, 3)
            conditions = [heads.flow.conditions(stream.last, place) for stream in streams]
            unit = heads.flow.sample(conditions[0], spec.unit_width, generator, steps, conditions[1] if len(conditions) > 1 else None, guidance)
            units.append(unit)
            if number + 1 == len(grid):
                break
            for stream in streams:
                stream.push_units(sense, unit, places[number])
            if sense == "audio" and number + 1 >= FEWEST_UNITS:
                ends = (heads.end(streams[0].last)[:, 0] > 0) & ~ended
                for sequence in ends.nonzero()[:, 0].tolist():
                    lengths[sequence] = number + 1
                ended |= ends
                if bool(ended.all()):
                    break
        made = torch.stack(units, 1).float().cpu().numpy()
        return list(made), lengths

    def _continue(self, ids: list[int], n: int, most_tokens: int, temperature: float, top_k: int, top_p: float, seed: int) -> list[str]:
        check(temperature, top_k, top_p)
        _at_least(n=n, most_tokens=most_tokens)
        room = self.model.config.max_position_embeddings - most_tokens
        if room < 1:
            raise ConfigError(
                f"{most_tokens} tokens are more than the model's {self.model.config.max_position_embeddings} positions",
                f"ask for at most {self.model.config.max_position_embeddings // 2}",
            )
        generator = torch.Generator(self.device).manual_seed(seed)
        stream = Stream(self.model, n, ids[-room:])
        end = self.special["<|endoftext|>"]
        made = torch.full((n, most_tokens), end, device=self.device)
        ended = torch.zeros(n, dtype=torch.bool, device=self.device)
        forbidden = [number for name, number in self.special.items() if name != "<|endoftext|>"]
        for number in range(most_tokens):
            logits = self.model.logits(stream.last).float()
            logits[:, forbidden] = -torch.inf  # marks of other senses are not text
            tokens = draw(logits, temperature, top_k, top_p, generator)
            ended |= tokens == end
            made[:, number] = torch.where(ended, end, tokens)
            if bool(ended.all()):
                break
            stream.push_tokens(tokens)
        return [self.encoder.decode(np.array([t for t in row.tolist() if t != end])) for row in made]

    def _grid(self, prompt: str, spec: Any, frames: int, rows: int = 1, columns: int = 1) -> Int[np.ndarray, "n 3"]:
        """Places of what is to be made; refuses what is longer than anything the model was made for, and says what would fit."""
        _at_least(frames=frames, rows=rows, columns=columns)
        longest, before, count = self.model.config.max_position_embeddings, len(self._encode(prompt)) + 2, frames * rows * columns
        if before + count <= longest:
            return grid_of(frames, rows, columns)
        room = max(0, longest - before)
        fits = f"{room} patches"
        if isinstance(spec, AudioSpec):
            fits = f"{room * spec.frames * spec.hop_ms / 1000:.1f} s of sound"
        elif isinstance(spec, SeriesSpec):
            fits = f"{room * spec.points} points, past and forecast together,"
        raise ConfigError(f"{before} tokens and {count} units are more than the model's {longest} positions", f"{fits} would fit behind this prompt")

    def _encode(self, text: str) -> list[int]:
        return [int(number) for number in self.encoder.encode(text)]

    def _spec(self, sense: ContinuousSense) -> Any:
        spec = self.model.config.senses.present().get(sense)
        if spec is None:
            present = [name for name in CONTINUOUS if name in self.model.config.senses.present()]
            raise ConfigError(f"the model never learned {sense}", f"it knows text{''.join(f', {name}' for name in present)}")
        return spec

    def _heads(self, sense: ContinuousSense) -> Any:
        return self.model.unit_heads[sense]

    def _usual_side(self, sense: ContinuousSense = "image") -> tuple[int, int]:
        """The largest square of whole patches."""
        spec = self._spec(sense)
        side = spec.size // spec.patch * spec.patch
        return side, side


def _at_least(**asked: int) -> None:
    for name, number in asked.items():
        if number < 1:
            raise ConfigError(f"{name} = {number} makes nothing", "give 1 or more")
