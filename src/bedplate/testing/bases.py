"""Tiny bases for tests of adaptation: a model folder with its tokenizer, complete as `bedplate pretrain` leaves one."""

from __future__ import annotations

from pathlib import Path

from bedplate.adapt.base import Base
from bedplate.core.files import write_text
from bedplate.data.chat import ChatTemplate
from bedplate.data.tokenizer import Encoder
from bedplate.modality.chat_template import CHATML
from bedplate.modality.specs import SenseSpecs
from bedplate.model.foundation import FoundationModel
from bedplate.testing.corpora import tiny_tokenizer
from bedplate.testing.models import tiny_model


def base_of(model: FoundationModel) -> Base:
    """A model with a tiny tokenizer, in memory.

    Args:
        model: it must know at least 320 tokens.
    """
    encoder = Encoder(tiny_tokenizer().to_str())
    return Base(model, encoder, ChatTemplate(CHATML, model.config.special_ids), "0" * 64)


def tiny_base(folder: Path, senses: SenseSpecs | None = None, seed: int = 0, model: FoundationModel | None = None) -> Path:
    """Write a tiny random model with its tokenizer; the folder.

    Args:
        folder: where; the model goes to `folder/base`.
        senses: continuous senses; none by default.
        seed: of the weights.
        model: another than the usual one; it must know at least 320 tokens.
    """
    write_text(folder / "tokenizer.json", tiny_tokenizer().to_str())
    (model or tiny_model(senses=senses, seed=seed, random=True)).save(folder / "base", tokenizer=folder / "tokenizer.json")
    return folder / "base"
