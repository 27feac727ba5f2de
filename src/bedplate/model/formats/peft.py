"""Adapters in PEFT's format, out and in: adapter_config.json and adapter_model.safetensors.

`peft` loads what is written here onto the `transformers` model of the same base, and what it wrote is read here; the logits are the same. A classifier's
matrix goes along where PEFT keeps one too: `modules_to_save: ["score"]` of a sequence classification model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bedplate.core.errors import DataError, IntegrityError
from bedplate.core.files import publish, read_json, write_json
from bedplate.model.adapters import AdapterShape, adaptable
from bedplate.model.families import TARGETS
from bedplate.model.projection import Adapter, Projection

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
PARTS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
"""Our name of an adapter's part -> PEFT's."""
SCORE = f"{PREFIX}score.weight"
"""The matrix of a classifier over the last token's state; `transformers` calls it so in every dense family."""
FOREIGN = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "monteclora_config", "target_parameters",
    "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
"""Keys of PEFT's config that change what is computed, and that are not computed here."""
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts that change the base's weights as well: such an adapter fits another base than the one it names."""


def write(folder: Path, model: nn.Module, shape: AdapterShape, base: str, score: Float[Tensor, "c d"] | None = None) -> None:
    """Write the adapters that are on a model.

    Args:
        folder: an existing folder.
        model: a FoundationModel.
        shape: what the adapters were made with.
        base: name of the base, for people and for PEFT.
        score: the matrix of a classifier over the last token's state.
    """
    held = {name.rpartition(".")[2] for name, projection in adaptable(model) if projection.adapter is not None}
    tensors: dict[str, Tensor] = {} if score is None else {SCORE: score.detach().cpu().contiguous()}
    for name, projection in adaptable(model):
        if projection.adapter is not None:
            tensors |= {f"{PREFIX}{name}.{PARTS[part]}": p.detach().cpu().contiguous() for part, p in projection.adapter.named_parameters()}
    temporary = folder / f".{WEIGHTS}.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
    publish(temporary, folder / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if score is None else "SEQ_CLS",
        "base_model_name_or_path": base,
        "r": shape.rank,
        "lora_alpha": int(shape.alpha) if shape.alpha.is_integer() else shape.alpha,
        "lora_dropout": shape.dropout,
        "target_modules": [name for name in shape.targets if name in held],
        "use_rslora": shape.rslora,
        "use_dora": shape.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None if score is None else ["score"],
    }
    write_json(folder / CONFIG, config)


def read(folder: Path, model: nn.Module, *, scores: bool = False) -> dict[str, Adapter]:
    """Adapters of a folder, made for the projections of a model; none of them is put on it.

    Args:
        folder: written here or by PEFT.
        model: a FoundationModel of the base's shape.
        scores: whether it may hold a classifier's matrix, which `read_score` gives.
    Returns:
        Name of the projection -> adapter.
    Raises:
        DataError: it holds something that is not computed here.
        IntegrityError: it is damaged, or does not fit the model.
    """
    config = read_config(folder, scores=scores)
    known = dict(adaptable(model))
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _tensors(folder).items():
        name, part = _split(key)
        if part is not None and name in known:
            found.setdefault(name, {})[part] = tensor
        elif not (scores and key == SCORE):
            hint = f"{', '.join(TARGETS)} of the base's layers can be adapted; merge it with peft first"
            raise DataError(f"{folder} changes {name.removeprefix(PREFIX)}, which is no projection of this base", hint)
    if not found:
        raise DataError(f"{folder} holds no adapter", "it was saved before anything was learned")
    return {name: _adapter(folder, name, known[name], parts, config) for name, parts in found.items()}


def read_score(folder: Path) -> Float[Tensor, "c d"] | None:
    """The matrix of a classifier over the last token's state; None: there is none.

    Raises:
        IntegrityError: it is damaged.
    """
    found = _tensors(folder).get(SCORE)
    if found is not None and found.ndim != 2:
        raise IntegrityError(f"{folder}: {SCORE} is no matrix", "restore the adapter folder from a copy")
    return None if found is None else found.float()


def _tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        raise DataError(f"{folder} holds {PICKLE} only, which may run code when it is read", "save it with safe_serialization=True")
    try:
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(f"{folder}: {WEIGHTS} cannot be read: {str(error).splitlines()[0]}", "restore the adapter folder from a copy") from error
    return tensors


