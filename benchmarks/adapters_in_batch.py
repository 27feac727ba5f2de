"""Sixteen requests with sixteen adapters in one batch, against sixteen with one adapter, against none, and against `peft`: in turns, in one run.

`peft` answers in two ways: one request after the other, the adapter switched in between, and all in one batch that names an adapter a row.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bedplate.adapt.base import Base
from bedplate.adapt.encode import compose, said
from bedplate.core.generation import Finish, Sampling
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.request import Drawn, Request
from bedplate.model.adapters import AdapterShape, attach, detach
from bedplate.model.formats import peft
from bedplate.model.formats.get import get
from benchmarks.record import append
from benchmarks.turns import Turns, Worker

ADAPTERS, ASKED, SAID, RANK = 16, 64, 32, 16
OURS = ("ours_sixteen_adapters", "ours_one_adapter", "ours_base")
PEERS = ("peft_switching", "peft_mixed_batch")


def make(folder: Path) -> None:
    """Sixteen adapters of random numbers, small enough that the model still speaks."""
    base = Base.load(get("smollm2-135m").folder)
    shape = AdapterShape(rank=RANK)
    for number in range(ADAPTERS):
        generator = torch.Generator().manual_seed(number)
        for name, weight in attach(base.model, shape, seed=number).items():
            if name.endswith(".B"):
                weight.data.copy_(0.01 * torch.randn(weight.shape, generator=generator))
        (folder / str(number)).mkdir()
        peft.write(folder / str(number), base.model, shape, "smollm2-135m")
        detach(base.model)


def prompts() -> list[np.ndarray]:
    """What is asked: token ids that differ from request to request."""
    return [np.random.default_rng(number).integers(1000, 40_000, ASKED) for number in range(ADAPTERS)]


class Heard:
    """Waits for an answer."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.tokens = 0

    def began(self, cached_tokens: int) -> None:
        """Nothing is kept in this benchmark."""

    def heard(self, drawn: list[Drawn], finish: Finish | None) -> bool:
        """Counts."""
        self.tokens += len(drawn)
        if finish is not None:
            self.over.set()
        return False

    def failed(self, error: Exception) -> None:
        """A benchmark with a failed request is none."""
        raise error


def ours(name: str, folder: Path, threads: int) -> None:
    """One engine; a step answers all requests."""
    base = Base.load(get("smollm2-135m").folder)
    engine = Engine(base, EngineSettings(threads=threads, context=512, share_beginnings=False, drafts=0))
    for number in range(ADAPTERS):
        engine.register(str(number), folder / str(number))
    names = {"ours_sixteen_adapters": [str(n) for n in range(ADAPTERS)], "ours_one_adapter": ["0"] * ADAPTERS, "ours_base": [""] * ADAPTERS}[name]

    def answer() -> None:
        heard = [Heard() for _ in names]
        for one, adapter, ids in zip(heard, names, prompts()):
            request = Request(compose([said(ids, False)], base.model.config), Sampling(max_tokens=SAID, ignore_end=True), adapter)
            engine.submit(request, one)
        assert all(one.over.wait(300) and one.tokens == SAID for one in heard)

    answer()  # packs the adapters
    turns = Turns()
    while True:
        turns.wait()
        answer()
        turns.told()


@torch.inference_mode()
def peer(name: str, folder: Path, threads: int) -> None:
    """transformers with peft, float32 as they come."""
    import transformers
    from peft import PeftModel

    torch.set_num_threads(threads)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(get("smollm2-135m").folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(folder / "0"), adapter_name="0")
    for number in range(1, ADAPTERS):
        model.load_adapter(str(folder / str(number)), adapter_name=str(number))
    model.eval()
    settings = {"max_new_tokens": SAID, "min_new_tokens": SAID, "do_sample": False, "pad_token_id": 0}
    turns = Turns()
    while True:
        turns.wait()
        rows = torch.from_numpy(np.stack(prompts()))
        if name == "peft_mixed_batch":
            model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), adapter_names=[str(n) for n in range(ADAPTERS)], **settings)
        else:
            for number in range(ADAPTERS):
                model.set_adapter(str(number))
                row = rows[number : number + 1]
                model.generate(input_ids=row, attention_mask=torch.ones_like(row), **settings)
        turns.told()


def main() -> None:
    """Measure and record, or be a worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--peer-turns", type=int, default=1)
    parser.add_argument("--ours-only", action="store_true", help="no peers, no record")
    arguments = parser.parse_args()
    if arguments.worker:
        (ours if arguments.worker in OURS else peer)(arguments.worker, arguments.folder, arguments.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        chosen = OURS if arguments.ours_only else (*OURS, *PEERS)
        workers = {name: Worker("benchmarks.adapters_in_batch", name, Path(folder), arguments.threads) for name in chosen}
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        busy: dict[str, list[float]] = {name: [] for name in workers}
        for turn in range(arguments.turns):
            for name, worker in workers.items():
                if name in OURS or turn < arguments.peer_turns:
                    told = worker.steps(1)
                    seconds[name] += told.seconds
                    busy[name] += told.processor_s
        for worker in workers.values():
            worker.close()
    tokens = ADAPTERS * SAID
    metrics: dict[str, tuple[list[float], str]] = {f"tokens_per_s_{name}": ([tokens / s for s in values], "tokens/s") for name, values in seconds.items()}
    many, one = "ours_sixteen_adapters", "ours_one_adapter"
    metrics["speed_share_of_one_adapter"] = ([b / a for a, b in zip(seconds[many], seconds[one])], "x")
    metrics["processor_share_of_one_adapter"] = ([b / a for a, b in zip(busy[many], busy[one])], "x")
    if arguments.ours_only:
        print({name: values for name, (values, _) in metrics.items()})
        return
    for name in PEERS:
        metrics[f"speed_ratio_vs_{name}"] = ([b / a for a, b in zip(seconds[many], seconds[name])], "x")
    append(
        "adapters_in_batch",
        {"model": "smollm2-135m", "adapters": ADAPTERS, "rank": RANK, "tokens in": ASKED, "tokens out": SAID, "threads": arguments.threads},
        metrics,
    )


if __name__ == "__main__":
    main()
