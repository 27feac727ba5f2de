"""One dial: from a size or a budget to every other number of a run, each with the reason for it. Pure but for one measurement of speed.

What may be spent is compute C (FLOPs). Size: the preset nearest to N = sqrt(C / 120), which spends it as 6 N D with D = 20 N positions.
Batch: B = 0.58 D^0.571 positions (Step Law, arXiv 2503.04715), at least what keeps the optimiser's own cost small.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from bedplate.core.errors import ConfigError, ResourceError
from bedplate.core.units import format_bytes, format_count, format_seconds
from bedplate.data.corpus import Corpus
from bedplate.data.loader import STREAMS, Loader
from bedplate.model.arithmetic import flops_per_token, largest_rows, memory, parameters
from bedplate.model.config import PRESETS, ModelConfig, preset
from bedplate.pretrain.budget import Budget, parse_budget
from bedplate.pretrain.measure import Speed, free_bytes, measure
from bedplate.pretrain.settings import PretrainSettings
from bedplate.pretrain.start import config_from

LEAST_BATCH = 2048
MICRO_POSITIONS = {"cpu": 8192, "cuda": 65_536}
MEMORY_SHARE = 0.8
"""Of the free memory that a step may plan with."""
OVERHEAD_SHARE = 0.06
"""Of a time budget: evaluation, saving, start-up."""
EVALUATION_SHARE = 0.05
"""Of the work of a run, at most."""
COMPILE_REPAYS_S = {"cpu": 600.0, "cuda": 180.0}
"""Runs longer than this repay torch.compile's minute (measured at micro size: docs/journal.md)."""


class Choice(NamedTuple):
    """An "auto" that was resolved."""

    what: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Derived:
    """Settings without "auto", and why each is what it is."""

    settings: PretrainSettings
    choices: tuple[Choice, ...]
    config: ModelConfig
    speed: Speed | None = None
    too_large: ResourceError | None = None
    """Set where not even one row fits the memory: a plan may say so, a run cannot start."""


