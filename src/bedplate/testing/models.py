"""Tiny models for tests: every sense, a few thousand parameters."""

from __future__ import annotations

from bedplate.modality.sequence import SPECIAL_TOKENS
from bedplate.modality.specs import SenseSpecs
from bedplate.model.config import ModelConfig
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
