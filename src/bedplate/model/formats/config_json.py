"""A Hugging Face `config.json` and back: the same shape in the words of each family. No torch.

Ours has one more key, "bedplate" (senses, flow heads, special tokens), which other engines ignore. Both spellings of rotary scaling are read:
`rope_theta` + `rope_scaling`, and `rope_parameters`; the first is written, since every engine knows it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from bedplate.core.config import from_mapping, to_mapping
from bedplate.core.errors import ConfigError, DataError, IntegrityError, did_you_mean
from bedplate.model.config import ModelConfig, RopeScaling
from bedplate.model.families import FAMILIES, Traits

PLAIN = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Keys that every config must have."""
MOST_LAYERS = 10_000
"""More are not a model but damage, refused before a list of them is made."""
_SLIDING, _FULL = "sliding_attention", "full_attention"
_USED_BY = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"),
}
"""Keys of each kind of scaling."""
OWN = "bedplate"
"""Our way of keeping weights in few bits (model/quantise.py)."""
BLOCK = 64
"""Numbers that share a scale in it."""
_ALSO = ("rope_theta", "rope_type", "type", "partial_rotary_factor", "mscale", "mscale_all_dim", "finetuned")


def to_json(config: ModelConfig, dtype: str = "float32", *, text_only: bool = False) -> dict[str, Any]:
    """The config as the `config.json` of its family.

    Args:
        config: the shape.
        dtype: of the weights beside it.
        text_only: leave out our own key: the weights hold the trunk and nothing else.
    """
    traits, layers = FAMILIES[config.model_type], range(config.num_hidden_layers)
    begin, ends, special = config.begin_token_id, config.end_token_ids, config.special_ids
    written: dict[str, Any] = {
        "architectures": [traits.architecture],
        "model_type": config.model_type,
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
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "use_sliding_window": bool(config.sliding_layers),
        "bos_token_id": begin,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends) or None,
        "pad_token_id": special.get("<|pad|>"),
        "dtype": dtype,
    }
    if traits.mlp_bias:
        written["mlp_bias"] = config.mlp_bias
    if traits.windows == "every layer":
        written["sliding_window"] = config.sliding_window if config.sliding_layers else None
    elif config.sliding_layers:
        written["sliding_window"] = config.sliding_window
        written["max_window_layers"] = config.sliding_layers[0]
        written["layer_types"] = [_SLIDING if number in config.sliding_layers else _FULL for number in layers]
    if config.bits is not None:  # a type that no other engine knows: those of today would leave the codes out and start from random weights
        written |= {"model_type": f"{OWN}_{config.model_type}", "architectures": []}
        written["quantization_config"] = {"quant_method": OWN, "bits": config.bits, "block": BLOCK}
    if config.num_experts:
        written |= {traits.experts_key: config.num_experts, "num_experts_per_tok": config.num_experts_per_tok, "output_router_logits": False}
    if traits.experts == "some layers":
        written |= {"moe_intermediate_size": config.moe_intermediate_size, "norm_topk_prob": config.norm_topk_prob}
        written |= {"mlp_only_layers": list(config.dense_layers), "decoder_sparse_step": 1}
    if traits.no_rope:
        written["no_rope_layers"] = [int(number not in config.no_rope_layers) for number in layers]
    if config.rope_scaling is not None:
        kind = config.rope_scaling.rope_type
        written["rope_scaling"] = {"rope_type": kind} | {key: getattr(config.rope_scaling, key) for key in _USED_BY[kind]}
    if text_only:
        return written
    senses = {name: to_mapping(spec) for name, spec in config.senses.present().items()}
    return written | {"bedplate": {"senses": senses, "flow_blocks": config.flow_blocks, "special_ids": dict(special)}}


