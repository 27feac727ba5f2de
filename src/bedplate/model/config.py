"""The shape of a model: Hugging Face's field names for the trunk, specs for the other senses, presets by size. No torch.

What we train is a Qwen3; the fields behind `special_ids` are what other families have or lack (model/families.py names them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bedplate.core.config import from_mapping, to_mapping
from bedplate.core.errors import ConfigError, did_you_mean
from bedplate.modality.specs import SenseSpecs
from bedplate.model.families import FAMILIES

Family = Literal["qwen3", "qwen2", "llama", "mistral", "smollm3", "qwen3_moe", "mixtral"]
"""The `model_type` of a Hugging Face config that the trunk computes."""


def _finite(shape: object, *names: str) -> None:
    """Refuse numbers that no arithmetic survives."""
    for name in names:
        if not math.isfinite(getattr(shape, name)):
            raise ConfigError(f"{name} = {getattr(shape, name)} is no number", "set it to a finite one")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles are stretched for contexts longer than those of pre-training."""

    rope_type: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: float
    """How many times longer."""
    original_max_position_embeddings: int = 0
    """llama3 and yarn: the context of pre-training."""
    low_freq_factor: float = 1.0
    """llama3: waves longer than the original context over this are stretched in full."""
    high_freq_factor: float = 4.0
    """llama3: waves shorter than the original context over this are left alone."""
    beta_fast: float = 32.0
    """yarn: coordinates that turn more often than this in the original context are left alone."""
    beta_slow: float = 1.0
    """yarn: coordinates that turn less often than this are stretched in full."""
    attention_factor: float = 1.0
    """yarn: what cos and sin are multiplied with."""
    truncate: bool = True
    """yarn: whether the two borders are rounded to whole coordinates."""

    def __post_init__(self) -> None:
        _finite(self, "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's parameters."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 64
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 2048
    senses: SenseSpecs = field(default_factory=SenseSpecs)
    flow_blocks: int = 3
    special_ids: Mapping[str, int] = field(default_factory=dict)
    """Name -> id of the special tokens that the senses and generation need."""
    model_type: Family = "qwen3"
    attention_bias: bool = False
    """Whether the query, key and value projections add a bias."""
    output_bias: bool = False
    """Whether attention's output projection does."""
    mlp_bias: bool = False
    """Whether the feed-forward's projections do."""
    qk_norm: bool = True
    """Whether each head's queries and keys are normalised."""
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    """Positions, its own included, that a position sees in `sliding_layers`."""
    sliding_layers: tuple[int, ...] = ()
    """Numbers of the layers that see the window only."""
    no_rope_layers: tuple[int, ...] = ()
    """Numbers of the layers that turn nothing. (SmolLM3's key of this name is a mask of the layers that do.)"""
    num_experts: int = 0
    """Feed-forwards of a layer, of which a router chooses a few for each position; 0: one for all positions."""
    num_experts_per_tok: int = 0
    """How many it chooses."""
    moe_intermediate_size: int = 0
    """Inner width of each."""
    norm_topk_prob: bool = True
    """Whether the shares of those that were chosen add up to one."""
    dense_layers: tuple[int, ...] = ()
    """Numbers of the layers that have no experts all the same, but one feed-forward of `intermediate_size`."""
    bits: Literal[8, 4] | None = None
    """Bits in which the projections of the layers are stored; None: exactly."""
    bos_token_id: int | None = None
    """What a text begins with, where that is not `<|endoftext|>`."""
    eos_token_ids: tuple[int, ...] = ()
    """What ends a text or an answer, where that is not `<|endoftext|>` alone."""

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            divisors = [n for n in range(1, self.num_attention_heads + 1) if self.num_attention_heads % n == 0]
            raise ConfigError(
                f"num_key_value_heads = {self.num_key_value_heads} does not divide num_attention_heads = {self.num_attention_heads}",
                f"one of {', '.join(map(str, divisors))} does",
            )
        _finite(self, "rope_theta", "rms_norm_eps")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim = {self.head_dim} is odd", f"rotary positions need an even width, such as {self.head_dim + 1}")
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "flow_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} leaves nothing to compute", f"set {name} to 1 or more")
        if self.bits not in (None, 8, 4):
            raise ConfigError(f"bits = {self.bits} is not computed", "8 and 4 are")
        if self.sliding_layers and (self.sliding_window is None or self.sliding_window < 1):
            raise ConfigError(f"sliding_window = {self.sliding_window} hides everything from layers {list(self.sliding_layers)}", "set it to 1 or more")
        if self.num_experts and not (0 < self.num_experts_per_tok <= self.num_experts and self.moe_intermediate_size > 0):
            asked = f"num_experts_per_tok = {self.num_experts_per_tok}, moe_intermediate_size = {self.moe_intermediate_size}"
            raise ConfigError(f"{asked} leave nothing to compute", f"choose 1 to {self.num_experts} experts of a width of 1 or more")
        for name in ("sliding_layers", "no_rope_layers", "dense_layers"):
            if foreign := [number for number in getattr(self, name) if not 0 <= number < self.num_hidden_layers]:
                raise ConfigError(f"{name} names layer {foreign[0]}", f"layers are 0 to {self.num_hidden_layers - 1}")
        FAMILIES[self.model_type].check(self)

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that have experts."""
        return tuple(number for number in range(self.num_hidden_layers) if number not in self.dense_layers) if self.num_experts else ()

    @property
    def begin_token_id(self) -> int | None:
        """What a text begins with."""
        return self.special_ids.get("<|endoftext|>") if self.bos_token_id is None else self.bos_token_id

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """What ends a text or an answer."""
        return self.eos_token_ids or tuple(number for name, number in self.special_ids.items() if name == "<|endoftext|>")

    @property
    def flow_width(self) -> int:
        """Width of the flow heads."""
        return min(max(self.hidden_size, 256), 1024)


@dataclass(frozen=True)
class Preset:
    """A named shape. `vocabulary` is what a corpus built for this size gets."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    context: int


