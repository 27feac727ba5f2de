"""Serving SmolLM2-135M on this machine: ours against llama.cpp, OpenVINO GenAI and transformers, in turns, in one run.

Every engine sits in a process of its own (serving_workers.py). `measure` asks one for a number of requests at once; the first words and the rest are
told apart by asking once for a single token each. Needs the model (`bedplate get smollm2-135m`), writes its GGUF files where they are missing, and
takes OpenVINO from the interpreter named by --openvino (a virtual environment with openvino-genai), since it is too large for an extra.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from bedplate.adapt.base import Base
from bedplate.core.errors import ResourceError
from bedplate.model.formats.get import get
from bedplate.model.formats.gguf.write import export
from benchmarks.inputs import SCRATCH, SHARED
from benchmarks.record import append

WORKER = Path(__file__).with_name("serving_workers.py")
TEXT = SHARED / "eval" / "wikitext2.zip"
N_IN, N_OUT = 128, 128
WINDOWS, WINDOW_TOKENS = 8, 256
"""Of the perplexity."""


@dataclass(frozen=True)
class Entry:
    """One engine with one kind of weights."""

    name: str
    engine: str
    """As serving_workers.py knows it."""
    model: str
    """A key of `models`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    module: str = str(WORKER)
    """What its process runs: a file with the same orders and answers."""
    compared_with: str = "ours_int8"
    """Which of ours its ratio is of: weights of the same size, the same instructions where it says so."""


class Measured(NamedTuple):
    """What one turn of one engine came to."""

    total: float
    """Tokens said a second, reading of the prompts included."""
    decode: float
    """Tokens said a second once every request has its first."""
    prefill: float
    """Tokens read a second."""
    processor: float
    """Tokens said for each second of one core: what busy neighbours change less."""


OURS = str(WORKER.with_name("serving_ours.py"))
AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mno-avx512f")
"""What llama.cpp's wheel is built for; ours is compiled for the machine, so this is what a machine without AVX-512 would get."""
ENTRIES = (
    Entry("ours_int8", "ours", "folder", {"precision": "int8"}, OURS),
    Entry("ours_int4", "ours", "folder", {"precision": "int4"}, OURS),
    Entry("ours_int8_avx2", "ours", "folder", {"precision": "int8", "instructions": AVX2}, OURS),
    Entry("ours_int4_avx2", "ours", "folder", {"precision": "int4", "instructions": AVX2}, OURS, "ours_int4"),
    Entry("ours_float32", "ours", "folder", {"precision": "float32"}, OURS),
    Entry("llama_cpp_q8_0", "llama.cpp", "q8_0", {"n_ubatch": 2048}),
    Entry("llama_cpp_q4_0", "llama.cpp", "q4_0", {"n_ubatch": 2048}, compared_with="ours_int4"),
    Entry("llama_cpp_f16", "llama.cpp", "f16", {"n_ubatch": 2048}),
    Entry("openvino_q8_0", "openvino", "q8_0", {"max_num_batched_tokens": 1024}),
    Entry("openvino_f16", "openvino", "f16", {"max_num_batched_tokens": 1024}),
    Entry("openvino_f16_exact", "openvino", "f16", {"max_num_batched_tokens": 1024, "properties": {"INFERENCE_PRECISION_HINT": "f32"}}),
    Entry("transformers_fp32", "transformers", "folder"),
)


