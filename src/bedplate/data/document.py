"""What a source yields: a document of one or more senses with its origin, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bedplate.modality.specs import Sense

Component = Literal["text", "code", "image", "audio", "video", "series"]
COMPONENTS: tuple[Component, ...] = ("text", "code", "image", "audio", "video", "series")
"""Parts of a corpus that the mixture weighs. A pair (picture + caption) belongs to its continuous sense."""


@dataclass(frozen=True)
class Origin:
    """Where a document came from."""

    source: str
    """The path given, or archive path; never absolute outside what the user typed."""
    member: str = ""
    """Path inside an archive, or row of a table ("row 17")."""
    sha256: str = ""
    """Digest of the raw bytes of the file or member (of the row's canonical JSON for tables)."""
    bytes: int = 0
    licence: str = ""
    """SPDX id where known: a LICENSE file in the same tree or a column."""


@dataclass(frozen=True)
class Segment:
    """One sense's share of a document.

    value: text -> str; image -> uint8 [h w c] already resized to the spec; audio -> float16 log-mel [frames mels];
    video -> uint8 [frames h w c] resized; series -> float32 [points] (one channel, raw units).
    """

    sense: Sense
    value: str | np.ndarray


@dataclass(frozen=True)
class Document:
    """A document in reading order. A caption stands before its picture; the loader may turn a pair around."""

    component: Component
    segments: tuple[Segment, ...]
    origin: Origin
    language: str = ""
    """Programming language of code ("python"), else empty."""
    notes: tuple[str, ...] = field(default=())
    """Repairs that were made on the way ("encoding: cp1252")."""


@dataclass(frozen=True)
class Skipped:
    """An input that gave no document; `reason` is a short stable word that is counted, `detail` is for people."""

    origin: Origin
    reason: str
    detail: str = ""
