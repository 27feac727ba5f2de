"""Settings of an adaptation: a frozen table a topic. An "auto" is resolved at the start and told as a `chosen` event.

    settings = load(AdaptSettings, path=Path("recipe.toml"), overrides=["method.rank=32"]).value
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bedplate.core.errors import ConfigError, did_you_mean
from bedplate.model.families import TARGETS
from bedplate.pretrain.checkpoint import CheckpointSettings

Auto = Literal["auto"]
TaskName = Literal["generate", "classify", "regress", "embed", "rank", "prefer", "extract", "distill", "continue", "grow"]
MethodName = Literal["lora", "dora", "probe", "full"]


@dataclass(frozen=True)
class ExampleSettings:
    """What is learned from."""

    file: Path = Path("examples.jsonl")
    """JSONL, CSV, TSV or Parquet; or a folder or archive of files, labelled by the folder that each lies in."""
    held_out_file: Path | None = None
    """Examples that are only judged. None: a part of `file` is held out."""
    held_out: float = 0.15
    """Share of the examples that are held out to stop early, to calibrate and to judge, at most 1,000; 0: none, and nothing of the three is done."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Names that the file uses in place of ours, such as {label = "technique"}."""
    group: str = ""
    """A column whose equal values stay together: all held out, or all learned from (such as the document that a sentence is from)."""
    most_positions: int | Auto = "auto"
    """Longest example; what is longer loses the middle of its longest stretch without loss. auto: what the base can hold, at most 2,048."""
    template: Literal["chat", "raw"] = "chat"
    """How a prompt and its completion are written: as a conversation by the base's chat template, or one after the other as they are."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"data.held_out = {self.held_out} is not a share below 1", "0.15 holds out every seventh example")
        if self.most_positions != "auto" and self.most_positions < 8:
            raise ConfigError(f"data.most_positions = {self.most_positions} holds nothing", 'set data.most_positions to 8 or more, or to "auto"')


@dataclass(frozen=True)
class MethodSettings:
    """What of the network is trained."""

    name: MethodName = "lora"
    """lora: a low-rank change of every layer's matrices; dora: the same with a learned length of each row; probe: only a linear head on the frozen
    base; full: every weight."""
    rank: int = 16
    """lora, dora: rank of the change; its size on disk grows with it."""
    alpha: float = 32.0
    """lora, dora: the change counts alpha / rank times, so that the learning rate need not follow the rank."""
    rslora: bool = False
    """lora, dora: alpha / sqrt(rank) times, for ranks of 64 and more."""
    targets: tuple[str, ...] = TARGETS
    """lora, dora: names of the projections that are changed."""
    dropout: float = 0.0
    """lora, dora: share of the inputs that the low-rank part does not see in a step."""
    start: Path | None = None
    """lora, dora: an adapter folder of the same base that learning goes on from. Name, rank, alpha, rslora and targets are then those of that adapter."""
    base_bits: Literal[8, 4] | None = None
    """Bits in which the frozen base's matrices are kept: 8 takes a quarter of the memory, 4 (NF4) an eighth. None: exactly."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"method.rank = {self.rank} changes nothing", "16 is usual")
        if not self.alpha > 0:
            raise ConfigError(f"method.alpha = {self.alpha:g} changes nothing", f"{2 * self.rank} is usual with rank {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"method.dropout = {self.dropout} is not a share below 1", "0.05 is usual")
        if not self.targets:
            raise ConfigError("method.targets names nothing", f"known: {', '.join(TARGETS)}")
        if unknown := [name for name in self.targets if name not in TARGETS]:
            raise ConfigError(f"method.targets: no projection is called {unknown[0]!r}", did_you_mean(unknown[0], TARGETS))
        if self.start is not None and self.name not in ("lora", "dora"):
            raise ConfigError(f"{self.name} does not go on from an adapter", 'set method.name to "lora", or leave method.start out')
        if self.base_bits is not None and self.name == "full":
            raise ConfigError("a base in few bits cannot be trained in full", 'set method.name to "lora", or leave method.base_bits out')


@dataclass(frozen=True)
class ClassifySettings:
    """Choices of `classify`."""

    weights: Literal["equal", "balanced"] = "equal"
    """balanced: a rare class counts as much as a frequent one."""
    words: bool = False
    """Whether the spelling of a text counts beside what the base makes of it: pieces of its words, counted. How much each of the two counts is found on
    examples that neither has learned from. Worth it where exact names tell the label: programs, functions, keys."""
    weight_column: str = ""
    """A column that says how much an example counts, such as 0.3 for one of a source that resembles yours; 1 where the cell is empty. "": all count 1."""
    reads: Literal["mean", "last"] = "mean"
    """What the head reads. mean: the mean over a thing's tokens or units, of the upper half's streams; last: the state of a text's last token and nothing
    else, as classifiers of `transformers` do, so that `peft` can load the whole worker (with lora and dora)."""
    accuracy: float = 0.0
    """Accuracy that answers should have: where the worker is less sure than this takes on held-out examples, it abstains. 0: it always answers."""

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy < 1:
            raise ConfigError(f"classify.accuracy = {self.accuracy} is not a share below 1", "0.95 lets one answer in twenty be wrong")
        if self.words and self.reads == "last":
            raise ConfigError("classify.words counts more than the last token's state", 'leave classify.words out, or set classify.reads to "mean"')


@dataclass(frozen=True)
class EmbedSettings:
    """Choices of `embed`."""

    temperature: float = 0.05
    """What cosines are divided by: the smaller, the more the nearest wrong ones count."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"embed.temperature = {self.temperature} divides by nothing", "0.05 is usual")


@dataclass(frozen=True)
class ExtractSettings:
    """Choices of `extract`."""

    sees: Literal["auto", "both", "past"] = "auto"
    """What a word sees of the text: both sides of it, or only what comes before, as in pre-training. auto: both, where the network is trained."""


@dataclass(frozen=True)
class PreferSettings:
    """Choices of `prefer`."""

    beta: float = 0.1
    """How strongly the base is held on to: the smaller, the further the network may move away from it."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError(f"prefer.beta = {self.beta} learns nothing", "0.1 is usual")


@dataclass(frozen=True)
class DistillSettings:
    """Choices of `distill`."""

    teacher: Path | None = None
    """The model that is learned from: a model folder."""
    by: Literal["logits", "text"] = "logits"
    """logits: its distribution over every next token of the examples, which takes equal tokenizers; text: the answers that it writes to their prompts."""
    temperature: float = 2.0
    """By logits: what both sides' logits are divided by; the larger, the more the unlikely tokens count."""
    most_tokens: int = 256
    """By text: the teacher's longest answer."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"distill.temperature = {self.temperature} divides by nothing", "2 is usual")
        if self.most_tokens < 1:
            raise ConfigError(f"distill.most_tokens = {self.most_tokens} leaves nothing to say", "256 is usual")


@dataclass(frozen=True)
class FurtherSettings:
    """Choices of `continue` and `grow`."""

    lr_share: float = 0.2
    """Peak learning rates as a share of those for fresh weights, where train.lr is auto; the new parts of `grow` learn at the full rate."""

    def __post_init__(self) -> None:
        if not 0 < self.lr_share <= 1:
            raise ConfigError(f"further.lr_share = {self.lr_share} is not a share above 0", "0.2 keeps most of what the base knows")


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast, on what."""

    epochs: float = 3.0
    """Times that every example is seen, unless held-out examples say that it is enough."""
    examples_per_step: int | Auto = "auto"
    """Examples that one update learns from. auto: 16 (embed: 64), fewer where an epoch would have less than eight steps."""
    positions_per_micro: int | Auto = "auto"
    """Positions in memory at once; gradients of the parts add up to exactly the whole. auto: 4,096, fewer where a quarter of the free memory holds fewer."""
    lr: float | Auto = "auto"
    """Peak learning rate. auto: by the base's width and the method."""
    weight_decay: float = 0.01
    """Of matrices."""
    warmup_share: float = 0.1
    """Share of the steps over which the learning rate rises; then it falls linearly to zero."""
    clip: float = 1.0
    """Largest joint norm of the gradients."""
    evaluate_every: int | Auto = "auto"
    """Steps between looks at the held-out examples. auto: two in an epoch."""
    patience: int = 4
    """Looks without a better held-out loss after which training stops; the best weights are kept. 0: all steps are taken, and the best weights kept."""
    seed: int = 0
    """Decides what is held out, and the order of the examples."""
    threads: int | Auto = "auto"
    """Processor threads. auto: all."""
    device: str = "auto"
    """cpu, cuda or cuda:1. auto: a GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the products in the network. auto: bfloat16 on a GPU, float32 on a processor."""

    def __post_init__(self) -> None:
        for name in ("examples_per_step", "positions_per_micro", "evaluate_every", "threads"):
            if (value := getattr(self, name)) != "auto" and value < 1:
                raise ConfigError(f"train.{name} = {value} leaves nothing to do", f'set train.{name} to 1 or more, or to "auto"')
        if self.epochs <= 0:
            raise ConfigError(f"train.epochs = {self.epochs:g} leaves nothing to do", "3 is usual")
        if not 0 <= self.warmup_share < 1:
            raise ConfigError(f"train.warmup_share = {self.warmup_share} is not a share below 1", "0.1 is usual")
        if self.lr != "auto" and not self.lr > 0:
            raise ConfigError(f"train.lr = {self.lr} moves nothing", 'give a positive number, or "auto"')


@dataclass(frozen=True)
class AdaptSettings:
    """Everything about an adaptation."""

    base: Path = Path("base")
    """The base: a model folder. It stays as it is."""
    to: Path = Path("adapters/new")
    """The adapter folder to write. What happened is kept beside it, in TO.run."""
    task: TaskName = "generate"
    """What is learned: generate (answer, summarise, write code), classify (one label or several), regress (a number), embed (vectors that are near where
    things belong together), rank (how well texts answer a query), extract (labelled stretches of a text), prefer (the answer of two that people chose),
    distill (what a larger model says), continue (more pre-training on files of any sense that the base knows), grow (the same with a sense that it lacks).
    The last two make a model, not an adapter, train every weight, and read a folder, archive or file as `bedplate data build` does, or a corpus."""
    data: ExampleSettings = field(default_factory=ExampleSettings)
    """What is learned from."""
    method: MethodSettings = field(default_factory=MethodSettings)
    """What of the network is trained."""
    classify: ClassifySettings = field(default_factory=ClassifySettings)
    """Choices of `classify`."""
    embed: EmbedSettings = field(default_factory=EmbedSettings)
    """Choices of `embed`."""
    extract: ExtractSettings = field(default_factory=ExtractSettings)
    """Choices of `extract`."""
    prefer: PreferSettings = field(default_factory=PreferSettings)
    """Choices of `prefer`."""
    distill: DistillSettings = field(default_factory=DistillSettings)
    """Choices of `distill`."""
    further: FurtherSettings = field(default_factory=FurtherSettings)
    """Choices of `continue` and `grow`."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """How long, how fast, on what."""
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    """When the whole state is saved and which states are kept."""

    def __post_init__(self) -> None:
        if self.task == "classify" and self.classify.reads == "last" and self.method.name not in ("lora", "dora"):
            raise ConfigError(f"a {self.method.name} has no place beside PEFT's adapters", 'set method.name to "lora", or classify.reads to "mean"')
