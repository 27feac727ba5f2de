"""Methods: which weights of the base are trained, and how what was trained lies on disk.

    probe   none of them: the head alone, as a linear map on frozen features
    full    every weight that text and the looking senses run through
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
from bedplate.model.foundation import FoundationModel

WEIGHTS = "weights.safetensors"
"""Base weights that `full` changed."""
HEAD = "head.safetensors"


def prepare(model: FoundationModel, method: MethodSettings) -> dict[str, nn.Parameter]:
    """Freeze what stays, and give the weights that are trained by name."""
    model.requires_grad_(False)
    if method.name == "probe":
        return {}
    trained = {name: p for name, p in model.named_parameters() if not name.startswith("unit_heads")}  # those make pictures and sounds; no task asks them
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def peak_lr(method: MethodSettings, width: int) -> float:
    """A peak learning rate that is safe to start from: narrow networks stand larger steps."""
    return 5e-4 * math.sqrt(128 / width)


def save(model: FoundationModel, head: nn.Module | None, method: MethodSettings, folder: Path) -> None:
    """Write what was trained into an adapter folder."""
    if method.name == "full":
        _write({name: p for name, p in model.named_parameters() if not name.startswith("unit_heads")}, folder / WEIGHTS)
    if head is not None:
        _write(dict(head.named_parameters()), folder / HEAD)


def load(model: FoundationModel, head: nn.Module | None, method: MethodSettings, folder: Path) -> None:
    """Read it back into a base.

    Raises:
        IntegrityError: it does not fit the base or the task.
    """
    if method.name == "full":
        _read(model, folder / WEIGHTS)
    if head is not None:
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
