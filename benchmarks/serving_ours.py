"""Our own engine, as a worker of serving_peers.py: the same orders, the same answers; asked through the generator, so words are part of what is measured."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import serving_workers
from bedplate.adapt.base import Base
from bedplate.core.generation import Ask, Piece, Sampling, stream
from bedplate.infer.cpu import runner
from bedplate.infer.cpu.build import library
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.native import Native


class Ours:
    """The native generator, nothing kept between requests and nothing guessed ahead, as of the peers."""

    def __init__(self, model: str, concurrent: int, settings: dict[str, Any]) -> None:
        if instructions := settings.pop("instructions", None):
            runner.library = lambda: library(tuple(instructions))  # another processor's
        told = {"share_beginnings": False, "drafts": 0, "context": 1024, "most_running": max(concurrent, 1), **settings}
        self.native = Native(Engine(Base.load(Path(model)), EngineSettings(**told)))

    def generate(self, prompts: Sequence[list[int]], n_out: int) -> int:
        """All at once; waits for the last."""
        left, said, over = len(prompts), 0, threading.Event()

        def deliver(piece: Piece) -> None:
            nonlocal left, said
            if piece.error is not None:
                raise piece.error
            if piece.usage is not None:
                said += piece.usage.completion_tokens
                left -= 1
                if not left:
                    over.set()

        for prompt in prompts:
            self.native.submit(Ask(prompt=tuple(prompt), sampling=Sampling(max_tokens=n_out, ignore_end=True)), deliver)
        over.wait()
        return said

    def logprobs(self, windows: Sequence[list[int]]) -> list[float]:
        """As an echo tells them."""
        found = []
        for window in windows:
            ask = Ask(prompt=tuple(window), echo=True, sampling=Sampling(max_tokens=0, logprobs=0))
            found += [number.said.logprob for piece in stream(self.native, ask) for number in piece.logprobs][1:]
        return found


if __name__ == "__main__":
    serving_workers.main({"ours": Ours})
