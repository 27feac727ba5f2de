"""What others wait for when an adapter is asked for the first time: the longest gap between two tokens of four streams, with and without.

    python -m benchmarks.adapter_first_use --how "on a thread of its own"
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from bedplate.adapt.base import Base
from bedplate.adapt.encode import compose, said
from bedplate.core.generation import Finish, Sampling
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.request import Drawn, Request
from bedplate.model.formats.get import get
from benchmarks.adapters_in_batch import ADAPTERS, RANK, make
from benchmarks.record import append

STREAMS, ASKED = 4, 64


class Stream:
    """Hears an answer, and when."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.over = threading.Event()

    def began(self, cached_tokens: int) -> None:
        """It is not the beginning that is measured."""

    def heard(self, drawn: list[Drawn], finish: Finish | None) -> bool:
        """Looks at the clock."""
        self.at.append(time.monotonic())
        if finish is not None:
            self.over.set()
        return False

    def failed(self, error: Exception) -> None:
        """A benchmark with a failed request is none."""
        raise error


def main() -> None:
    """Measure, and append a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--how", required=True, help="adapters are read, for the record")
    how = parser.parse_args().how
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder)
        base = Base.load(get("smollm2-135m").folder)
        engine = Engine(base, EngineSettings(context=2048, drafts=0))
        for number in range(ADAPTERS):
            engine.register(str(number), folder / str(number))

        def ask(adapter: str, seed: int, most: int) -> Stream:
            stream = Stream()
            ids = np.random.default_rng(seed).integers(1000, 40_000, ASKED if not adapter else 4)
            engine.submit(Request(compose([said(ids, False)], base.model.config), Sampling(max_tokens=most, ignore_end=True), adapter), stream)
            return stream

        streams = [ask("", number, 1900) for number in range(STREAMS)]
        while any(len(stream.at) < 20 for stream in streams):
            time.sleep(0.01)
        first_s, gaps = [], {"without": list[float](), "first_use": list[float](), "second_use": list[float]()}
        for number in range(ADAPTERS):
            for what, found in gaps.items():
                began = time.monotonic()
                if what != "without":
                    one = ask(str(number), number, 1)
                    one.over.wait()
                    if what == "first_use":
                        first_s.append(1000 * (one.at[0] - began))
                time.sleep(0.3)
                found.append(1000 * max(longest(stream.at, began) for stream in streams))
        assert not any(stream.over.is_set() for stream in streams)
        engine.close()
    conditions = {"engine": "SmolLM2-135M, int8", "threads": engine.shape.threads, "streams": STREAMS, "adapters": ADAPTERS, "rank": RANK, "read": how}
    metrics = {f"longest_gap_{what}": (values, "ms") for what, values in gaps.items()}
    append("adapter_first_use", conditions, {**metrics, "answer_of_first_use": (first_s, "ms")})


def longest(at: list[float], began: float) -> float:
    """The longest time between two tokens from `began` on."""
    recent = [one for one in at if one >= began]
    return float(np.diff(recent).max())


if __name__ == "__main__":
    main()
