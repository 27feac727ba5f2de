"""A Hugging Face folder of a model, in and out: config, weights by memory map, tokenizer, chat template.

    config.json, model.safetensors or model.safetensors.index.json + its shards, tokenizer.json, tokenizer_config.json,
    chat_template.jinja, generation_config.json

Knows files and tensors, not the network; FoundationModel.read and .save put the two together. Pickled weights are never opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bedplate.core.errors import DataError, IntegrityError
from bedplate.core.files import publish, read_json, write_bytes, write_json
from bedplate.modality.sequence import SPECIAL_TOKENS
from bedplate.model.config import ModelConfig
from bedplate.model.families import FAMILIES
from bedplate.model.formats.config_json import from_json, to_json

SHARD_BYTES = 5_000_000_000
"""Weights larger than this are cut into several files."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
CODES = {8: torch.int8, 4: torch.uint8}
"""Number type of matrices in few bits."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_RESTORE = "restore the model folder from a copy"


def pickles(folder: Path) -> list[str]:
    """Names of files that may run code when they are read."""
    return [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]


def read_config(folder: Path) -> ModelConfig:
    """The shape, with the special tokens that the tokenizer knows and every token that ends an answer.

    Raises:
        DataError: there is no config, or the trunk does not compute what it asks for.
        IntegrityError: it is damaged.
    """
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} has no config.json", "give the folder of a Hugging Face model" if folder.is_dir() else "there is no such folder")
    raw = _json(folder, "config.json")
    if "bedplate" in raw:
        return from_json(raw)
    usual = _json(folder, "generation_config.json")
    said = {key: usual[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if usual.get(key) is not None}
    return from_json({**raw, **said}, _special_ids(folder, {**raw, **said}))


def read_tensors(folder: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Name -> weight, each a view of the mapped file in the type it is stored in: nothing is read before it is used.

    What every engine makes anew is left out: tables of rotary frequencies, and a tied head that was stored twice.

    Raises:
        DataError: the weights are pickled, quantised or missing.
        IntegrityError: a file is damaged, or the index and the files disagree.
    """
    tensors: dict[str, Tensor] = {}
    for name, expected in _files(folder).items():
        try:
            held = load_file(folder / name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise IntegrityError(f"{folder}: {name} cannot be read: {str(error).splitlines()[0]}", _RESTORE) from error
        if expected is not None and (missing := sorted(expected - set(held))):
            raise IntegrityError(f"{folder}: {name} has no {missing[0]}, which the index promises", _RESTORE)
        tensors |= held
    tensors = {_renamed(name, config, inward=True): tensor for name, tensor in tensors.items()}
    if not any(name.startswith("model.") for name in tensors):  # saved without its head
        tensors = {name if name.startswith("lm_head.") else f"model.{name}": tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    head, table = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if config.tie_word_embeddings and head is not None and table is not None:
        if not torch.equal(head, table):
            raise IntegrityError(f"{folder}: the head is tied to the token table, but they differ", "set tie_word_embeddings to false in config.json")
        del tensors["lm_head.weight"]
    for name, tensor in tensors.items():
        if config.bits is not None and name.endswith(".quantised.codes"):
            if tensor.dtype != CODES[config.bits]:
                raise IntegrityError(f"{folder}: {name} is stored as {_word(tensor.dtype)}, not in {config.bits} bits", _RESTORE)
        elif tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise DataError(f"{folder}: {name} is stored as {_word(tensor.dtype)}", "take the release with bfloat16, float16 or float32 weights")
    return tensors


def write(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    tokenizer: Path | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    text_only: bool = False,
) -> None:
    """Write an ordinary Hugging Face folder of the config's family.

    Args:
        folder: where; made when missing.
        config: the shape.
        tensors: name -> weight, as in a model's state_dict.
        tokenizer: a tokenizer.json, or a folder whose tokenizer files and chat template are copied in.
        dtype: type of the weights; None: as they are.
        shard_bytes: largest file of weights.
        text_only: leave out every other sense.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor for name, tensor in tensors.items() if not (text_only and name.startswith("unit_"))}
    kept = {name: tensor.detach().to("cpu", tensor.dtype if is_code(name) else dtype or tensor.dtype).contiguous() for name, tensor in kept.items()}
    _write_tensors(folder, {_renamed(name, config, inward=False): tensor for name, tensor in kept.items()}, shard_bytes)
    write_json(folder / "config.json", to_json(config, _word(kept["model.embed_tokens.weight"].dtype), text_only=text_only))
    written = to_json(config)
    write_json(folder / "generation_config.json", {"bos_token_id": written["bos_token_id"], "eos_token_id": written["eos_token_id"], "do_sample": True})
    if tokenizer is not None:
        _copy_tokenizer(folder, tokenizer, config)


def is_code(name: str) -> bool:
    """Whether a tensor is part of a matrix in few bits, which has no other number type than its own."""
    return name.endswith((".quantised.codes", ".quantised.scales"))


def _renamed(name: str, config: ModelConfig, *, inward: bool) -> str:
    """A tensor's name in our words (inward), or in its family's."""
    pairs = [pair if inward else pair[::-1] for pair in ((theirs, ours) for ours, theirs in FAMILIES[config.model_type].inside)]
    if not pairs or pairs[0][0] not in name:
        return name
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    """One file, or numbered shards and their index. What an earlier save left behind is taken away last."""
    shards: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.nbytes > shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    names = [WEIGHTS] if len(shards) == 1 else [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards):
        temporary = folder / f".{name}.tmp"
        save_file(shard, temporary, metadata={"format": "pt"})
        publish(temporary, folder / name)
    if len(shards) > 1:
        placed = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": placed})
    else:
        (folder / INDEX).unlink(missing_ok=True)
    for path in folder.glob("model*.safetensors"):
        if path.name not in names:
            path.unlink()


def _copy_tokenizer(folder: Path, source: Path, config: ModelConfig) -> None:
    if source.is_dir():
        for name in TOKENIZER_FILES:
            if (source / name).is_file() and source.resolve() != folder.resolve():
                write_bytes(folder / name, (source / name).read_bytes())
    else:
        write_bytes(folder / "tokenizer.json", source.read_bytes())
    if (folder / "tokenizer_config.json").is_file() or not (folder / "tokenizer.json").is_file():
        return
    # Without this file others guess the tokenizer's class from the model's family, and with it how text is cut.
    names = {number: name for name, number in config.special_ids.items()}
    roles = {"bos_token": config.begin_token_id, "eos_token": next(iter(config.end_token_ids), None), "pad_token": config.special_ids.get("<|pad|>")}
    said = {role: names[number] for role, number in roles.items() if number in names}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **said})


def _files(folder: Path) -> dict[str, set[str] | None]:
    """File of weights -> the tensors it must hold (None: whatever it holds)."""
    if (folder / INDEX).is_file():
        placed = _json(folder, INDEX).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise IntegrityError(f"{folder}: {INDEX} names no tensors", _RESTORE)
        files: dict[str, set[str] | None] = {str(name): {t for t, f in placed.items() if f == name} for name in sorted(set(map(str, placed.values())))}
        for name in files:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise IntegrityError(f"{folder}: {INDEX} leads to {name!r}", "shards are .safetensors files beside the index")
            if not (folder / name).is_file():
                raise IntegrityError(f"{folder}: {name} is missing, one of {len(files)} files of weights", "fetch the rest of the folder")
        return files
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: None}
    if pickled := pickles(folder):
        hint = "take a release with safetensors, or convert it on a machine you can lose"
        raise DataError(f"{folder} holds {pickled[0]} only, which may run code when it is read", hint)
    raise DataError(f"{folder} has no {WEIGHTS}", f"expected it, or {INDEX} with its shards")


def _special_ids(folder: Path, raw: Mapping[str, Any]) -> dict[str, int]:
    """The special tokens of ours that a tokenizer has; end and padding from the config where it has none by that name."""
    size, added = raw.get("vocab_size"), _json(folder, "tokenizer.json").get("added_tokens")

    def fits(number: Any) -> bool:
        return isinstance(number, int) and isinstance(size, int) and 0 <= number < size

    entries = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    named = {entry["content"]: entry["id"] for entry in entries if entry.get("content") in SPECIAL_TOKENS and fits(entry.get("id"))}
    end = raw.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    for name, number in (("<|endoftext|>", end), ("<|pad|>", raw.get("pad_token_id"))):
        if name not in named and fits(number):
            named[name] = number
    if "<|pad|>" not in named and "<|endoftext|>" in named:
        named["<|pad|>"] = named["<|endoftext|>"]
    return named


def _json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder; empty where there is none."""
    try:
        found = read_json(folder / name) if (folder / name).is_file() else {}
    except (ValueError, RecursionError, json.JSONDecodeError) as error:
        raise IntegrityError(f"{folder}: {name} is damaged: {error}", _RESTORE) from error
    if not isinstance(found, dict):
        raise IntegrityError(f"{folder}: {name} is damaged: no JSON object", _RESTORE)
    return found


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
