"""Vectors for files of any sense: read as `data build` reads them, seen by the frozen model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bedplate.adapt.base import Base
from bedplate.adapt.features import features
from bedplate.core.errors import DataError
from bedplate.data.corpus_format import StoredSegment
from bedplate.data.document import Document
from bedplate.data.sources import SourceSettings, read


class Embedded(NamedTuple):
    """Vectors and what they are of."""

    names: list[str]
    """Source and member of each."""
    senses: list[str]
    """Component of each."""
    vectors: Float[np.ndarray, "n d"]
    skipped: list[tuple[str, str]]
    """(name, reason) of what could not be read."""


def embed(base: Base, sources: Sequence[str], layers: int | None = None) -> Embedded:
    """One vector for every document in some files.

    Args:
        base: the model with its tokenizer.
        sources: files, folders, archives or globs.
        layers: how many of the last layers are averaged; None: the upper half.
    Raises:
        DataError: nothing in the sources could be read.
    """
    names: list[str] = []
    senses: list[str] = []
    documents: list[Sequence[StoredSegment]] = []
    skipped: list[tuple[str, str]] = []
    for found in read(sources, SourceSettings(), base.model.config.senses):
        name = " ".join(part for part in (found.origin.source, found.origin.member) if part)
        if isinstance(found, Document):
            names.append(name)
            senses.append(found.component)
            documents.append([_stored(base, segment.sense, segment.value) for segment in found.segments])
        else:
            skipped.append((name, found.reason))
    if not documents:
        reason = f"{skipped[0][0]}: {skipped[0][1]}" if skipped else "the folder is empty"
        raise DataError("there is nothing to embed", reason)
    return Embedded(names, senses, features(base.model, documents, layers), skipped)


def _stored(base: Base, sense: str, value: str | np.ndarray) -> StoredSegment:
    if isinstance(value, str):
        return StoredSegment("text", base.encoder.encode(value))
    return StoredSegment(sense, value)  # type: ignore[arg-type]
