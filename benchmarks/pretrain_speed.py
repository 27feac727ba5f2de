"""Tokens per second of a micro (5M) text pre-training step on CPU: our loop against a `transformers` Trainer, interleaved in one run.

Both get the same rows of real text, the same shape, batch and thread count, in fp32. Each runs in a process of its own and waits for leave
before every step, so that they take turns on the same machine: ours through the product's own loop (loader, step, optimiser, events), the
peer through Trainer.train. A step's time is from leave to end.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks.inputs import SCRATCH, text_sources
from benchmarks.turns import Turns, Worker

CONTEXT = 512
ROWS_PER_STEP = 16
STEPS_A_TURN = 4


def run_ours(folder: Path, threads: int) -> None:
    """The product's own pre-training loop, its `step` events taken as the ends of steps."""
    from benchmarks.training import speed_run

    turns = Turns()

    def listen(record: dict[str, Any]) -> None:
        if record["event"] == "run_started":
            turns.wait()
        if record["event"] == "step":
            turns.told()
            turns.wait()

    speed_run(folder / "corpus", folder / "run", context=CONTEXT, rows_per_step=ROWS_PER_STEP, threads=threads, listeners=(listen,))


def run_peer(folder: Path, threads: int) -> None:
    """transformers' Trainer; its callback waits for leave."""
    import torch
    from transformers import TrainerCallback

    from benchmarks.peer_trainer import StepTimes, qwen3, trainer
    from benchmarks.training import model_config, token_rows

    torch.set_num_threads(threads)
    turns = Turns()

    class Gate(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.wait()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turns.told()
            turns.wait()

    rows = token_rows(folder / "corpus", CONTEXT, count=ROWS_PER_STEP * 400)
    peer = trainer(qwen3(model_config(folder / "corpus")), rows, rows_per_step=ROWS_PER_STEP, steps=10_000, lr=1e-3, callback=StepTimes())
    peer.add_callback(Gate())
    peer.train()


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", choices=("ours", "peer"))
    parser.add_argument("--folder", type=Path, default=SCRATCH / "pretrain_speed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.worker:
        {"ours": run_ours, "peer": run_peer}[arguments.worker](arguments.folder, arguments.threads)
        return

    from bedplate.model.arithmetic import flops_per_token
    from benchmarks.gemm import gemm_peak
    from benchmarks.record import append
    from benchmarks.training import build_text_corpus, model_config

    sources, data = text_sources()
    build_text_corpus(sources, arguments.folder / "corpus")
    config = model_config(arguments.folder / "corpus")
    import torch

    torch.set_num_threads(arguments.threads)
    workers = {name: Worker("benchmarks.pretrain_speed", name, arguments.folder, arguments.threads) for name in ("ours", "peer")}
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    ratios, peaks = [], []
    positions = ROWS_PER_STEP * CONTEXT
    try:
        for worker in workers.values():
            worker.steps(6)  # compile, warm up
        for turn in range(arguments.turns):
            this = {}
            for name in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
                this[name] = positions / statistics.median(workers[name].steps(STEPS_A_TURN).seconds)
                rates[name].append(this[name])
            peaks.append(gemm_peak(2.0))
            ratios.append(this["ours"] / this["peer"])
            print(f"turn {turn + 1}: ours {this['ours']:,.0f}, peer {this['peer']:,.0f} tokens/s, ratio {ratios[-1]:.2f}", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    flops = flops_per_token(config, CONTEXT)
    append(
        "pretrain_speed",
        conditions={
            "data": data,
            "shape": f"micro, {config.num_hidden_layers} layers x {config.hidden_size}, vocabulary {config.vocab_size}",
            "rows x context": f"{ROWS_PER_STEP} x {CONTEXT}",
            "threads": arguments.threads,
            "precision": "float32",
            "peer": "transformers Trainer, Qwen3ForCausalLM, adamw_torch_fused",
            "turns": arguments.turns,
        },
        metrics={
            "speed_ratio_vs_transformers": (ratios, "ratio"),
            "tokens_per_s": (rates["ours"], "tokens/s"),
            "transformers_tokens_per_s": (rates["peer"], "tokens/s"),
            "gemm_peak": ([p / 1e9 for p in peaks], "GFLOP/s"),
            "gemm_peak_share": ([flops * rate / peak for rate, peak in zip(rates["ours"], peaks)], "of the peak"),
        },
    )


if __name__ == "__main__":
    main()
