"""Methods: which weights of the base are trained, and how what was trained lies on disk.

    lora    a low-rank change of every layer's matrices, in PEFT's format
    dora    the same with a learned length of each row
    probe   none of them: the head alone, as a linear map on frozen features
    full    every weight that text and the looking senses run through

All but the last can have the base's matrices in few bits.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bedplate.adapt.settings import MethodSettings
from bedplate.core.errors import IntegrityError
from bedplate.core.files import publish
from bedplate.model.adapters import AdapterShape, attach, freeze, quantise
from bedplate.model.formats import peft
from bedplate.model.foundation import FoundationModel

WEIGHTS = "weights.safetensors"
"""Base weights that `full` changed."""
HEAD = "head.safetensors"


def prepare(model: FoundationModel, method: MethodSettings, seed: int) -> dict[str, nn.Parameter]:
    """Freeze what stays, and give the weights that are trained by name.

    Args:
        model: the base; it is changed in place.
        method: what of it is trained.
        seed: of an adapter's start.
    """
    if method.base_bits is not None:
        quantise(model, method.base_bits)
    if method.name in ("lora", "dora"):
        return attach(model, shape_of(method), seed)
    if method.name == "probe":
        freeze(model)
        return {}
    model.requires_grad_(False)
    trained = {name: p for name, p in model.named_parameters() if not name.startswith("unit_heads")}  # those make pictures and sounds; no task asks them
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


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
        peft.write(folder, model, shape_of(method), base)
    if method.name == "full":
        _write({name: p for name, p in model.named_parameters() if not name.startswith("unit_heads")}, folder / WEIGHTS)
    if head is not None:
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
        peft.put_on(model, peft.read(folder, model))
    if method.name == "full":
        _read(model, folder / WEIGHTS)
    if head is not None:
        load_head(head, folder)


def load_head(head: nn.Module, folder: Path) -> None:
    """Read a head's weights.

    Raises:
        IntegrityError: they do not fit the task.
    """
    _read(head, folder / HEAD)


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
