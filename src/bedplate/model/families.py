"""The dense families that the trunk computes: what each has, may have and never has, and what its config means where it is silent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bedplate.core.errors import ConfigError

if TYPE_CHECKING:
    from bedplate.model.config import ModelConfig


@dataclass(frozen=True)
class Traits:
    """One family."""

    architecture: str
    """The class of its causal language model in `transformers`."""
    qk_norm: bool = False
    attention_bias: Literal["never", "inputs", "all or none"] = "never"
    """inputs: always on queries, keys and values; all or none: on the output projection too, where the config asks for it."""
    mlp_bias: bool = False
    """Whether the config may ask for it."""
    windows: Literal["none", "every layer", "some layers"] = "none"
    windows_asked: bool = False
    """Whether windows count only where the config says so (use_sliding_window)."""
    no_rope: bool = False
    """Whether some layers may leave positions alone."""
    rope_theta: float = 10_000.0
    head_dim: int | None = None
    """None: hidden_size / num_attention_heads."""
    tied: bool = False
    experts: Literal["none", "every layer", "some layers"] = "none"
    experts_key: str = "num_experts"
    """The config's key for how many there are."""
    inside: tuple[tuple[str, str], ...] = ()
    """What stands in the names of an expert layer's tensors, ours and theirs, where theirs differ."""

    def check(self, config: ModelConfig) -> None:
        """Refuse a shape that is not of this family: no other engine could read it.

        Raises:
            ConfigError: which field does not fit.
        """
        inputs, output = config.attention_bias, config.output_bias
        biases = {"never": not inputs and not output, "inputs": inputs and not output, "all or none": inputs == output}
        sliding = len(set(config.sliding_layers))
        windows = {"none": sliding == 0, "every layer": sliding in (0, config.num_hidden_layers), "some layers": True}
        for field, fits, wanted in (
            ("qk_norm", config.qk_norm == self.qk_norm, str(self.qk_norm).lower()),
            ("attention_bias", biases[self.attention_bias], f"{self.attention_bias} (attention_bias is of the inputs, output_bias of the output)"),
            ("mlp_bias", self.mlp_bias or not config.mlp_bias, "false"),
            ("sliding_layers", windows[self.windows], self.windows),
            ("num_experts", (self.experts != "none") == bool(config.num_experts), "1 or more" if self.experts != "none" else "0"),
            ("dense_layers", self.experts == "some layers" or not config.dense_layers, "none"),
            ("no_rope_layers", self.no_rope or not config.no_rope_layers, "none"),
        ):
            if not fits:
                raise ConfigError(f"a {config.model_type} with {field} = {str(getattr(config, field)).lower()} does not exist", f"for this family: {wanted}")


FAMILIES: dict[str, Traits] = {
    "qwen3": Traits("Qwen3ForCausalLM", qk_norm=True, attention_bias="all or none", windows="some layers", windows_asked=True, head_dim=128),
    "qwen2": Traits("Qwen2ForCausalLM", attention_bias="inputs", windows="some layers", windows_asked=True),
    "llama": Traits("LlamaForCausalLM", attention_bias="all or none", mlp_bias=True),
    "mistral": Traits("MistralForCausalLM", windows="every layer"),
    "smollm3": Traits(
        "SmolLM3ForCausalLM", attention_bias="all or none", mlp_bias=True, windows="some layers", windows_asked=True, no_rope=True,
        rope_theta=2_000_000.0, tied=True,
    ),
    "qwen3_moe": Traits(
        "Qwen3MoeForCausalLM", qk_norm=True, attention_bias="all or none", windows="every layer", windows_asked=True, experts="some layers",
    ),
    "mixtral": Traits(
        "MixtralForCausalLM", windows="every layer", rope_theta=1_000_000.0, experts="every layer", experts_key="num_local_experts",
        inside=((".mlp.", ".block_sparse_moe."), (".gate_proj.", ".w1."), (".up_proj.", ".w3."), (".down_proj.", ".w2.")),
    ),
}  # fmt: skip
"""`model_type` -> what it has. SmolLM and SmolLM2 are llamas."""

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The projections of every family's layer, by the names that all engines share."""
