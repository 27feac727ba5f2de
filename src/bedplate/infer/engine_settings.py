"""How an engine is set up: what is asked, and what follows from it, the model and the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, NamedTuple

import psutil
import torch

from bedplate.core.errors import BedplateError, ConfigError, ResourceError
from bedplate.infer.cpu.choose import usual_precision
from bedplate.infer.cpu.runner import CpuRunner
from bedplate.infer.cuda_graphs import cuda_graphs
from bedplate.infer.step import PAGE, Runner, Shape
from bedplate.infer.torch_runner import TorchRunner
from bedplate.model.foundation import FoundationModel

CPU = torch.device("cpu")
MEMORY_SHARE = 0.3
"""Of the memory that is free now, for keys and values, where nobody says how much."""
USUAL_BYTES = 2 * 1024**3
"""Most of it then."""
GPU_SHARE = 0.7
"""Of the memory of a GPU that is free beside the weights: nobody else is there."""
CHEAP_ROWS = {"int4": 6, "int8": 6, "float32": 12}
"""Rows of a step that cost hardly more than one: reading the weights is what it costs (cpu/matrix.h has as many in one block)."""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine may use."""

    precision: Literal["auto", "float32", "int8", "int4"] = "auto"
    """Of weights; below float32, activations are rounded to 8 bits. auto: bfloat16 on a GPU; on a processor int8, or int4 where at most 8 requests run side by
    side and the weights came in 4 bits, so that nothing is lost."""
    backend: Literal["auto", "cpu", "torch"] = "auto"
    """cpu: the compiled trunk; torch: torch's operations, the only way on a GPU. auto: the compiled trunk where it can be had."""
    device: str = "auto"
    """For torch: cpu, cuda, cuda:1; auto: a GPU where there is one."""
    threads: int = 0
    """That compute; 0: as many as the machine has cores."""
    context: int = 0
    """Longest question and answer together, in positions; 0: as long as the model can."""
    cache_bytes: int = 0
    """Memory for keys and values; 0: a share of what is free, on a GPU most of what the weights leave."""
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

    @property
    def computes_on(self) -> torch.device:
        """Where torch would compute."""
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def derive(self, model: FoundationModel, dtype: torch.dtype | None = None, device: torch.device = CPU) -> Shape:
        """What follows for a model.

        Args:
            model: that will be computed.
            dtype: of torch's keys and values; None: the compiled trunk computes.
            device: where they lie.
        Raises:
            ConfigError: the context is longer than the model's.
            ResourceError: the memory does not hold one request.
        """
        config = model.config
        longest = config.max_position_embeddings
        if self.context > longest:
            raise ConfigError(f"context = {self.context} is longer than the model's {longest} positions", f"at most {longest}")
        context = self.context or longest
        precision = usual_precision(model, self.most_running) if self.precision == "auto" else self.precision
        width = config.head_dim + -(-config.head_dim // PAGE) * PAGE  # values are filled up to whole lanes
        page_bytes = config.num_hidden_layers * config.num_key_value_heads * width * PAGE * (4 if precision == "float32" else 2)
        if dtype is not None:  # torch's keys are as wide as its values, and a page of them is nobody's (cuda_graphs.py)
            page_bytes = config.num_hidden_layers * config.num_key_value_heads * 2 * config.head_dim * PAGE * dtype.itemsize
        room = self.cache_bytes or usual_bytes(model, dtype, device)
        pages = min(room // page_bytes - (dtype is not None), self.most_running * -(-context // PAGE))
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


def usual_bytes(model: FoundationModel, dtype: torch.dtype | None, device: torch.device) -> int:
    """Memory for keys and values where nobody says how much: of the machine, or of the GPU beside the model's weights."""
    if device.type != "cuda":
        return min(USUAL_BYTES, int(MEMORY_SHARE * psutil.virtual_memory().available))
    free, _ = torch.cuda.mem_get_info(device)
    weights = sum(p.numel() * (dtype or p.dtype).itemsize for p in model.parameters() if p.device.type != "cuda")
    return max(0, int(GPU_SHARE * (free - weights)))


class Opened(NamedTuple):
    """What computes, and how large its workplaces are."""

    runner: Runner
    shape: Shape
    instead: str = ""
    """Why the compiled trunk does not compute where it should, and what helps; "": it does, or nobody asked for it."""


def open_runner(model: FoundationModel, settings: EngineSettings) -> Opened:
    """What computes, as large as its memory allows.

    Raises:
        ConfigError: the context is longer than the model's.
        ResourceError: the compiled trunk was asked for and cannot be had, or the memory does not hold one request.
    """
    device, instead = settings.computes_on, ""
    if settings.backend != "torch" and device.type != "cuda":
        shape = settings.derive(model)
        try:
            return Opened(CpuRunner(model, shape), shape)
        except BedplateError as error:
            if settings.backend == "cpu":
                raise
            instead = " ".join(f"{error.message}: {error.hint}".split())
    dtype = torch.bfloat16 if device.type == "cuda" and settings.precision != "float32" else torch.float32
    shape = settings.derive(model, dtype, device)
    return Opened(TorchRunner(model, shape, device, dtype, cuda_graphs(device) if device.type == "cuda" else None), shape, instead)
