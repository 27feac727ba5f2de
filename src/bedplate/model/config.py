"""The shape of a model: Qwen3's field names for the trunk, specs for the other senses, presets by size. No torch.

A model's `config.json` is an ordinary Hugging Face Qwen3 config with one more key, "bedplate", so that other engines load the text model as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bedplate.core.config import from_mapping, to_mapping
from bedplate.core.errors import ConfigError, IntegrityError, did_you_mean
from bedplate.modality.specs import SenseSpecs


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

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            divisors = [n for n in range(1, self.num_attention_heads + 1) if self.num_attention_heads % n == 0]
            raise ConfigError(
                f"num_key_value_heads = {self.num_key_value_heads} does not divide num_attention_heads = {self.num_attention_heads}",
                f"one of {', '.join(map(str, divisors))} does",
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim = {self.head_dim} is odd", f"rotary positions need an even width, such as {self.head_dim + 1}")
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "flow_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} leaves nothing to compute", f"set {name} to 1 or more")

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
    known = set(ModelConfig.__dataclass_fields__) - {"senses", "special_ids"}
    for key in overrides:
        if key not in known:
            raise ConfigError(f"the model has no field {key!r}", did_you_mean(key, known))
    return from_mapping(ModelConfig, {**to_mapping(config), **overrides})


def to_json(config: ModelConfig) -> dict[str, Any]:
    """The config as a Hugging Face Qwen3 `config.json`."""
    special = config.special_ids
    end = special.get("<|endoftext|>")
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": special.get("<|pad|>"),
        "dtype": "float32",
        "bedplate": {
            "senses": {name: to_mapping(spec) for name, spec in config.senses.present().items()},
            "flow_blocks": config.flow_blocks,
            "special_ids": dict(special),
        },
    }


def from_json(raw: Mapping[str, Any]) -> ModelConfig:
    """The config written in a `config.json`.

    Raises:
        IntegrityError: it is not one of ours or is damaged.
    """
    if raw.get("model_type") != "qwen3":
        raise IntegrityError(f"config.json is of model type {raw.get('model_type')!r}", "this version reads models it trained itself (qwen3)")
    own = raw.get("bedplate", {})
    names = [name for name in ModelConfig.__dataclass_fields__ if name not in ("senses", "flow_blocks", "special_ids")]
    try:
        values = {name: raw[name] for name in names if name in raw}
        config = from_mapping(ModelConfig, {**values, **own})
    except (ConfigError, TypeError, AttributeError) as error:
        raise IntegrityError(f"config.json is damaged: {error}", "restore the model folder from a copy") from error
    foreign = [name for name, number in config.special_ids.items() if not 0 <= number < config.vocab_size]
    if foreign:
        raise IntegrityError(f"config.json is damaged: {foreign[0]} is outside the vocabulary", "restore the model folder from a copy")
    return replace(config, special_ids=dict(config.special_ids))