def from_json(raw: Mapping[str, Any], special_ids: Mapping[str, int] | None = None) -> ModelConfig:
    """The shape that a `config.json` describes.

    Args:
        raw: the file's content.
        special_ids: name -> id of special tokens, for configs that are not ours.
    Raises:
        DataError: a family, a kind of scaling or a trait that the trunk does not compute.
        IntegrityError: it is damaged.
    """
    family = raw.get("model_type")
    if isinstance(family, str) and isinstance(raw.get("quantization_config"), Mapping):
        family = family.removeprefix(f"{OWN}_")
    if not isinstance(family, str) or family not in FAMILIES:
        raise DataError(f"config.json is of model type {family!r}", did_you_mean(str(family), FAMILIES))
    own = raw.get("bedplate", {})
    try:
        _refuse_what_is_not_computed(raw)
        values = _shape(raw, FAMILIES[family]) | _tokens(raw, own.get("special_ids", special_ids or {}))
        config = from_mapping(ModelConfig, {"model_type": family, **values, **own})
    except (ConfigError, TypeError, AttributeError, KeyError, ValueError, ArithmeticError) as error:
        named = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise IntegrityError(f"config.json is damaged: {named}", "restore the model folder from a copy") from error
    foreign = [name for name, number in config.special_ids.items() if not 0 <= number < config.vocab_size]
    if foreign:
        raise IntegrityError(f"config.json is damaged: {foreign[0]} is outside the vocabulary", "restore the model folder from a copy")
    return dataclasses.replace(config, special_ids=dict(config.special_ids))


