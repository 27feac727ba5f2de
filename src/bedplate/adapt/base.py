"""The base that workers are made from: a model folder with its tokenizer and chat template, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bedplate.adapt.encode import Tokens, compose, said
from bedplate.core.artifact import read_manifest
from bedplate.core.errors import DataError
from bedplate.data.chat import ChatTemplate
from bedplate.data.document import Segment
from bedplate.data.tokenizer import Encoder
from bedplate.modality.sequence import Sequence as Positions
from bedplate.model.foundation import FoundationModel


@dataclass
class Base:
    """Everything of a base that tasks and workers need."""

    model: FoundationModel
    encoder: Encoder
    template: ChatTemplate
    digest: str
    """Of the model's manifest: adapters name it as their parent."""

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Base:
        """From a model folder.

        Raises:
            DataError: it is no model, or has no tokenizer that fits.
            IntegrityError: a digest does not hold.
        """
        model = FoundationModel.load(folder, dtype=torch.float32).to(device)
        template = ChatTemplate.of(folder)
        encoder = Encoder((folder / "tokenizer.json").read_text(encoding="utf-8"))
        if encoder.size > model.config.vocab_size:
            raise DataError(f"the tokenizer has {encoder.size} tokens, the model {model.config.vocab_size}", "take the one that the model came with")
        return cls(model, encoder, template, read_manifest(folder, "model").digest)

    @property
    def ends(self) -> Tokens:
        """What starts and ends every document, without loss."""
        return said([self.model.config.special_ids["<|endoftext|>"]], False)

    @property
    def pad_id(self) -> int:
        """The token that fills rows up."""
        special = self.model.config.special_ids
        return special.get("<|pad|>", special.get("<|endoftext|>", 0))

    def words(self, text: str, loss: bool = False) -> Tokens:
        """Text as tokens."""
        return said(self.encoder.encode(text), loss)

    def look(self, segments: Sequence[Segment]) -> Positions:
        """A document to be looked at: nothing is a target."""
        parts = [self.words(s.value) if isinstance(s.value, str) else s for s in segments]
        return compose([self.ends, *parts, self.ends], self.model.config)

    def decode(self, ids: np.ndarray) -> str:
        """The text of tokens."""
        return self.encoder.decode(ids)
