"""The plan of a run: parameters, memory, time, FLOPs. Never trains; takes a few made-up steps to measure this machine and forgets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bedplate.data.corpus import Corpus
from bedplate.data.loader import STREAMS, Loader
from bedplate.model.arithmetic import Memory, Parameters, flops_per_token, flops_per_unit, largest_rows, memory, parameters
from bedplate.pretrain.derive import Choice, derive
from bedplate.pretrain.measure import Speed, free_bytes, measure
from bedplate.pretrain.settings import PretrainSettings


@dataclass(frozen=True)
class Plan:
    """What a run would be."""

    settings: PretrainSettings
    """Without "auto"."""
    choices: tuple[Choice, ...]
    parameters: Parameters
    memory: Memory
    """Of one micro-batch's step."""
    free_bytes: int
    largest_rows: int
    """Most rows whose step fits the free memory."""
    positions: int
    epochs: float
    """How often the most repeated component is read."""
    shares: dict[str, float]
    """Share of rows of each component."""
    flops: float
    speed: Speed | None
    """None where not even one row fits: then nothing was measured."""

    @property
    def seconds(self) -> float | None:
        """How long the run takes at the median speed."""
        return self.positions / self.speed.positions_per_s if self.speed else None

    @property
    def seconds_range(self) -> tuple[float, float] | None:
        """The same at the fastest and at the slowest step's speed."""
        return (self.positions / self.speed.fastest, self.positions / self.speed.slowest) if self.speed else None

    @property
    def positions_per_parameter(self) -> float:
        """20 is about the best use of compute (Chinchilla)."""
        return self.positions / self.parameters.total


def plan(settings: PretrainSettings, corpus: Corpus, measure_s: float = 10.0, memory_of: Callable[[str], int] = free_bytes) -> Plan:
    """Derive, measure, count.

    Args:
        settings: as asked for.
        corpus: what would be learned from.
        measure_s: seconds of measurement.
        memory_of: device -> bytes that are free on it; another one in tests.
    Raises:
        ResourceError: the budget is one of time, and the size asked for does not fit the memory to be measured.
    """
    derived = derive(settings, corpus, measure_s=min(3.0, measure_s), memory_of=memory_of)
    resolved, config, run = derived.settings, derived.config, derived.settings.run
    context, steps, rows, micro, threads = resolved.model.context, run.steps, run.rows_per_step, run.rows_per_micro, run.threads
    assert isinstance(context, int) and isinstance(steps, int) and isinstance(rows, int) and isinstance(micro, int) and isinstance(threads, int)
    loader = Loader(corpus, resolved.data.loader(run.seed))
    shares = {str(component): share for component, share in loader.mixture.shares.items()}
    unit_share = 1 - sum(share for component, share in shares.items() if component in STREAMS)
    half = run.precision == "bfloat16"
    width = 2 if half else 4
    free = memory_of(run.device)
    fits = largest_rows(config, context, free, bytes_per_value=width, unit_share=unit_share)
    speed = None if derived.too_large else measure(
        config,
        resolved.optim,
        rows=max(1, min(micro, fits)),
        context=context,
        unit_share=unit_share,
        seconds=measure_s,
        device=run.device,
        dtype=torch.bfloat16 if half else torch.float32,
        threads=threads,
    )
    positions = steps * rows * context
    senses = [sense for sense in config.senses.present() if sense in shares]
    per_position = flops_per_token(config, context) * (1 - unit_share)
    per_position += sum(flops_per_unit(config, sense, context) * shares[sense] for sense in senses)
    return Plan(
        settings=resolved,
        choices=derived.choices,
        parameters=parameters(config),
        memory=memory(config, micro, context, bytes_per_value=width, unit_share=unit_share),
        free_bytes=free,
        largest_rows=fits,
        positions=positions,
        epochs=loader.epochs(steps * rows, context),
        shares=shares,
        flops=per_position * positions,
        speed=speed,
    )