def derive(
    settings: PretrainSettings,
    corpus: Corpus,
    measurer: Callable[..., Speed] = measure,
    measure_s: float = 3.0,
    memory_of: Callable[[str], int] = free_bytes,
    world: int = 1,
    neighbours: int = 1,
) -> Derived:
    """Every "auto" of the settings resolved.

    Args:
        settings: as asked for.
        corpus: what is learned from.
        measurer: takes the place of `measure` in tests.
        measure_s: seconds of measurement, where the budget is one of time.
        memory_of: device -> bytes that are free on it; another one in tests.
        world: processes that train together.
        neighbours: those of them that share this machine.
    Raises:
        ConfigError: the budget is none, or both a base and a size are given.
        ResourceError: the budget is one of time, and the size asked for does not fit the memory to be measured.
    """
    choices: list[Choice] = []

    def chosen(asked: Any, what: str, value: Any, reason: str) -> Any:
        if asked != "auto":
            return asked
        choices.append(Choice(what, value, reason))
        return value

    run = settings.run
    cuda = torch.cuda.is_available()
    device = chosen(run.device, "run.device", "cuda" if cuda else "cpu", "a GPU is here" if cuda else "there is no GPU")
    kind = device.partition(":")[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = f", shared by {neighbours} processes" if neighbours > 1 else ""
    threads = chosen(run.threads, "run.threads", max(1, cores // neighbours), f"all cores this process may use{shared}")
    precision = chosen(run.precision, "run.precision", "bfloat16" if kind == "cuda" else "float32", f"what a {kind} multiplies fastest without loss of quality")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32

    loader = Loader(corpus, settings.data.loader(run.seed))
    unit_share = 1 - sum(share for c, share in loader.mixture.shares.items() if c in STREAMS)
    budget = parse_budget(run.budget, run.price_per_hour)
    available = sum(loader.positions[c] for c in loader.mixture.components)

    base = settings.model.base
    if base is not None and (settings.model.size != "auto" or settings.model.overrides):
        raise ConfigError("model.base brings its own shape", "leave model.size and model.overrides out")
    given = None if base is None else config_from(base, corpus)

    def config_of(size: str) -> ModelConfig:
        return given or preset(size, corpus.vocabulary, corpus.specs, corpus.special_ids, settings.model.overrides)

    width = 2 if dtype == torch.bfloat16 else 4
    free = int(MEMORY_SHARE * memory_of(device) / (neighbours if kind == "cpu" else 1))

    def rows_that_fit(size: str, context: int) -> int:
        return largest_rows(config_of(size), context, free, bytes_per_value=width, unit_share=unit_share)

    def too_large(size: str, context: int) -> ResourceError | None:
        if rows_that_fit(size, context) >= 1:
            return None
        needed = memory(config_of(size), 1, context, bytes_per_value=width, unit_share=unit_share).total
        fitting = [name for name in PRESETS if rows_that_fit(name, context) >= 1]
        return ResourceError(
            f"one row of {context} positions of {size} needs {format_bytes(needed)}; {format_bytes(free)} may be used",
            f"the largest size that fits: {fitting[-1]}" if fitting else "free memory, or set a smaller model.context",
        )

    def speed_of(size: str, context: int) -> Speed:
        if (error := too_large(size, context)) is not None:
            raise error  # measuring would take the whole machine down
        rows = max(1, min(MICRO_POSITIONS[kind], 4096 if kind == "cpu" else 1 << 20) // context)
        return measurer(
            config_of(size), settings.optim, rows=rows, context=context, unit_share=unit_share, seconds=measure_s, device=device, dtype=dtype, threads=threads
        )

    size = settings.model.size
    if given is not None:
        count = parameters(given).total
        size = min(PRESETS, key=lambda name: abs(math.log(parameters(preset(name, given.vocab_size)).total / count)))
        choices.append(Choice("model.size", size, f"the nearest to the base's {format_count(count)} parameters, which stay as they are; for the context only"))
    elif size == "auto":
        size, why = _size(budget, available, config_of, speed_of, PRESETS, run.steps == "auto")
        choices.append(Choice("model.size", size, why))
    config = config_of(size)
    context: int = chosen(settings.model.context, "model.context", min(PRESETS[size].context, config.max_position_embeddings), f"usual for {size}")

    speed = None
    steps: Any = run.steps
    if steps == "auto":
        if budget.seconds:
            speed = speed_of(size, context)
            positions = world * speed.positions_per_s * budget.seconds * (1 - OVERHEAD_SHARE)
            rate = f"{format_count(speed.positions_per_s)} positions/s here" + (f" in each of {world} processes" if world > 1 else "")
            why = f"{rate} for {format_seconds(budget.seconds)}, {OVERHEAD_SHARE:.0%} kept for the rest"
        elif budget.flops:
            positions = budget.flops / flops_per_token(config, context)
            why = f"{budget.flops:.3g} FLOPs at {format_count(flops_per_token(config, context))} a position"
        elif budget.epochs:
            positions = budget.epochs * available
            why = f"{budget.epochs:g} epochs of {format_count(available)} positions"
        else:
            positions, why = budget.positions, f"{format_count(budget.positions)} positions"
    else:
        positions, why = float(steps * LEAST_BATCH), ""
    batch = max(LEAST_BATCH, 0.58 * positions**0.571)
    of_batch = f"{format_count(batch)} positions a step: 0.58 D^0.571, at least {LEAST_BATCH}"
    rows: int = chosen(run.rows_per_step, "run.rows_per_step", max(1, round(batch / context)), of_batch)
    if steps == "auto":
        steps = max(20, int(positions / (rows * context)))
        choices.append(Choice("run.steps", steps, why))
    quick = max(1, min(-(-rows // world), MICRO_POSITIONS[kind] // context))
    micro = run.rows_per_micro
    if micro == "auto":
        fits = rows_that_fit(size, context)
        limit = f"{format_bytes(free)} hold no more" if fits < quick else f"more than {MICRO_POSITIONS[kind]} positions at once are no faster"
        micro = chosen("auto", "run.rows_per_micro", max(1, min(quick, fits)), limit if min(quick, fits) * world < rows else "a whole step at once")
    seconds = steps * rows * context / (world * speed.positions_per_s) if speed else 0.0
    worth = seconds > COMPILE_REPAYS_S[kind]
    length = f"the run takes {format_seconds(seconds)}" if seconds else "its length is not known"
    compile_ = chosen(run.compile, "run.compile", "on" if worth else "off", length)
    # A row evaluated costs a third of a row trained.
    times = max(1, min(10, int(EVALUATION_SHARE * steps * rows * 3 / settings.evaluate.rows)))
    told = f"{times} times in the run, at most {EVALUATION_SHARE:.0%} of it"
    evaluate = chosen(settings.evaluate.every_steps, "evaluate.every_steps", -(-steps // times), told)
    sample = chosen(settings.sample.every_steps, "sample.every_steps", max(1, steps // 4), "four times in the run")
    resolved = replace(
        settings,
        model=replace(settings.model, size=size, context=context),
        run=replace(
            run, steps=steps, rows_per_step=rows, rows_per_micro=micro, threads=threads, device=device, precision=precision, compile=compile_
        ),
        evaluate=replace(settings.evaluate, every_steps=evaluate),
        sample=replace(settings.sample, every_steps=sample),
    )
    return Derived(resolved, tuple(choices), config, speed, too_large(size, context))


def _size(
    budget: Budget,
    available: float,
    config_of: Callable[[str], ModelConfig],
    speed_of: Callable[[str, int], Speed],
    sizes: Any,
    by_budget: bool,
) -> tuple[str, str]:
    """The preset nearest to the best size for the compute, and why."""
    if not by_budget:
        return "nano", "the smallest, as steps are given and no budget decides"
    if budget.seconds:
        probe = speed_of("nano", PRESETS["nano"].context)
        flops = budget.seconds * probe.positions_per_s * flops_per_token(config_of("nano"), PRESETS["nano"].context)
        told = f"{format_seconds(budget.seconds)} on this machine pay for {flops:.2g} FLOPs"
    elif budget.flops:
        flops, told = budget.flops, f"{budget.flops:.2g} FLOPs"
    else:
        positions = budget.positions or budget.epochs * available
        flops, told = 6 * positions * positions / 20, f"{format_count(positions)} positions"
    best = math.sqrt(flops / 120)
    size = min(sizes, key=lambda name: abs(math.log(flops_per_token(config_of(name), 1) / 6 / best)))
    return size, f"{told}, best spent on about {format_count(best)} parameters"