def _shape(raw: Mapping[str, Any], traits: Traits) -> dict[str, Any]:
    """Fields of ModelConfig from a family's keys, with the family's own defaults."""

    def said(key: str, default: Any) -> Any:
        return default if raw.get(key) is None else raw[key]

    plain = {key: raw[key] for key in PLAIN}
    heads = plain["num_attention_heads"]
    biased = traits.attention_bias == "inputs" or (traits.attention_bias == "all or none" and said("attention_bias", False))
    rope = _rope(raw, traits)
    window = _window(raw, traits)
    return plain | {
        "num_key_value_heads": said("num_key_value_heads", heads),
        "head_dim": said("head_dim", traits.head_dim or plain["hidden_size"] // heads),
        "rope_theta": rope.theta,
        "rope_scaling": rope.scaling,
        "rms_norm_eps": said("rms_norm_eps", 1e-6),
        "tie_word_embeddings": said("tie_word_embeddings", traits.tied),
        "max_position_embeddings": said("max_position_embeddings", 2048),
        "attention_bias": biased,
        "output_bias": biased and traits.attention_bias == "all or none",
        "mlp_bias": traits.mlp_bias and said("mlp_bias", False),
        "qk_norm": traits.qk_norm,
        "sliding_window": window.positions,
        "sliding_layers": window.layers,
        "no_rope_layers": _unturned(raw) if traits.no_rope else [],
        "bits": _own_bits(raw),
    } | _experts(raw, traits)


def _own_bits(raw: Mapping[str, Any]) -> int | None:
    """In how many bits weights are kept our way; None: they are not."""
    said = raw.get("quantization_config") or {}
    return int(said["bits"]) if said.get("quant_method") == OWN and said.get("block") == BLOCK else None


def _experts(raw: Mapping[str, Any], traits: Traits) -> dict[str, Any]:
    """Fields of layers with experts. Mixtral's are as wide as a dense layer of it would be, and their shares always add up to one."""
    if traits.experts == "none":
        return {}
    counted = next((raw[key] for key in (traits.experts_key, "num_experts", "num_local_experts") if raw.get(key) is not None), None)
    if counted is None:
        raise KeyError(traits.experts_key)
    found = {"num_experts": counted, "num_experts_per_tok": raw["num_experts_per_tok"]}
    if traits.experts == "every layer":
        return found | {"moe_intermediate_size": raw["intermediate_size"]}
    step, dense = raw.get("decoder_sparse_step") or 1, raw.get("mlp_only_layers") or []
    layers = [number for number in range(raw["num_hidden_layers"]) if number in dense or (number + 1) % step]
    return found | {"moe_intermediate_size": raw["moe_intermediate_size"], "norm_topk_prob": bool(raw.get("norm_topk_prob")), "dense_layers": layers}


def _tokens(raw: Mapping[str, Any], special: Mapping[str, int]) -> dict[str, Any]:
    """Begin and end tokens; those that `special_ids` already says are not said twice."""
    ends = raw.get("eos_token_id")
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    usual = special.get("<|endoftext|>")
    begin = raw.get("bos_token_id")
    return {"bos_token_id": None if begin == usual else begin, "eos_token_ids": [] if ends == [usual] else ends, "special_ids": dict(special)}


class _Rope(NamedTuple):
    theta: float
    scaling: dict[str, Any] | None


def _rope(raw: Mapping[str, Any], traits: Traits) -> _Rope:
    said: Mapping[str, Any] = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    theta = said.get("rope_theta", raw.get("rope_theta")) or traits.rope_theta
    kind = said.get("rope_type", said.get("type")) or "default"
    if any(isinstance(value, Mapping) for value in said.values()):
        raise DataError("rotary angles differ between kinds of layers", "only one rope_parameters for every layer is computed")
    if kind != "default" and kind not in _USED_BY:
        raise DataError(f"rotary scaling of type {kind!r} is not computed", did_you_mean(str(kind), ["default", *_USED_BY]))
    if unknown := sorted(set(said) - set(_ALSO) - {key for keys in _USED_BY.values() for key in keys}):
        raise DataError(f"rotary scaling has an unknown key {unknown[0]!r}", f"known for {kind}: {', '.join(_USED_BY.get(kind, ('rope_theta',)))}")
    if said.get("partial_rotary_factor", raw.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise DataError("only a part of each head is turned (partial_rotary_factor)", "heads must be turned whole")
    if kind == "default":
        return _Rope(theta, None)
    longest = raw.get("max_position_embeddings", 2048)
    scaling = {key: said[key] for key in _USED_BY[kind] if said.get(key) is not None}
    if kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = raw.get("original_max_position_embeddings") or said.get("original_max_position_embeddings") or longest
    if kind == "yarn":
        scaling.setdefault("factor", longest / scaling["original_max_position_embeddings"])
        scaling.setdefault("attention_factor", _attention_factor(scaling["factor"], said.get("mscale"), said.get("mscale_all_dim")))
    return _Rope(theta, to_mapping(from_mapping(RopeScaling, {"rope_type": kind, **scaling}, "rope_scaling.")))


def _attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """Source: YaRN, equation 22; the quotient of two such is DeepSeek's."""

    def grown(share: float) -> float:
        return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0

    return grown(mscale) / grown(mscale_all_dim) if mscale and mscale_all_dim else grown(1.0)


def _unturned(raw: Mapping[str, Any]) -> list[int]:
    """Layers without rotation: those whose mask is 0, or every fourth."""
    mask = raw.get("no_rope_layers") or [(number + 1) % raw.get("no_rope_layer_interval", 4) for number in range(raw["num_hidden_layers"])]
    return [number for number, turns in enumerate(mask) if not turns]


class _Window(NamedTuple):
    positions: int | None
    layers: list[int]


def _window(raw: Mapping[str, Any], traits: Traits) -> _Window:
    layers = range(raw["num_hidden_layers"])
    asked = traits.windows != "none" and (not traits.windows_asked or raw.get("use_sliding_window", False))
    positions = raw.get("sliding_window", None if traits.no_rope else 4096)
    if not asked or positions is None:
        return _Window(None, [])
    if traits.windows == "every layer":
        return _Window(positions, list(layers))
    kinds = raw.get("layer_types")
    if kinds is not None:
        if unknown := sorted(set(kinds) - {_SLIDING, _FULL}):
            raise DataError(f"layers of type {unknown[0]!r} are not computed", f"known: {_FULL}, {_SLIDING}")
        return _Window(positions, [number for number, kind in enumerate(kinds) if kind == _SLIDING])
    if traits.no_rope:
        return _Window(positions, _unturned(raw))
    return _Window(positions, [number for number in layers if number >= raw.get("max_window_layers", 28)])


def _refuse_what_is_not_computed(raw: Mapping[str, Any]) -> None:
    if raw["num_hidden_layers"] > MOST_LAYERS:
        raise IntegrityError(f"config.json is damaged: {raw['num_hidden_layers']:,} layers", "restore the model folder from a copy")
    if (act := raw.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise DataError(f"the feed-forward uses {act!r}", "the trunk computes SwiGLU (silu) only")
    if raw.get("quantization_config") and not _own_bits(raw):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise DataError(f"the weights are quantised ({method})", "take the release with bfloat16 or float16 weights, or a GGUF file")
