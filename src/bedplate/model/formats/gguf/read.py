"""A GGUF file becomes a model folder: weights undone to plain numbers, the shape in Hugging Face's words, tokenizer and chat template."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bedplate.core.artifact import Manifest
from bedplate.core.errors import DataError, IntegrityError
from bedplate.core.files import sha256_file
from bedplate.modality.sequence import SPECIAL_TOKENS
from bedplate.model.arithmetic import parameters
from bedplate.model.config import ModelConfig
from bedplate.model.formats.config_json import from_json
from bedplate.model.formats.gguf.header import Header, read_header
from bedplate.model.formats.gguf.shape import config_json, llama3_scaling
from bedplate.model.formats.gguf.tensors import IGNORED, block_size, dequantised, our_name, read_tensors
from bedplate.model.formats.gguf.vocabulary import read_tokenizer
from bedplate.model.foundation import FoundationModel

FULL_WIDTH = 1_000_000_000
"""Models of at most so many parameters are stored as float32, larger ones as bfloat16."""


def read(path: Path, dtype: torch.dtype | None = None) -> FoundationModel:
    """The model in a GGUF file.

    Args:
        path: the file.
        dtype: type of the weights; None: float32 up to FULL_WIDTH parameters, bfloat16 above.
    Raises:
        DataError: it is no GGUF file, or of a kind that is not read.
        IntegrityError: it is damaged.
    """
    return _model(path, _header(path), dtype)


def convert(
    path: Path, folder: Path, *, dtype: torch.dtype | None = None, parents: Mapping[str, str] | None = None, about: Mapping[str, Any] | None = None
) -> Manifest:
    """Write the model in a GGUF file as a model folder with its tokenizer; the manifest names the file's digest as its parent.

    Args:
        path: the file.
        folder: where; made when missing.
        dtype: type of the stored weights, as in `read`.
        parents: more parents, role -> digest.
        about: more facts.
    Raises:
        DataError: it is no GGUF file, or of a kind that is not read.
        IntegrityError: it is damaged.
    """
    header = _header(path)
    files = read_tokenizer(header.metadata)
    model = _model(path, header, dtype)
    facts = {key: str(header.metadata[f"general.{key}"]) for key in ("name", "license") if f"general.{key}" in header.metadata}
    with tempfile.TemporaryDirectory() as beside:
        for name, text in files.items():
            (Path(beside) / name).write_text(text, encoding="utf-8")
        return model.save(folder, tokenizer=Path(beside), parents={"gguf": sha256_file(path), **(parents or {})}, about={**facts, **(about or {})})


def _header(path: Path) -> Header:
    return read_header(path, block_size)


def _model(path: Path, header: Header, dtype: torch.dtype | None) -> FoundationModel:
    config = _config(path, header)
    asked, held = parameters(config).total, sum(math.prod(placed.shape) for name, placed in header.tensors.items() if name not in IGNORED)
    if asked != held:
        raise IntegrityError(f"{path} holds {held:,} numbers, its metadata asks for {asked:,}", "fetch the file again")
    tensors = read_tensors(path, header, config, dtype or (torch.float32 if asked <= FULL_WIDTH else torch.bfloat16))
    with torch.device("meta"):
        model = FoundationModel(config)
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise IntegrityError(f"{path}: the tensors do not fit the metadata: {str(error).splitlines()[-1].strip()}", "fetch the file again") from error
    return model.eval()


def _config(path: Path, header: Header) -> ModelConfig:
    raw = config_json(header)
    biased = {our_name(name) for name in header.tensors if name.endswith(".bias")}
    if raw["attention_bias"] and raw["model_type"] != "qwen2" and "model.layers.0.self_attn.o_proj.bias" not in biased:
        raise DataError(f"{path}: queries have a bias and the output has none", f"a {raw['model_type']} has both or neither")
    if (divisors := header.tensors.get(IGNORED[0])) is not None:
        with path.open("rb") as handle:
            handle.seek(divisors.start)
            raw["rope_scaling"] = llama3_scaling(dequantised(IGNORED[0], np.frombuffer(handle.read(divisors.size), np.uint8), divisors), raw)
    return from_json(raw, _special_ids(header.metadata))


def _special_ids(said: Mapping[str, Any]) -> dict[str, int]:
    """The special tokens of ours that the file's tokenizer has; end and padding as the file names them where it has none of that name."""
    tokens = said.get("tokenizer.ggml.tokens", [])
    named = {token: number for number, token in enumerate(tokens) if token in SPECIAL_TOKENS} if isinstance(tokens, list) else {}
    for name, key in (("<|endoftext|>", "eos"), ("<|pad|>", "padding"), ("<|pad|>", "eos")):
        number = said.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(number, int):
            named.setdefault(name, number)
    return named