PRESETS: dict[str, Preset] = {
    "nano": Preset(128, 384, 3, 4, 2, 32, 4096, True, 512),
    "micro": Preset(256, 704, 4, 4, 2, 64, 8192, True, 512),
    "mini": Preset(448, 1216, 6, 7, 7, 64, 16_384, True, 512),
    "small": Preset(768, 2048, 12, 12, 12, 64, 49_152, True, 1024),
    "base": Preset(1024, 2816, 24, 16, 8, 64, 49_152, True, 2048),
    "1b": Preset(2048, 5632, 20, 16, 8, 128, 65_536, True, 2048),
    "3b": Preset(2560, 8960, 30, 20, 10, 128, 65_536, True, 4096),
    "8b": Preset(4096, 12_288, 36, 32, 8, 128, 131_072, False, 4096),
}
"""The dial's positions. Parameters are near the name at the preset's own vocabulary (docs/settings.md lists them exactly)."""


def preset(
    size: str,
    vocab_size: int,
    senses: SenseSpecs | None = None,
    special_ids: Mapping[str, int] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """The config of a preset for a corpus.

    Args:
        size: a name of PRESETS.
        vocab_size: of the corpus's tokenizer.
        senses: specs of the corpus's other senses.
        special_ids: name -> id of special tokens.
        overrides: fields that replace the preset's.
    Raises:
        ConfigError: unknown size or field.
    """
    if size not in PRESETS:
        raise ConfigError(f"no size {size!r}", did_you_mean(size, PRESETS))
    shape = PRESETS[size]
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=max(2048, shape.context),
        senses=senses or SenseSpecs(),
        special_ids=dict(special_ids or {}),
    )
    if not overrides:
        return config
    known = set(ModelConfig.__dataclass_fields__) - {"senses", "special_ids", "bits"}
    for key in overrides:
        if key not in known:
            raise ConfigError(f"the model has no field {key!r}", did_you_mean(key, known))
    return from_mapping(ModelConfig, {**to_mapping(config), **overrides})
