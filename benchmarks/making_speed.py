"""Pictures and sounds: eight requests at once through the engine, against the plain loop that makes one thing after the other, in turns.

The network is a preset with fresh weights: how long a unit takes does not depend on what the weights say, and no sound ends early. Every picture and
every sound has a caption of its own and is guided by it, so each is two sequences.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence

import torch

from bedplate.adapt.base import Base
from bedplate.core.generation import Finish
from bedplate.data.chat import ChatTemplate
from bedplate.data.tokenizer import Encoder
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.request import Drawn, Request
from bedplate.infer.units import Picture, Sound, Wanted, planned
from bedplate.modality.chat_template import CHATML
from bedplate.modality.sequence import SPECIAL_TOKENS
from bedplate.modality.specs import AudioSpec, ImageSpec, SenseSpecs
from bedplate.model.config import preset
from bedplate.model.foundation import FoundationModel
from bedplate.testing.corpora import tiny_tokenizer
from bedplate.testing.slow_units import units
from benchmarks import things
from benchmarks.record import append

AUDIO = AudioSpec()
SENSES = SenseSpecs(image=ImageSpec(), audio=AUDIO)


class Counted:
    """Waits for the end of a request, and counts its units."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.units = 0

    def began(self, cached_tokens: int) -> None:
        """Nothing is kept in this benchmark."""

    def read(self, drawn: Sequence[Drawn]) -> None:
        """No numbers were asked for."""

    def state(self, state: object) -> None:
        """No states were asked for."""

    def unit(self, unit: object) -> None:
        """Counts."""
        self.units += 1

    def heard(self, drawn: Sequence[Drawn], finish: Finish | None) -> bool:
        """Its end."""
        if finish is not None:
            self.over.set()
        return False

    def failed(self, error: Exception) -> None:
        """A benchmark with a failed request is none."""
        raise error


def base_of(size: str) -> Base:
    """A preset with pictures and sounds, of fresh weights."""
    special = {name: number for number, name in enumerate(SPECIAL_TOKENS)}
    model = FoundationModel(preset(size, 8192, SENSES, special)).eval()
    model.initialise(0)
    return Base(model, Encoder(tiny_tokenizer().to_str()), ChatTemplate(CHATML, special), "")


def through(engine: Engine, requests: Sequence[Request]) -> float:
    """Seconds that requests take, all at once."""
    started = time.perf_counter()
    heard = [Counted() for _ in requests]
    for request, one in zip(requests, heard):
        engine.submit(request, one)
    for request, one in zip(requests, heard):
        one.over.wait()
        assert one.units == request.wanted
    return time.perf_counter() - started


def one_by_one(base: Base, requests: Sequence[Request]) -> float:
    """Seconds that the plain loop takes."""
    started = time.perf_counter()
    for request in requests:
        assert len(list(units(base.model, request))) == request.wanted
    return time.perf_counter() - started


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="micro")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base, count = base_of(arguments.size), arguments.requests
    set_up = {"threads": arguments.threads, "share_beginnings": False, "device": "cpu"}
    engines = {precision: Engine(base, EngineSettings(precision=precision, **set_up)) for precision in ("int8", "float32")}
    captions = [f"the picture of a {word}" for word in things.WORDS]
    wanted: dict[str, tuple[list[Wanted], float, str]] = {
        "pictures": ([Picture(captions[n % 10]) for n in range(count)], float(count), "pictures/s"),
        "sound": ([Sound(captions[n % 10], arguments.seconds) for n in range(count)], count * arguments.seconds, "s of sound/s"),
    }
    metrics: dict[str, tuple[list[float], str]] = {}
    for name, (every, amount, unit) in wanted.items():
        requests = [planned(base, one, 2048).request(seed) for seed, one in enumerate(every)]
        for engine in engines.values():
            through(engine, requests[:1])
        for _ in range(arguments.rounds):
            alone_s = one_by_one(base, requests)
            metrics.setdefault(f"{name}_one_by_one", ([], unit))[0].append(amount / alone_s)
            for precision, engine in engines.items():
                took_s = through(engine, requests)
                metrics.setdefault(f"{name}_{precision}", ([], unit))[0].append(amount / took_s)
                metrics.setdefault(f"{name}_ratio_{precision}", ([], "ratio"))[0].append(alone_s / took_s)
    for engine in engines.values():
        engine.close()
    append(
        "making_speed",
        conditions={
            "size": arguments.size,
            "requests_at_once": count,
            "picture": f"{SENSES.image.size} x {SENSES.image.size}, patches of {SENSES.image.patch}" if SENSES.image else "",
            "sound_s": arguments.seconds,
            "steps": 20,
            "guided": True,
            "threads": arguments.threads,
        },
        metrics=metrics,
    )


if __name__ == "__main__":
    main()
