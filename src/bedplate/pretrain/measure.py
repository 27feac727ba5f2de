"""How fast this machine takes training steps of a shape: the real step on made-up batches, thrown away afterwards."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from bedplate.modality.sequence import Batch
from bedplate.modality.specs import SENSES
from bedplate.model.config import ModelConfig
from bedplate.model.foundation import FoundationModel
from bedplate.pretrain.allocator import keep_freed_memory
from bedplate.pretrain.optim import Optimiser, OptimSettings
from bedplate.pretrain.step import Stepper


@dataclass(frozen=True)
class Speed:
    """Rate of a shape on this machine."""

    positions_per_s: float
    slowest: float
    fastest: float
    steps: int


def synthetic_batch(config: ModelConfig, rows: int, context: int, unit_share: float, seed: int = 0) -> Batch:
    """Rows of random tokens; the last part of each is units, shared among the model's senses.

    Args:
        config: the model's.
        rows: rows of the batch.
        context: positions in a row.
        unit_share: share of positions that are units, 0..1.
        seed: of the content.
    """
    rng = np.random.default_rng(seed)
    senses = list(config.senses.present().items())
    per_sense = int((context - 2) * unit_share / max(len(senses), 1))  # something must stand before the first unit
    sense = np.zeros((rows, context), np.int8)
    units, grid, unit_loss = {}, {}, {}
    for number, (name, spec) in enumerate(senses if per_sense else []):
        end = context - number * per_sense
        sense[:, end - per_sense : end] = SENSES.index(name)
        units[name] = rng.standard_normal((rows * per_sense, spec.unit_width)).astype(np.float32)
        grid[name] = np.stack([np.tile(np.arange(per_sense), rows)] * 3, -1)
        unit_loss[name] = np.ones(rows * per_sense, bool)
    return Batch(
        tokens=rng.integers(0, config.vocab_size, (rows, context)),
        sense=sense,
        document=np.zeros((rows, context), np.int32),
        block=np.zeros((rows, context), np.int32),
        token_loss=(sense == 0) & (np.arange(context) > 0),
        units=units,
        grid=grid,
        unit_loss=unit_loss,
        isolated=bool(units),
    )


def measure(
    config: ModelConfig, optim: OptimSettings, *, rows: int, context: int, unit_share: float, seconds: float, device: str, dtype: torch.dtype, threads: int
) -> Speed:
    """Take steps for about `seconds` and report the rate of the median one.

    Args:
        config: the shape.
        optim: the optimiser's settings.
        rows: rows a step.
        context: positions in a row.
        unit_share: share of positions that are units.
        seconds: how long to measure; at least three steps are taken.
        device: where.
        dtype: precision of the products.
        threads: processor threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        model = FoundationModel(config)
        model.initialise(0)
        model.to(device)
        stepper = Stepper(model, Optimiser(model.named_parameters(), optim), torch.device(device), dtype)
        batch = synthetic_batch(config, rows, context, unit_share)
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 4 or time.perf_counter() - began < seconds:
            started = time.perf_counter()
            stepper.gradients(len(times), [batch])  # ends with a read of the losses, so a GPU has finished too
            stepper.apply(1e-3, 0.9)
            times.append(time.perf_counter() - started)
        steady = times[1:]  # the first one pays for memory and kernels
    finally:
        torch.set_num_threads(before)
    positions = rows * context
    return Speed(positions / statistics.median(steady), positions / max(steady), positions / min(steady), len(steady))


def free_bytes(device: str) -> int:
    """Memory that a step may take: of the GPU, else of the machine."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return int(psutil.virtual_memory().available)
