"""What the tables of a corpus look like, and how many positions a document takes. docs/formats/corpus.md says it in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from bedplate.core.errors import DataError
from bedplate.modality.senses import unit_count
from bedplate.modality.specs import Sense, SenseSpecs

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

SEGMENTS = pa.schema(
    [("document", pa.int64()), ("sense", pa.int8()), ("shape", pa.list_(pa.int32())), ("data", pa.large_binary())],
)
"""One row a segment, in shards/<component>-<number>.arrow."""

DOCUMENTS = pa.schema(
    [
        ("document", pa.int64()),
        ("component", pa.string()),
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("first_row", pa.int64()),
        ("segments", pa.int32()),
        ("positions", pa.int32()),
        ("bytes", pa.int64()),
        ("source", pa.string()),
        ("member", pa.string()),
        ("sha256", pa.string()),
        ("raw_bytes", pa.int64()),
        ("licence", pa.string()),
        ("language", pa.string()),
        ("notes", pa.list_(pa.string())),
    ]
)
"""One row a document, in documents.arrow; a document's number is its row."""

DROPPED = pa.schema([("source", pa.string()), ("member", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
"""One row for each input or document that was not taken, in dropped.arrow."""

VALUE_TYPES: dict[Sense, np.dtype[Any]] = {
    "image": np.dtype("u1"),
    "video": np.dtype("u1"),
    "audio": np.dtype("<f2"),
    "series": np.dtype("<f4"),
}
"""How values are stored; text is token ids of `token_type`."""


@dataclass(frozen=True)
class StoredSegment:
    """One sense's share of a stored document. A text's value is its token ids; other values are as in `Segment`."""

    sense: Sense
    value: np.ndarray


def token_type(vocabulary: int) -> np.dtype[Any]:
    """The smallest type that holds every token id: uint16 up to 65,536 tokens, else uint32."""
    return np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")


def units_of(sense: Sense, shape: Sequence[int], specs: SenseSpecs) -> int:
    """How many units (text: tokens) a segment of this shape is cut into.

    Args:
        sense: which sense.
        shape: text [t]; image [h w c]; audio [frames mels]; video [frames h w c]; series [points].
        specs: what one unit is.
    Raises:
        DataError: the specs do not know this sense.
    """
    if sense == "text":
        return shape[0]
    spec = getattr(specs, sense)
    if spec is None:
        raise DataError(f"there is no spec for {sense}", f"give a SenseSpecs with {sense}=...")
    return unit_count(sense, tuple(shape), spec)


def positions_of(segments: Sequence[StoredSegment], specs: SenseSpecs) -> int:
    """Positions of a whole document: tokens, units, two marks around each continuous segment, and `<|endoftext|>` at both ends."""
    return 2 + sum(units_of(s.sense, s.value.shape, specs) + (0 if s.sense == "text" else 2) for s in segments)
