"""How an engine is set up: what is asked, and what follows from it, the model and the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from bedplate.core.errors import BedplateError, ConfigError, ResourceError
from bedplate.infer.cpu.runner import CpuRunner
from bedplate.infer.step import PAGE, Runner, Shape
from bedplate.infer.torch_runner import TorchRunner
from bedplate.model.foundation import FoundationModel

MEMORY_SHARE = 0.3
"""Of the memory that is free now, for keys and values, where nobody says how much."""
USUAL_BYTES = 2 * 1024**3
"""Most of it then."""
CHEAP_ROWS = {"int8": 6, "float32": 12}
"""Rows of a step that cost hardly more than one: reading the weights is what it costs (cpu/matrix.h has as many in one block)."""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine may use."""

    precision: Literal["auto", "float32", "int8"] = "auto"
    """Of weights and, for int8, of activations. auto: int8 on a processor, bfloat16 on a GPU."""
    backend: Literal["auto", "cpu", "torch"] = "auto"
    """cpu: the compiled trunk; torch: torch's operations, the only way on a GPU. auto: the compiled trunk where it can be had."""
    device: str = "auto"
    """For torch: cpu, cuda, cuda:1; auto: a GPU where there is one."""
    threads: int = 0
    """That compute; 0: as many as the machine has cores."""
    context: int = 0
    """Longest question and answer together, in positions; 0: as long as the model can."""
    cache_bytes: int = 0
    """Memory for keys and values; 0: a share of what is free."""
    adapter_bytes: int = 1024**3
    """Memory for packed adapters; those that are in use are always kept."""
    step_positions: int = 256
    """Positions computed in one step at most: long prompts are read in portions so long."""
    most_running: int = 64
    """Requests that are computed side by side."""
    most_waiting: int = 1024
    """Requests that may wait; more are refused."""
    share_beginnings: bool = True
    """Keep what was read, for requests of the same tenant, adapter and policy that begin alike."""
    drafts: int = 8
    """Tokens that may be guessed ahead from what stood before; 0: none. Answers are the same."""

    def __post_init__(self) -> None:
        least = {"step_positions": 1, "most_running": 1, "most_waiting": 1}
        for name in ("threads", "context", "cache_bytes", "adapter_bytes", "step_positions", "most_running", "most_waiting", "drafts"):
            if getattr(self, name) < least.get(name, 0):
                raise ConfigError(f"{name} = {getattr(self, name)} is too few", f"at least {least.get(name, 0)}")

    def derive(self, model: FoundationModel) -> Shape:
        """What follows for a model.

        Raises:
            ConfigError: the context is longer than the model's.
            ResourceError: the memory does not hold one request.
        """
        config = model.config
        longest = config.max_position_embeddings
        if self.context > longest:
            raise ConfigError(f"context = {self.context} is longer than the model's {longest} positions", f"at most {longest}")
        context = self.context or longest
        precision: Literal["float32", "int8"] = "float32" if self.precision == "float32" else "int8"
        width = config.head_dim + -(-config.head_dim // PAGE) * PAGE  # values are filled up to whole lanes
        page_bytes = config.num_hidden_layers * config.num_key_value_heads * width * PAGE * (2 if precision == "int8" else 4)
        room = self.cache_bytes or min(USUAL_BYTES, int(MEMORY_SHARE * psutil.virtual_memory().available))
        pages = min(room // page_bytes, self.most_running * -(-context // PAGE))
        if pages < 2:
            raise ResourceError(f"{room:,} bytes do not hold two pages of {PAGE} positions", f"give at least {2 * page_bytes:,}")
        block = max(((spec.size // spec.patch) ** 2 for spec in (config.senses.image, config.senses.video) if spec is not None), default=0)
        cheap_rows = CHEAP_ROWS[precision]
        return Shape(
            precision=precision,
            context=context,
            pages=pages,
            positions=max(self.step_positions, self.most_running) + block,
            rows=max(64, self.most_running + cheap_rows),
            threads=self.threads or len(os.sched_getaffinity(0)),
            cheap_rows=cheap_rows,
            block=block,
        )


def open_runner(model: FoundationModel, settings: EngineSettings, shape: Shape) -> Runner:
    """What computes.

    Raises:
        ResourceError: the compiled trunk was asked for and cannot be had.
    """
    gpu = settings.device.startswith("cuda") or (settings.device == "auto" and torch.cuda.is_available())
    if settings.backend != "torch" and not gpu:
        try:
            return CpuRunner(model, shape)
        except BedplateError:
            if settings.backend == "cpu":
                raise
    device = torch.device(settings.device if settings.device != "auto" else "cuda" if gpu else "cpu")
    return TorchRunner(model, shape, device, torch.bfloat16 if gpu and settings.precision != "float32" else torch.float32)
