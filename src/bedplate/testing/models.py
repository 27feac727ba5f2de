"""Tiny models for tests: every sense, a few thousand parameters."""

from __future__ import annotations

from dataclasses import replace

from bedplate.modality.sequence import SPECIAL_TOKENS
from bedplate.modality.specs import SenseSpecs
from bedplate.model.config import ModelConfig, RopeScaling
from bedplate.model.foundation import FoundationModel


def tiny_config(vocab_size: int = 320, senses: SenseSpecs | None = None) -> ModelConfig:
    """Two layers of width 32."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        senses=senses or SenseSpecs(),
        flow_blocks=1,
        special_ids={name: number for number, name in enumerate(SPECIAL_TOKENS)},
    )


FAMILIES: dict[str, ModelConfig] = {
    "qwen3": ModelConfig(320, 32, 64, 2, 4, 2, 8),
    "qwen3-biases": ModelConfig(333, 72, 100, 2, 3, 1, 80, tie_word_embeddings=False, attention_bias=True, output_bias=True),
    "qwen2-window": ModelConfig(
        350, 40, 52, 3, 3, 3, 8, model_type="qwen2", qk_norm=False, attention_bias=True, sliding_window=5, sliding_layers=(1,), tie_word_embeddings=False
    ),
    "llama-wide-group": ModelConfig(
        321, 136, 68, 2, 8, 1, 16, model_type="llama", qk_norm=False, attention_bias=True, output_bias=True, mlp_bias=True, rope_theta=500.0
    ),
    "llama-odd": ModelConfig(337, 30, 50, 2, 6, 2, 10, model_type="llama", qk_norm=False),
    "mistral-yarn": ModelConfig(
        336, 64, 96, 2, 5, 1, 20, model_type="mistral", qk_norm=False, sliding_window=21, sliding_layers=(0, 1),
        rope_scaling=RopeScaling("yarn", 4.0, 64, attention_factor=1.1),
    ),
    "smollm3": ModelConfig(325, 48, 80, 4, 2, 2, 128, model_type="smollm3", qk_norm=False, sliding_window=7, sliding_layers=(2, 3), no_rope_layers=(1, 3)),
}  # fmt: skip
"""Shapes of every dense family: biases, windows, layers that turn nothing, heads of 8 to 128, groups of 1 to 8, widths of no round number."""

EXPERTS: dict[str, ModelConfig] = {
    "qwen3-moe": ModelConfig(
        320, 32, 48, 3, 4, 2, 8, model_type="qwen3_moe", tie_word_embeddings=False, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20,
        norm_topk_prob=False, dense_layers=(1,),
    ),
    "mixtral": ModelConfig(
        330, 32, 48, 2, 4, 2, 8, model_type="mixtral", qk_norm=False, tie_word_embeddings=False, num_experts=3, num_experts_per_tok=2,
        moe_intermediate_size=48,
    ),
}  # fmt: skip
"""Shapes of the families with experts."""


def family_model(name: str, seed: int = 0) -> FoundationModel:
    """A random model of one of FAMILIES or EXPERTS, its biases and norms random too.

    Args:
        name: of the family.
        seed: of the weights.
    """
    import torch

    model = FoundationModel(replace((FAMILIES | EXPERTS)[name], special_ids={name: number for number, name in enumerate(SPECIAL_TOKENS)}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + (1.0 if parameter.ndim == 1 else 0.0))
    return model.eval()


def tiny_model(vocab_size: int = 320, senses: SenseSpecs | None = None, seed: int = 0, random: bool = False) -> FoundationModel:
    """A model with fresh weights.

    Args:
        vocab_size: token ids.
        senses: continuous senses; none by default.
        seed: of the weights.
        random: give the zero-initialised matrices values too, so that every part matters.
    """
    import torch

    model = FoundationModel(tiny_config(vocab_size, senses))
    model.initialise(seed)
    if random:
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
