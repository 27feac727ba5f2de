"""What a model costs, from its config alone: parameters, FLOPs, bytes. No torch; the tests compare with the real modules."""

from __future__ import annotations

from dataclasses import dataclass

from bedplate.modality.specs import ContinuousSense
from bedplate.model.config import ModelConfig


@dataclass(frozen=True)
class Parameters:
    """Numbers in each part."""

    embedding: int
    """The token table (a tied head is the same one)."""
    layers: int
    """Attention, feed-forward and norms, the last norm included."""
    head: int
    """0 when tied."""
    senses: dict[ContinuousSense, int]
    """Embedder and heads of each continuous sense."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.layers + self.head + sum(self.senses.values())


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes."""

    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimiser + self.activations


def layers_matrices(config: ModelConfig, *, used: bool = False) -> int:
    """Parameters of the matrices of all layers.

    Args:
        config: the shape.
        used: only those that one position is multiplied with; of experts, those that are chosen.
    """
    d, e = config.hidden_size, config.head_dim
    attention = d * e * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    with_experts = len(config.expert_layers)
    experts = config.num_experts_per_tok if used else config.num_experts
    dense = (config.num_hidden_layers - with_experts) * 3 * d * config.intermediate_size
    return config.num_hidden_layers * attention + dense + with_experts * (d * config.num_experts + experts * 3 * d * config.moe_intermediate_size)


def sense_parameters(config: ModelConfig, sense: ContinuousSense) -> int:
    """Parameters of a sense's embedder and heads."""
    d, w = config.hidden_size, config.flow_width
    p = config.senses.present()[sense].unit_width
    embedder = p * d + d + d
    return embedder + flow_parameters(p, d, w, config.flow_blocks) + (d * p + p) + (d + 1)


def flow_parameters(p: int, d: int, w: int, blocks: int) -> int:
    """Parameters of a flow head for units of p values: entry, condition, place, time, blocks, exit."""
    block = (w * 3 * w + 3 * w) + (w * 2 * w + 2 * w) + (2 * w * w + w)
    return (p * w + w) + (d * w + w) + d * w + (64 * w + w + w * w + w) + blocks * block + (w * 2 * w + 2 * w) + (w * p + p)


def parameters(config: ModelConfig) -> Parameters:
    """Exact numbers of parameters by part."""
    d = config.hidden_size
    table = config.vocab_size * d
    biases = config.attention_bias * config.head_dim * (config.num_attention_heads + 2 * config.num_key_value_heads)
    biases += config.output_bias * d + config.mlp_bias * (2 * config.intermediate_size + d)
    vectors = 2 * d + config.qk_norm * 2 * config.head_dim + biases
    return Parameters(
        embedding=table,
        layers=layers_matrices(config) + config.num_hidden_layers * vectors + d,
        head=0 if config.tie_word_embeddings else table,
        senses={sense: sense_parameters(config, sense) for sense in config.senses.present()},
    )


def flops_per_token(config: ModelConfig, context: int) -> float:
    """Forward and backward FLOPs of a token: 6 for each parameter it is multiplied with, 12 heads x width x effective context a layer for attention.

    The head counts, the table's look-up does not; causal attention sees half of the context on average.
    """
    matrices = layers_matrices(config, used=True) + config.vocab_size * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * context / 2
    return 6.0 * matrices + attention


def flops_per_unit(config: ModelConfig, sense: ContinuousSense, context: int, draws: int = 2) -> float:
    """The same for a unit: it runs through its sense's heads instead of the token head, the flow head once a noise draw."""
    d, w = config.hidden_size, config.flow_width
    p = config.senses.present()[sense].unit_width
    trunk = 6.0 * layers_matrices(config, used=True) + 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * context / 2
    return trunk + 6.0 * (2 * d * p + draws * flow_parameters(p, d, w, config.flow_blocks))


def memory(config: ModelConfig, rows: int, context: int, *, bytes_per_value: int = 4, unit_share: float = 0.0) -> Memory:
    """Bytes of a training step.

    Weights and their gradients are float32; Muon keeps one number a matrix entry, AdamW two for everything else. Activations: what the backward
    pass needs of every layer, and one chunk of logits with its gradient.

    Args:
        config: the shape.
        rows: rows in memory at once.
        context: positions in a row.
        bytes_per_value: 4 for float32 products, 2 for bfloat16.
        unit_share: share of positions that are units.
    """
    count = parameters(config)
    muon = layers_matrices(config)
    d, inner = config.hidden_size, max(config.intermediate_size, config.num_experts_per_tok * config.moe_intermediate_size)
    heads = config.head_dim * (config.num_attention_heads + 2 * config.num_key_value_heads)
    # Of each position and layer: two norms' inputs and outputs, q k v before and after norm and rotation, attention's result, gate and up before
    # and after SiLU, and their product.
    per_layer = 4 * d + 3 * heads + 2 * config.num_attention_heads * config.head_dim + 4 * inner
    kept_scores = config.num_attention_heads * context // 2 if context <= 1024 else 0
    positions = rows * context
    layers = positions * config.num_hidden_layers * (per_layer + kept_scores) * bytes_per_value
    flow = 0
    for spec in config.senses.present().values():
        units = positions * unit_share / len(config.senses.present())
        # Of each unit and noise draw: 12 widths a block, 9 for entry, condition, time and exit; the noise, what it made noisy, and the errors.
        flow += int(units * 2 * ((12 * config.flow_blocks + 9) * config.flow_width + 5 * spec.unit_width) * 4)
    logits = 2 * 512 * config.vocab_size * 4
    return Memory(
        weights=4 * count.total,
        gradients=4 * count.total,
        optimiser=4 * muon + 8 * (count.total - muon),
        activations=layers + flow + logits + positions * 6 * d * 4,
    )


def largest_rows(config: ModelConfig, context: int, free_bytes: int, *, bytes_per_value: int = 4, unit_share: float = 0.0) -> int:
    """Most rows whose step fits `free_bytes`; 0 when not even one does."""
    one = memory(config, 1, context, bytes_per_value=bytes_per_value, unit_share=unit_share)
    two = memory(config, 2, context, bytes_per_value=bytes_per_value, unit_share=unit_share)
    per_row = two.total - one.total
    return max(0, int((free_bytes - (one.total - per_row)) // per_row))
