"""Start from a base instead of from nothing: its shape and weights, with the senses of the corpus that it lacks added.

What is new starts so that the old stays as it was: text alone gives the same states as before, and new tokens start at the mean of the old.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bedplate.core.errors import DataError
from bedplate.core.files import write_bytes
from bedplate.data.corpus import Corpus
from bedplate.model.config import ModelConfig
from bedplate.model.formats.hugging_face import TOKENIZER_FILES, read_config
from bedplate.model.foundation import FoundationModel

TOKENIZER = "tokenizer.json"


def config_from(base: Path, corpus: Corpus) -> ModelConfig:
    """The base's shape, with the corpus's tokens and senses.

    Args:
        base: a model folder.
        corpus: built with the base's tokenizer.
    Raises:
        DataError: the corpus has other tokens, or looks at a sense in another way than the base.
    """
    from tokenizers import Tokenizer

    config = read_config(base)
    if config.num_experts:
        raise DataError(f"{base} is a {config.model_type}: nothing here keeps its experts equally busy", "adapt it with `bedplate adapt --method lora`")
    if config.bits is not None:
        raise DataError(f"{base} is kept in {config.bits} bits, which are not trained further", "give the model that it was made from")
    told = f"build the corpus for it: bedplate data build ... --set tokenizer.path={base}"
    if not (base / TOKENIZER).is_file():
        raise DataError(f"{base} has no {TOKENIZER}", "give a model folder that brings its tokenizer along")
    known = corpus.tokenizer.get_vocab()
    if any(known.get(token) != number for token, number in Tokenizer.from_file(str(base / TOKENIZER)).get_vocab().items()):
        raise DataError(f"the corpus {corpus.folder} has other tokens than {base}", told)
    senses = config.senses.present()
    for name, spec in corpus.specs.present().items():
        if name in senses and senses[name] != spec:
            raise DataError(f"the corpus {corpus.folder} cuts {name} in another way than {base}", f"build it with specs.{name} as {senses[name]}")
    new: dict[str, Any] = {name: spec for name, spec in corpus.specs.present().items() if name not in senses}
    return replace(
        config,
        vocab_size=max(config.vocab_size, corpus.vocabulary),
        senses=replace(config.senses, **new),
        special_ids={**corpus.special_ids, **config.special_ids},
    )


def model_from(base: Path, config: ModelConfig, seed: int) -> FoundationModel:
    """The base's weights in a network of a shape that holds them.

    Args:
        base: a model folder; its digests are checked.
        config: from `config_from`.
        seed: of the weights that are new.
    """
    held = FoundationModel.load(base, dtype=torch.float32)
    model = FoundationModel(config)
    model.initialise(seed)
    fresh = model.state_dict()
    with torch.no_grad():
        for name, tensor in held.state_dict().items():
            fresh[name][: len(tensor)] = tensor
            if len(fresh[name]) > len(tensor):  # a table of tokens
                fresh[name][len(tensor) :] = tensor.mean(0)
    return model


def tokenizer_from(base: Path, corpus: Corpus, folder: Path) -> Path:
    """A folder with the corpus's tokenizer and what the base's folder says beside its own, such as the chat template."""
    for name in TOKENIZER_FILES:
        source = corpus.folder / name if name == TOKENIZER else base / name
        if source.is_file():
            write_bytes(folder / name, source.read_bytes())
    return folder
