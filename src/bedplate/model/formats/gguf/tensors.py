"""Tensors of a GGUF file under the trunk's names, as numbers: names, blocks undone, and the rows of queries and keys put back in order.

llama.cpp turns neighbouring coordinates of a head where everyone else turns halves, so its files of the llama kind hold the rows of q and k
in another order: row 2i is Hugging Face's row i of a head, row 2i + 1 its row i + half.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bedplate.core.errors import DataError, IntegrityError
from bedplate.model.config import ModelConfig
from bedplate.model.formats.gguf.header import Header, Placed

READABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""Types of which the numbers are known exactly."""
TURNED_PAIRWISE = ("llama", "mistral", "smollm3")
"""Families whose q and k llama.cpp stores in its own order."""

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
IGNORED = ("rope_freqs.weight",)
"""What the config already says."""


def our_name(name: str) -> str | None:
    """The trunk's name of a tensor in a GGUF file; None: the trunk has no such thing."""
    if found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        inner = _INNER.get(found[2])
        return inner and f"model.layers.{int(found[1])}.{inner}.{found[3]}"
    stem, _, part = name.rpartition(".")
    return f"{_OUTER[stem]}.{part}" if stem in _OUTER and part == "weight" else None


def their_name(name: str) -> str:
    """llama.cpp's name of a tensor of the trunk."""
    stem, _, part = name.rpartition(".")
    if found := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem):
        return f"blk.{found[1]}.{ {ours: theirs for theirs, ours in _INNER.items()}[found[2]]}.{part}"
    return f"{ {ours: theirs for theirs, ours in _OUTER.items()}[stem]}.{part}"


def block_size(kind: int) -> tuple[int, int]:
    """(numbers, bytes) of a block of a ggml type."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return int(numbers), int(size)


def read_tensors(path: Path, header: Header, config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Name -> weight under the trunk's names.

    Args:
        path: the file that `header` is of.
        header: where the tensors lie.
        config: the shape that they are of.
        dtype: type of the weights.
    Raises:
        DataError: a tensor of a type or a name that is not read.
        IntegrityError: a tensor is not of the shape that the metadata says.
    """
    data = np.memmap(path, np.uint8, mode="r")
    return {each.name: torch.from_numpy(each.values).to(dtype) for each in _numbers(path, data, header, config)}


class _Named(NamedTuple):
    name: str
    values: Any


def _numbers(path: Path, data: Any, header: Header, config: ModelConfig) -> Iterator[_Named]:
    for theirs, placed in header.tensors.items():
        if theirs in IGNORED:
            continue
        name = our_name(theirs)
        if name is None:
            raise DataError(f"{path}: {theirs} has no place in a {config.model_type}", "only plain dense models are read")
        values = dequantised(theirs, data[placed.start : placed.start + placed.size], placed)
        yield _Named(name, in_halves(name, values, config) if config.model_type in TURNED_PAIRWISE else values)


def dequantised(name: str, raw: Any, placed: Placed) -> Any:
    """The numbers in blocks, float32.

    Raises:
        DataError: the type is not read.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(placed.kind)
    if kind.name not in READABLE:
        raise DataError(f"{name} is stored as {kind.name}", f"take a file whose tensors are {', '.join(READABLE)}; Q4_K_M and Q8_0 files are")
    rows = np.array(raw).reshape(*placed.shape[:-1], -1)  # a copy: the result is written to by others, the file never
    with np.errstate(all="ignore"):  # damaged scales may be anything
        return dequantize(rows, kind).reshape(placed.shape).astype(np.float32, copy=False)


def in_halves(name: str, values: Any, config: ModelConfig) -> Any:
    """Rows of q and k as Hugging Face orders them; everything else as it is."""
    return _reordered(name, values, config, (-1, config.head_dim // 2, 2))


def in_pairs(name: str, values: Any, config: ModelConfig) -> Any:
    """Rows of q and k as llama.cpp orders them; everything else as it is."""
    return _reordered(name, values, config, (-1, 2, config.head_dim // 2))


def _reordered(name: str, values: Any, config: ModelConfig, axes: tuple[int, int, int]) -> Any:
    if not re.search(r"self_attn\.[qk]_proj\.", name):
        return values
    if values.shape[0] % config.head_dim:
        raise IntegrityError(f"{name} has {values.shape[0]} rows, heads have {config.head_dim}", "the file's metadata and tensors disagree")
    return np.ascontiguousarray(values.reshape(*axes, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape))
