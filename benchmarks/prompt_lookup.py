"""Prompt look-up on the legal summaries: how much faster answers come with guesses than without, whether they are the same, and how often guesses come true.

Sections of terms of service are summarised by SmolLM2-135M, the likeliest token at each place, one request at a time; with and without guesses in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import zipfile
from collections.abc import Sequence

import numpy as np

from bedplate.adapt.base import Base
from bedplate.core.generation import Ask, Sampling, Turn, stream
from bedplate.infer import speculate
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.native import Native
from bedplate.model.formats.get import get
from benchmarks.inputs import shared
from benchmarks.record import append

TRIED = ((5, 4, 3, 2), (4, 3, 2), (3, 2), (4, 3), (3,), (2,), (3, 2, 1), (4, 3, 2, 1))
FILE = shared("text/legal-summaries.zip")


def sections(count: int, most_characters: int = 3000) -> list[str]:
    """Texts to be summarised: the longest that fit, as those are what one wants summarised."""
    assert FILE is not None, "needs the development data"
    with zipfile.ZipFile(FILE) as archive:
        found = [row["original_text"] for row in json.loads(archive.read("all_v1.json")).values()]
    return sorted((text for text in found if len(text) <= most_characters), key=len, reverse=True)[:count]


def steps_of(prompt: Sequence[int], said: Sequence[int], lengths: tuple[int, ...], most: int) -> int:
    """Steps that an answer takes when it is guessed ahead."""
    speculate.LENGTHS = lengths
    lookup, at, steps = speculate.Lookup(prompt), 0, 0
    while at < len(said):
        taken = 1 + speculate.accepted(lookup.draft(most), said[at:])
        lookup.extend(said[at : at + taken])
        at, steps = at + taken, steps + 1
    return steps


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--drafts", type=int, default=8)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    base = Base.load(get("smollm2-135m").folder)
    set_up = {"precision": arguments.precision, "threads": arguments.threads, "context": 2048, "share_beginnings": False}
    engines = {name: Native(Engine(base, EngineSettings(drafts=drafts, **set_up))) for name, drafts in (("plain", 0), ("guessed", arguments.drafts))}
    asks = [
        Ask(turns=(Turn.of("user", f"Summarise this in plain English:\n\n{text}"),), sampling=Sampling(max_tokens=arguments.tokens))
        for text in sections(arguments.texts)
    ]
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    said: dict[str, list[str]] = {name: [] for name in engines}
    for native in engines.values():
        list(stream(native, Ask(prompt="warm", sampling=Sampling(max_tokens=8))))
    for ask in asks:
        for name, native in engines.items():
            text, first = "", 0.0
            for piece in stream(native, ask):
                first = first or time.perf_counter()
                text += piece.text
            seconds[name].append(time.perf_counter() - first)
            said[name].append(text)
    counters = engines["guessed"].load().counters
    for native in engines.values():
        native.close()
    tokens = [base.encoder.encode(text).tolist() for text in said["plain"]]
    prompts = [base.template.ask([], base.encoder).tolist() + base.encoder.encode(ask.turns[0].text).tolist() for ask in asks]
    metrics: dict[str, tuple[list[float], str]] = {
        "decode_speed_ratio_guessed_to_plain": ([a / b for a, b in zip(seconds["plain"], seconds["guessed"])], "x"),
        "answers_the_same": ([100 * float(np.mean([a == b for a, b in zip(said["plain"], said["guessed"])]))], "%"),
        "guesses_come_true": ([100 * counters.get("accepted", 0) / max(1, counters.get("drafted", 0))], "%"),
    }
    for lengths in TRIED:
        steps = [steps_of(prompt, ids, lengths, arguments.drafts) for prompt, ids in zip(prompts, tokens)]
        metrics[f"tokens_a_step_{'_'.join(map(str, lengths))}"] = ([len(ids) / max(1, n) for ids, n in zip(tokens, steps)], "tokens")
    append(
        "prompt_lookup",
        {"model": "smollm2-135m", "texts": len(asks), "tokens": arguments.tokens, "drafts": arguments.drafts, "threads": arguments.threads,
         "precision": arguments.precision, "load": f"{os.getloadavg()[0]:.1f}"},
        metrics,
    )  # fmt: skip


if __name__ == "__main__":
    main()
