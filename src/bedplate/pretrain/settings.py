"""Settings of pre-training: a frozen table a topic. An "auto" is resolved once, told as a `chosen` event, and kept in the run folder.

    settings = load(PretrainSettings, path=Path("recipe.toml"), overrides=["run.budget=20m"]).value
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bedplate.core.errors import ConfigError
from bedplate.data.loader import LoaderSettings
from bedplate.data.packing import PackingSettings
from bedplate.pretrain.checkpoint import CheckpointSettings
from bedplate.pretrain.health import HealthSettings
from bedplate.pretrain.optim import OptimSettings
from bedplate.pretrain.schedule import ScheduleSettings

Auto = Literal["auto"]


@dataclass(frozen=True)
class ModelSettings:
    """The network."""

    size: str = "auto"
    """A preset (nano, micro, mini, small, base, 1b, 3b, 8b). auto: the size that the budget trains best."""
    base: Path | None = None
    """A model folder to go on from, in place of `size`: its shape and weights; senses of the corpus that it lacks are added. None: fresh weights."""
    context: int | Auto = "auto"
    """Positions in a row. auto: 512 for sizes up to mini, 1024 for small, 2048 from base on."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's config that replace the preset's, such as {num_hidden_layers = 4}."""


@dataclass(frozen=True)
class DataSettings:
    """What is learned from."""

    corpus: Path = Path("corpus")
    """The corpus folder."""
    mixture: Mapping[str, float] = field(default_factory=dict)
    """Weight of each component, such as {text = 2, image = 1}; components left out are not read. Empty: by the square root of their size."""
    packing: PackingSettings = field(default_factory=PackingSettings)
    """How documents become positions and targets."""

    def loader(self, seed: int) -> LoaderSettings:
        """What the loader is told; the run's seed decides the order."""
        return LoaderSettings(self.mixture, self.packing, seed)


@dataclass(frozen=True)
class RunSettings:
    """How long, on what, and in which portions."""

    budget: str = "20m"
    """What may be spent: a time ("20m", "2h"), compute ("1e19 FLOPs"), or data ("5 epochs", "2B tokens"). `steps` overrides it."""
    steps: int | Auto = "auto"
    """Steps of the run. auto: as many as the budget pays for."""
    rows_per_step: int | Auto = "auto"
    """Rows of `model.context` positions that one update learns from."""
    rows_per_micro: int | Auto = "auto"
    """Rows in memory at once; gradients of the parts add up to exactly the whole. auto: the fastest that fits."""
    seed: int = 0
    """Decides the initial weights, the order of the data and every draw of noise."""
    threads: int | Auto = "auto"
    """Processor threads. auto: all. Results are repeatable bit by bit only with the same number."""
    device: str = "auto"
    """cpu, cuda or cuda:1. auto: a GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the products in the network; weights and their updates stay float32. auto: bfloat16 on a GPU, float32 on a processor."""
    price_per_hour: float = 0.0
    """What an hour of this machine costs, for a budget in money such as "$50"."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch.compile fuses the trunk. auto: when the run is long enough to repay the compilation."""

    def __post_init__(self) -> None:
        for name in ("steps", "rows_per_step", "rows_per_micro", "threads"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ConfigError(f"run.{name} = {value} leaves nothing to do", f'set run.{name} to 1 or more, or to "auto"')


@dataclass(frozen=True)
class EvaluateSettings:
    """Losses on the validation split."""

    every_steps: int | Auto = "auto"
    """Steps between evaluations; there is always one at the end. auto: ten in a run. 0: only the last."""
    rows: int = 32
    """Rows of the validation split; always the same ones."""


@dataclass(frozen=True)
class SampleSettings:
    """Things the model makes along the way, to be looked at in the report."""

    every_steps: int | Auto = "auto"
    """Steps between samples; there is always a set at the end. auto: four in a run. 0: only the last."""


@dataclass(frozen=True)
class PretrainSettings:
    """Everything about a pre-training run."""

    model: ModelSettings = field(default_factory=ModelSettings)
    """The network."""
    data: DataSettings = field(default_factory=DataSettings)
    """What is learned from."""
    optim: OptimSettings = field(default_factory=OptimSettings)
    """Learning rates and constants of the optimisers."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """What changes along the run."""
    run: RunSettings = field(default_factory=RunSettings)
    """How long, on what, in which portions."""
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    """When the whole state is saved and which states are kept."""
    health: HealthSettings = field(default_factory=HealthSettings)
    """What counts as ill and what is done about it."""
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    """Losses on held-out data."""
    sample: SampleSettings = field(default_factory=SampleSettings)
    """Things made along the way."""
