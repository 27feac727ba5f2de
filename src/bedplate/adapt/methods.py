"""Methods: which weights of the base are trained, and how what was trained lies on disk.

    lora    a low-rank change of every layer's matrices, in PEFT's format
    dora    the same with a learned length of each row
    probe   none of them: the head alone, as a linear map on frozen features
    full    every weight that text and the looking senses run through

All but the last can have the base's matrices in few bits.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bedplate.adapt.settings import MethodSettings
from bedplate.core.artifact import verify
from bedplate.core.config import from_mapping
from bedplate.core.errors import ConfigError, DataError, IntegrityError
from bedplate.core.files import publish, read_json
from bedplate.model.adapters import AdapterShape, adaptable, attach, freeze, quantise
from bedplate.model.formats import peft
from bedplate.model.foundation import FoundationModel

WEIGHTS = "weights.safetensors"
"""Base weights that `full` changed."""
HEAD = "head.safetensors"


class Score(nn.Linear):
    """A classifier's matrix over the last token's state, without offsets. PEFT keeps it beside the adapters, and so do we."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__(width, labels, bias=False)


def prepare(model: FoundationModel, method: MethodSettings, seed: int) -> dict[str, nn.Parameter]:
    """Freeze what stays, and give the weights that are trained by name.

    Args:
        model: the base; it is changed in place.
        method: what of it is trained.
        seed: of an adapter's start.
    Raises:
        ConfigError: a base in few bits was to be trained in full.
    """
    if method.base_bits is not None:
        quantise(model, method.base_bits)
    if method.name == "full" and model.bits is not None:
        raise ConfigError(f"the base is kept in {model.bits} bits and cannot be trained in full", 'set method.name to "lora"')
    if method.name in ("lora", "dora"):
        weights = attach(model, shape_of(method), seed)
        if method.start is not None:
            known = dict(adaptable(model))
            for name, adapter in peft.read(method.start, model, scores=True).items():
                mine = known[name].adapter
                assert mine is not None, "as_started gave it the same targets"
                mine.load_state_dict(adapter.state_dict())
        return weights
    if method.name == "probe":
        freeze(model)
        return {}
    model.requires_grad_(False)
    trained = {name: p for name, p in model.named_parameters() if not name.startswith("unit_heads")}  # those make pictures and sounds; no task asks them
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def as_started(method: MethodSettings, base: str) -> MethodSettings:
    """The method with the shape of the adapter that it goes on from.

    Args:
        method: as asked for.
        base: digest of the base.
    Raises:
        DataError: that adapter cannot be gone on from.
    """
    folder = method.start
    if folder is None:
        return method
    if (manifest := verify(folder, "adapter")).parents.get("base") != base:
        raise DataError(f"{folder} was made for another base", f"give the base whose manifest has the digest {str(manifest.parents.get('base'))[:12]}…")
    own = "merge it, and adapt the merged model"
    if not (folder / peft.CONFIG).is_file():
        raise DataError(f"{folder} holds no low-rank change to go on from", own)
    config = peft.read_config(folder, scores=True)
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise DataError(f"{folder} has a rank or an alpha of its own for some projections (rank_pattern, alpha_pattern)", own)
    learned = from_mapping(MethodSettings, read_json(folder / "task.json")["method"])
    return replace(method, name=learned.name, rank=learned.rank, alpha=learned.alpha, rslora=learned.rslora, targets=learned.targets)


def shape_of(method: MethodSettings) -> AdapterShape:
    """What the method's adapters have in common."""
    return AdapterShape(method.rank, method.alpha, method.rslora, method.name == "dora", method.dropout, method.targets)


def peak_lr(method: MethodSettings, width: int) -> float:
    """A peak learning rate that is safe to start from: narrow networks stand larger steps, low-rank changes much larger ones.

    Source of the low-rank one: Schulman et al., LoRA Without Regret (2025), ten times the rate of full training; bases narrower
    than 256 get what 256 gets, as nothing was measured there.
    """
    if method.name in ("lora", "dora"):
        return 5e-4 * math.pow(2000 / max(width, 256), 0.78)
    return 5e-4 * math.sqrt(128 / width)


def save(model: FoundationModel, head: nn.Module | None, method: MethodSettings, folder: Path, base: str) -> None:
    """Write what was trained into an adapter folder; `base` is the name that PEFT is told."""
    if method.name in ("lora", "dora"):
        peft.write(folder, model, shape_of(method), base, head.weight if isinstance(head, Score) else None)
    if method.name == "full":
        _write({name: p for name, p in model.named_parameters() if not name.startswith("unit_heads")}, folder / WEIGHTS)
    if head is not None and not isinstance(head, Score):
        _write(dict(head.named_parameters()), folder / HEAD)


def load(model: FoundationModel, head: nn.Module | None, method: MethodSettings, folder: Path) -> None:
    """Read it back into a base.

    Raises:
        IntegrityError: it does not fit the base or the task.
    """
    if method.base_bits is not None:
        quantise(model, method.base_bits)
    freeze(model)
    if method.name in ("lora", "dora"):
        peft.put_on(model, peft.read(folder, model, scores=isinstance(head, Score)))
    if method.name == "full":
        _read(model, folder / WEIGHTS)
    if head is not None:
        load_head(head, folder)


def load_head(head: nn.Module, folder: Path) -> None:
    """Read a head's weights.

    Raises:
        IntegrityError: they do not fit the task.
    """
    if not isinstance(head, Score):
        _read(head, folder / HEAD)
        return
    matrix = peft.read_score(folder)
    if matrix is None or matrix.shape != head.weight.shape:
        found = "none" if matrix is None else "one of another shape"
        raise IntegrityError(f"{folder} should hold a classifier's matrix, but holds {found}", "restore the adapter folder from a copy")
    with torch.no_grad():
        head.weight.copy_(matrix)


def _write(tensors: dict[str, nn.Parameter], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata={"format": "pt"})
    publish(temporary, path)


def _read(module: nn.Module, path: Path) -> None:
    try:
        tensors = load_file(path)
        known = dict(module.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors.items():
                if known[name].shape != tensor.shape:
                    raise KeyError(name)
                known[name].copy_(tensor)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise IntegrityError(f"{path} does not fit: {error}", "give the base that the adapter was made for") from error