class Peer:
    """The measuring side of one engine's process."""

    def __init__(self, entry: Entry, models: Mapping[str, Path], concurrent: int, threads: int, interpreter: str) -> None:
        self.entry, self.concurrent = entry, concurrent
        settings = json.dumps({"threads": threads, **entry.settings})
        command = [interpreter, entry.module, entry.engine, str(models[entry.model]), str(concurrent), settings, str(models["ids"])]
        # Threads that wait spin by default, and where another program takes a core that slows every step (docs/journal.md).
        surroundings = {**os.environ, "GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=surroundings
        )
        self._said()

    def measure(self, n_in: int, n_out: int, turn: int) -> Measured:
        """Ask for `concurrent` answers at once, once for a token each and once for all of them."""
        first = self._order({"concurrent": self.concurrent, "n_in": n_in, "n_out": 1, "turn": 2 * turn})
        whole = self._order({"concurrent": self.concurrent, "n_in": n_in, "n_out": n_out, "turn": 2 * turn + 1})
        asked = self.concurrent * n_out
        if whole["tokens"] != asked:
            raise RuntimeError(f"{self.entry.name} said {whole['tokens']} tokens of {asked}")
        decode = self.concurrent * (n_out - 1) / max(whole["seconds"] - first["seconds"], 1e-9)
        return Measured(asked / whole["seconds"], decode, self.concurrent * n_in / first["seconds"], asked / whole["processor_s"])

    def perplexity(self, windows: Sequence[Sequence[int]]) -> float:
        """Of windows of text, each token behind those before it."""
        return math.exp(-statistics.fmean(self._order({"windows": windows})["logprobs"]))

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()

    def _order(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._said()

    def _said(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                found: dict[str, Any] = json.loads(line[1:])
                return found
        raise RuntimeError(f"{self.entry.name} died; run {self.entry.module} by hand to see why")


def prepare() -> dict[str, Path]:
    """The model folder, its GGUF files and the token ids of the text that is read."""
    folder = get("smollm2-135m").folder
    SCRATCH.mkdir(parents=True, exist_ok=True)
    found = {"folder": folder, "ids": SCRATCH / "wikitext2-ids.json"}
    base = Base.load(folder)
    for kind in ("q8_0", "q4_0", "f16"):
        found[kind] = SCRATCH / f"smollm2-135m.{kind}.gguf"
        if not found[kind].exists():
            export(base.model, folder / "tokenizer.json", found[kind], kind, template=base.template.source)  # type: ignore[arg-type]
    if not TEXT.exists():
        raise ResourceError(f"{TEXT} is missing", "it holds WikiText-2, from which prompts and the perplexity are taken")
    with zipfile.ZipFile(TEXT) as archive:
        name = next(name for name in archive.namelist() if name.endswith("test.txt"))
        found["ids"].write_text(json.dumps([int(i) for i in base.encoder.encode(archive.read(name).decode())]))
    return found


def missing(entry: Entry, openvino: str) -> str:
    """Why an engine cannot be measured here; "": it can."""
    if entry.engine == "openvino":
        done = subprocess.run([openvino, "-c", "import openvino_genai"], capture_output=True, check=False)
        return "" if done.returncode == 0 else f"{openvino} has no openvino-genai: pip install openvino openvino-genai openvino-tokenizers"
    package = {"llama.cpp": "xllamacpp", "transformers": "transformers"}.get(entry.engine)
    return "" if package is None or find_spec(package) else f"pip install {package}"


def run(entries: Iterable[Entry], models: Mapping[str, Path], concurrent: int, turns: int, threads: int, openvino: str) -> dict[str, list[Measured]]:
    """All engines in turns: each is asked once, then each again."""
    peers = [Peer(entry, models, concurrent, threads, openvino if entry.engine == "openvino" else sys.executable) for entry in entries]
    try:
        for peer in peers:
            peer.measure(16, 4, 1000)  # warm
        found: dict[str, list[Measured]] = {peer.entry.name: [] for peer in peers}
        for turn in range(turns):
            for peer in peers:
                found[peer.entry.name].append(peer.measure(N_IN, N_OUT, turn))
        return found
    finally:
        for peer in peers:
            peer.close()


def perplexities(entries: Iterable[Entry], models: Mapping[str, Path], threads: int, openvino: str) -> dict[str, float]:
    """Each engine's own perplexity on the same windows of WikiText-2."""
    ids = json.loads(models["ids"].read_text())
    step = len(ids) // WINDOWS
    windows = [ids[at : at + WINDOW_TOKENS] for at in range(0, step * WINDOWS, step)]
    found = {}
    for entry in entries:
        peer = Peer(entry, models, 1, threads, openvino if entry.engine == "openvino" else sys.executable)
        try:
            found[entry.name] = peer.perplexity(windows)
        finally:
            peer.close()
    return found


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrent", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of entries")
    parser.add_argument("--openvino", default=sys.executable, help="interpreter with openvino-genai")
    parser.add_argument("--case", default="serving_peers", help="what the records are called, where not all engines take part")
    parser.add_argument("--perplexity", action="store_true")
    arguments = parser.parse_args()
    models = prepare()
    wanted = [entry for entry in ENTRIES if not arguments.only or entry.name in arguments.only]
    reasons = {entry.name: missing(entry, arguments.openvino) for entry in wanted}
    for name, reason in reasons.items():
        if reason:
            print(f"skipped {name}: {reason}")
    entries = [entry for entry in wanted if not reasons[entry.name]]
    conditions = {"model": "smollm2-135m", "threads": arguments.threads, "n_in": N_IN, "n_out": N_OUT}
    for concurrent in arguments.concurrent:
        found = run(entries, models, concurrent, arguments.turns, arguments.threads, arguments.openvino)
        metrics: dict[str, tuple[list[float], str]] = {}
        for name, turns in found.items():
            metrics[f"{name}_total"] = ([turn.total for turn in turns], "tokens/s")
            metrics[f"{name}_decode"] = ([turn.decode for turn in turns], "tokens/s")
            metrics[f"{name}_prefill"] = ([turn.prefill for turn in turns], "tokens/s")
            metrics[f"{name}_per_core"] = ([turn.processor for turn in turns], "tokens per core second")
        for entry in entries:
            turns, ours = found[entry.name], found.get(entry.compared_with)
            if ours is not None and entry.name != entry.compared_with:
                metrics[f"speed_ratio_vs_{entry.name}"] = ([a.total / b.total for a, b in zip(ours, turns)], "ratio")
                metrics[f"decode_ratio_vs_{entry.name}"] = ([a.decode / b.decode for a, b in zip(ours, turns)], "ratio")
        for peer, ours_name in (("llama_cpp_q8_0", "ours_int8_avx2"), ("llama_cpp_q4_0", "ours_int4_avx2")):
            if peer in found and ours_name in found:
                metrics[f"{ours_name}_decode_ratio_vs_{peer}"] = ([a.decode / b.decode for a, b in zip(found[ours_name], found[peer])], "ratio")
        append(f"{arguments.case}_{concurrent}", {**conditions, "concurrent": concurrent, "load": f"{os.getloadavg()[0]:.1f}"}, metrics)
    if arguments.perplexity:
        found_perplexities = perplexities(entries, models, arguments.threads, arguments.openvino)
        append(
            f"{arguments.case}_quality",
            {"model": "smollm2-135m", "text": f"WikiText-2 test, {WINDOWS} windows of {WINDOW_TOKENS} tokens"},
            {f"{name}_perplexity": ([value], "") for name, value in found_perplexities.items()},
        )


if __name__ == "__main__":
    main()
