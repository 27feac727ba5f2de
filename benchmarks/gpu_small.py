"""Tokens per second and model FLOP utilisation of the 125M text model's step on one GPU, in bfloat16, compiled."""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from bedplate.model.arithmetic import flops_per_token
from bedplate.model.config import PRESETS, preset
from bedplate.model.foundation import FoundationModel
from bedplate.pretrain.measure import synthetic_batch
from bedplate.pretrain.optim import Optimiser, OptimSettings
from bedplate.pretrain.step import Stepper
from benchmarks.gemm import gemm_peak
from benchmarks.record import append

DENSE_BF16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Data-sheet peaks without sparsity."""


def main() -> None:
    """Measure and record; says so where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_small: skipped, there is no GPU here")
        return
    torch.set_float32_matmul_precision("high")
    config = preset(arguments.size, PRESETS[arguments.size].vocabulary)
    model = FoundationModel(config)
    model.initialise(0)
    model.cuda()
    model.run_trunk = torch.compile(model.model.forward)
    stepper = Stepper(model, Optimiser(model.named_parameters(), OptimSettings()), torch.device("cuda"), torch.bfloat16)
    batch = synthetic_batch(config, arguments.rows, arguments.context, 0.0)
    rates = []
    for step in range(arguments.steps):
        started = time.perf_counter()
        stepper.gradients(step, [batch])
        stepper.apply(1e-3, 0.9)
        torch.cuda.synchronize()
        rates.append(arguments.rows * arguments.context / (time.perf_counter() - started))
    steady = rates[10:]
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in DENSE_BF16_FLOPS.items() if key in name), None)
    metrics = {"tokens_per_s": (steady, "tokens/s"), "gemm_peak": ([gemm_peak(4.0, torch.bfloat16, "cuda") / 1e12], "TFLOP/s")}
    if peak:
        metrics["model_flop_utilisation"] = ([flops_per_token(config, arguments.context) * statistics.median(steady) / peak], "of the data sheet's peak")
    append(
        "gpu_small",
        conditions={"size": arguments.size, "rows x context": f"{arguments.rows} x {arguments.context}", "precision": "bfloat16", "compiled": True},
        metrics=metrics,
    )


if __name__ == "__main__":
    main()
