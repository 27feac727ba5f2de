"""The shape of a model in GGUF's words, and back by way of Hugging Face's: one reader of configs decides what is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bedplate.core.errors import ConfigError, DataError, IntegrityError, did_you_mean
from bedplate.model.config import ModelConfig, RopeScaling
from bedplate.model.formats.gguf.header import Header
from bedplate.model.rotary import frequencies

ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3")
"""llama.cpp's names of the families; it counts Mistral as a llama."""
SMOLLM3_STEP = 4
"""llama.cpp turns all but every fourth layer of a SmolLM3, whatever the file says."""
LLAMA3 = RopeScaling("llama3", 8.0, 8192, 1.0, 4.0)
"""The only borders that Llama 3.1 and later use; the file keeps what comes out of them."""
NEVER = (
    "expert_count", "expert_used_count", "logit_scale", "residual_scale", "embedding_scale", "final_logit_softcapping", "attn_logit_softcapping",
    "attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias", "use_parallel_residual", "rope.scaling.alpha",
)  # fmt: skip
"""Keys that would change the arithmetic."""
_DAMAGED = "fetch the file again"


def config_json(header: Header) -> dict[str, Any]:
    """The `config.json` of the model in a file, not yet judged.

    Raises:
        DataError: another family, or a trait that the trunk does not compute.
        IntegrityError: something is missing or of another type.
    """
    said, tensors = header.metadata, header.tensors
    family = said.get("general.architecture")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        experts = "experts are read from a Hugging Face folder: take the release with safetensors"
        hint = experts if "moe" in str(family) else did_you_mean(str(family), ARCHITECTURES)
        raise DataError(f"the file holds a model of architecture {family!r}", hint)
    for key in NEVER:
        if np.any(said.get(f"{family}.{key}", 0)):
            raise DataError(f"the file sets {family}.{key} = {said[f'{family}.{key}']}", "only plain dense models are computed")

    def number(key: str, kind: type = int, default: Any = None) -> Any:
        value = said.get(f"{family}.{key}", default)
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():  # one a layer, all the same
            value = value[0].item()
        if not isinstance(value, int | float if kind is float else int) or isinstance(value, bool) or not math.isfinite(value):
            raise IntegrityError(f"the file has no usable {family}.{key}", _DAMAGED)
        return value

    heads, width = number("attention.head_count"), number("embedding_length")
    if heads < 1:
        raise IntegrityError(f"the file says {family}.attention.head_count = {heads}", _DAMAGED)
    head = number("attention.key_length", default=width // heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if number(key, default=head) != head:
            raise DataError(f"the file sets {family}.{key} = {number(key)}, heads have {head}", "heads must be turned whole and be equally wide")
    table = tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise IntegrityError("the file has no token_embd.weight", _DAMAGED)
    raw = {
        "model_type": family,
        "vocab_size": table.shape[0],
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", default=heads),
        "head_dim": head,
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon", float),
        "rope_theta": number("rope.freq_base", float, 10_000.0),
        "max_position_embeddings": number("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "use_sliding_window": False,
    }
    if family == "smollm3":
        raw["no_rope_layer_interval"] = SMOLLM3_STEP
    return raw | {"rope_scaling": _scaling(said, family, number)} | _tokens(said)


def _scaling(said: Mapping[str, Any], family: str, number: Any) -> dict[str, Any] | None:
    kind = said.get(f"{family}.rope.scaling.type", "none")
    if isinstance(kind, str) and kind == "none":
        return None
    if not isinstance(kind, str) or kind not in ("linear", "yarn"):
        raise DataError(f"rotary scaling of type {kind!r} is not computed", "linear and yarn are")
    scaling = {"rope_type": kind, "factor": float(number("rope.scaling.factor", float))}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = number("rope.scaling.original_context_length")
        # A factor of attention beside it is left to the formula, as llama.cpp does for every family here.
    return scaling


def llama3_scaling(factors: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The scaling that gives these divisors of the frequencies [head_dim / 2].

    Raises:
        DataError: none that is known does.
    """
    scaling = {**vars(LLAMA3), "factor": float(np.max(factors))}
    for original in (LLAMA3.original_max_position_embeddings, raw["max_position_embeddings"]):
        guess = RopeScaling(**{**scaling, "original_max_position_embeddings": original})
        if factors.shape == (raw["head_dim"] // 2,) and np.allclose(rope_divisors(guess, raw["head_dim"], raw["rope_theta"]), factors, rtol=1e-3):
            return {key: getattr(guess, key) for key in ("rope_type", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")}
    raise DataError("the file divides rotary frequencies in a way that no known scaling does", "take the release as a Hugging Face folder")


def rope_divisors(scaling: RopeScaling, head_dim: int, theta: float) -> Any:
    """What each frequency is divided by [head_dim / 2], float32."""
    shape = ModelConfig(1, head_dim, 1, 1, 1, 1, head_dim=head_dim, rope_theta=theta, model_type="llama", qk_norm=False)
    plain = frequencies(shape, 1, torch.device("cpu"))
    scaled = frequencies(ModelConfig(**{**vars(shape), "rope_scaling": scaling}), 1, torch.device("cpu"))
    return (plain / scaled).numpy()


def _tokens(said: Mapping[str, Any]) -> dict[str, Any]:
    ends = [said.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return {
        "bos_token_id": said.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)),
        "pad_token_id": said.get("tokenizer.ggml.padding_token_id"),
    }


def metadata(config: ModelConfig) -> dict[str, Any]:
    """The shape as GGUF metadata: key -> whole number, float or text.

    Raises:
        ConfigError: llama.cpp does not compute such a model.
    """
    if config.num_experts:
        raise DataError(f"a {config.model_type} has experts, which are not written to GGUF", "export a folder, and convert that with llama.cpp's own program")
    family = "llama" if config.model_type == "mistral" else config.model_type
    if family == "smollm3" and config.no_rope_layers != tuple(n for n in range(config.num_hidden_layers) if (n + 1) % SMOLLM3_STEP == 0):
        raise ConfigError(f"llama.cpp leaves every fourth layer of a smollm3 unturned, not {list(config.no_rope_layers)}", "such a model cannot leave as GGUF")
    context = config.max_position_embeddings
    if config.sliding_layers and config.sliding_window is not None:
        context = min(context, config.sliding_window)  # llama.cpp computes no windows here; up to the window's length it need not
    said: dict[str, Any] = {
        "general.architecture": family,
        f"{family}.block_count": config.num_hidden_layers,
        f"{family}.context_length": context,
        f"{family}.embedding_length": config.hidden_size,
        f"{family}.feed_forward_length": config.intermediate_size,
        f"{family}.attention.head_count": config.num_attention_heads,
        f"{family}.attention.head_count_kv": config.num_key_value_heads,
        f"{family}.attention.key_length": config.head_dim,
        f"{family}.attention.value_length": config.head_dim,
        f"{family}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{family}.rope.dimension_count": config.head_dim,
        f"{family}.rope.freq_base": float(config.rope_theta),
        f"{family}.vocab_size": config.vocab_size,
    }
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type == "llama3":  # llama3's lies in a tensor
        return said
    if scaling.rope_type == "dynamic" or (scaling.rope_type == "yarn" and (scaling.beta_fast, scaling.beta_slow, scaling.truncate) != (32, 1, True)):
        raise ConfigError(f"llama.cpp does not compute rotary scaling of type {scaling.rope_type} as this model has it", "such a model cannot leave as GGUF")
    said |= {f"{family}.rope.scaling.type": scaling.rope_type, f"{family}.rope.scaling.factor": float(scaling.factor)}
    if scaling.rope_type == "yarn":
        said[f"{family}.rope.scaling.original_context_length"] = scaling.original_max_position_embeddings
    return said
