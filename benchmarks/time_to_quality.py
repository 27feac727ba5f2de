"""Wall time until our loop reaches the final validation loss of a tuned `transformers` Trainer (AdamW, cosine).

The Trainer gets the same shape, the same rows and its learning rate tuned over several values, each a full run with a cosine schedule over
the whole budget; the best final validation loss is the target, and the Trainer's time is the best run's alone (tuning is not charged). Ours
then trains with its defaults and a schedule laid out for half the Trainer's time, and must be at or below the target at its end; if it is not,
the first longer share that is reached is recorded. Evaluation time is left out on both sides. Runs of both sides follow each other on the
same quiet machine; the rate of the machine is recorded beside them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gemm import gemm_peak
from benchmarks.inputs import SCRATCH, text_sources
from benchmarks.peer_trainer import StepTimes, qwen3, trainer, validation_loss
from benchmarks.record import append
from benchmarks.training import build_text_corpus, model_config, token_rows, train_ours

CONTEXT = 512
PEER_ROWS_PER_STEP = 4
LEARNING_RATES = (1e-3, 3e-3, 9e-3)


def peer_run(corpus: Path, lr: float, steps: int) -> tuple[float, float]:
    """(final validation loss in nats, seconds of training) of one Trainer run."""
    rows = token_rows(corpus, CONTEXT, count=PEER_ROWS_PER_STEP * steps)
    held_out = token_rows(corpus, CONTEXT, count=64, split="validation")
    model = qwen3(model_config(corpus))
    times = StepTimes()
    warmup = max(10, steps // 20)
    trainer(model, rows, rows_per_step=PEER_ROWS_PER_STEP, steps=steps, lr=lr, callback=times, warmup_steps=warmup).train()
    model.eval()
    return validation_loss(lambda ids: model(input_ids=ids).logits, held_out), sum(times.seconds)


def our_run(corpus: Path, folder: Path, seconds: float) -> tuple[float, float, dict[str, Any]]:
    """(final validation loss in nats on the same rows, seconds of training, what was chosen) of our loop with its defaults."""
    held_out = token_rows(corpus, CONTEXT, count=64, split="validation")
    model, trained_s, chosen = train_ours(corpus, folder, budget_s=seconds, context=CONTEXT)
    return validation_loss(model.forward_tokens, held_out), trained_s, chosen


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=256, help="steps of each Trainer run")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = SCRATCH / "time_to_quality"
    sources, data = text_sources()
    build_text_corpus(sources, folder / "corpus")
    peers = {}
    for lr in LEARNING_RATES:
        peers[lr] = peer_run(folder / "corpus", lr, arguments.steps)
        print(f"peer lr {lr:g}: validation loss {peers[lr][0]:.4f} after {peers[lr][1]:.0f} s", flush=True)
    best = min(peers, key=lambda lr: peers[lr][0])
    target, peer_s = peers[best]
    reached = None
    for share in arguments.shares:
        loss, trained_s, chosen = our_run(folder / "corpus", folder / f"run-{time.time():.0f}", share * peer_s)
        print(f"ours in {trained_s:.0f} s ({trained_s / peer_s:.2f} of the peer): {loss:.4f}, target {target:.4f}", flush=True)
        if loss <= target:
            reached = (trained_s / peer_s, loss, trained_s, chosen)
            break
    metrics = {
        "transformers_validation_loss": ([target], "nats a token"),
        "transformers_s": ([peer_s], "s"),
        "gemm_peak": ([gemm_peak() / 1e9], "GFLOP/s"),
    }
    if reached is not None:
        metrics |= {"time_ratio_vs_transformers": ([reached[0]], "ratio"), "validation_loss": ([reached[1]], "nats a token"), "s": ([reached[2]], "s")}
    append(
        "time_to_quality",
        conditions={
            "data": data,
            "shape": "micro (5M)",
            "context": CONTEXT,
            "peer": f"Trainer, AdamW, cosine, {PEER_ROWS_PER_STEP} rows a step, {arguments.steps} steps, lr {best:g}",
            "tuned over lr": ", ".join(f"{v:g}" for v in LEARNING_RATES),
            "ours": "defaults" if reached is None else ", ".join(f"{k} {v}" for k, v in reached[3].items()),
            "reached": reached is not None,
            "threads": arguments.threads,
        },
        metrics=metrics,
    )


if __name__ == "__main__":
    main()