def read_config(folder: Path, *, scores: bool = False) -> dict[str, Any]:
    """PEFT's config, refused where it asks for what is not computed here.

    Args:
        folder: written here or by PEFT.
        scores: whether it may replace a classifier's matrix.
    Raises:
        DataError: it asks for that, or there is none.
        IntegrityError: it is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise DataError(f"{folder} has no {CONFIG}", "give the folder of an adapter" if folder.is_dir() else "there is no such folder")
    try:
        config = read_json(path)
        kind, asked = config["peft_type"], [key for key in FOREIGN if config.get(key)]
        start = str(config.get("init_lora_weights")).lower()
        float(config["lora_alpha"]), int(config["r"]), dict(config.get("rank_pattern") or {}), dict(config.get("alpha_pattern") or {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", "restore the adapter folder from a copy") from error
    if kind != "LORA":
        raise DataError(f"{folder} is a {kind} adapter", "LORA, with or without use_dora, is what can be read")
    if asked:
        raise DataError(f"{folder} uses {asked[0]}", "plain LoRA, rsLoRA and DoRA can be read; merge it with peft first")
    if (config.get("bias") or "none") != "none":
        raise DataError(f"{folder} trained biases (bias = {config['bias']!r})", 'adapters with bias = "none" can be read; merge it with peft first')
    replaced = config.get("modules_to_save") or []
    if not isinstance(replaced, list):
        raise IntegrityError(f"{path} is damaged: modules_to_save is no list", "restore the adapter folder from a copy")
    if whole := [str(name) for name in replaced if not (scores and name in ("score", "classifier"))]:  # PEFT names both and keeps the one there is
        score = "score" in whole and not scores
        hint = "bring it in: bedplate get FOLDER --base MODEL" if score else "adapters of the layers' projections can be read; merge it with peft first"
        raise DataError(f"{folder} replaces whole modules ({', '.join(whole)})", hint)
    if any(start.startswith(word) for word in CHANGED_BASE):
        hint = "save it with path_initial_model_for_weight_conversion, which makes it an ordinary one"
        raise DataError(f"{folder} starts from {start}, which changed the base's weights too", hint)
    found: dict[str, Any] = config
    return found


def _split(key: str) -> tuple[str, str | None]:
    """(projection, part) of a tensor's name."""
    for part, theirs in PARTS.items():
        if key.startswith(PREFIX) and key.endswith(f".{theirs}"):
            return key.removeprefix(PREFIX).removesuffix(f".{theirs}"), part
    return key, None


def _adapter(folder: Path, name: str, projection: Projection, parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> Adapter:
    try:
        rank = int(_of_pattern(config.get("rank_pattern"), name, config["r"]))
        alpha = float(_of_pattern(config.get("alpha_pattern"), name, config["lora_alpha"]))
        dropout = float(config.get("lora_dropout") or 0.0)
    except (ValueError, TypeError, OverflowError, AttributeError, re.error) as error:
        raise IntegrityError(f"{folder / CONFIG} is damaged: {error}", "restore the adapter folder from a copy") from error
    if "A" not in parts or rank < 1 or rank != len(parts["A"]) or not 0 <= dropout < 1:  # before anything of that rank is made
        said = f"the adapter of {name} is not of rank {rank}, or its dropout {dropout} is no share below 1"
        raise IntegrityError(f"{folder}: {said}", "restore the adapter folder from a copy")
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    adapter = Adapter(projection.matrix(), rank, scale, dora=bool(config.get("use_dora")), dropout=dropout)
    try:
        adapter.load_state_dict({part: tensor.flatten() if part == "magnitude" else tensor for part, tensor in parts.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise IntegrityError(f"{folder}: the adapter of {name} does not fit: {reason}", "give the base that it was made for") from error
    return adapter.requires_grad_(False)


def _of_pattern(pattern: Mapping[str, Any] | None, name: str, usual: Any) -> Any:
    """PEFT's choice by module: the first pattern that matches the end of the name."""
    for key, value in (pattern or {}).items():
        if set(key) & set("*+{?"):  # a foreign file may hold a pattern that never ends
            raise DataError(f"the pattern {key!r} repeats something", "patterns that name modules can be read; merge it with peft first")
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return usual


def put_on(model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    """Put adapters on the projections that they were made for."""
    known = dict(adaptable(model))
    for name, adapter in adapters.items():
        known[name].adapter = adapter.eval()
