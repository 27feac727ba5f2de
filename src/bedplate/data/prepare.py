"""The work on one input: read, mend, judge, mask, tokenise, fingerprint. A pure function of the input, run by worker processes.

What needs to know other documents (duplicates, numbering, writing) is not done here but by `build`, in order.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from bedplate.data import privacy
from bedplate.data.build_settings import BuildSettings
from bedplate.data.clean import Look, refuse, repair
from bedplate.data.corpus_format import StoredSegment
from bedplate.data.decontaminate import Evaluations
from bedplate.data.dedupe import Miniature, Signature, miniature, signature, text_digest
from bedplate.data.document import Document, Origin, Segment, Skipped
from bedplate.data.inputs import Input
from bedplate.data.sources import read_bytes
from bedplate.data.tokenizer import Encoder
from bedplate.modality.specs import SenseSpecs


@dataclass(frozen=True)
class Prepared:
    """A document ready to be stored, if it is no duplicate."""

    document: Document
    """Without its values."""
    segments: tuple[StoredSegment, ...]
    text_bytes: int
    content: bytes
    """Digest of the normalised content."""
    near: Signature | Miniature | None
    """What near-duplicates are found by."""
    notes: tuple[str, ...]


@dataclass
class Outcome:
    """What came of a chunk of inputs, in order."""

    results: list[Prepared | Skipped] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Table ("repaired", "personal data") -> what -> how often."""
    raw_bytes: int = 0

    def count(self, table: str, what: str, times: int = 1) -> None:
        """Add to a count."""
        self.counts.setdefault(table, Counter())[what] += times


class Preparation:
    """Everything the work needs, set up once a process.

    Args:
        settings: of the build.
        specs: what one unit of each sense is.
        tokenizer_json: the tokenizer.
        evaluations: texts that must not be learned from.
    """

    def __init__(self, settings: BuildSettings, specs: SenseSpecs, tokenizer_json: str, evaluations: Evaluations) -> None:
        self._settings, self._specs, self._evaluations = settings, specs, evaluations
        self._encoder = Encoder(tokenizer_json)
        self._licences = {licence.lower() for licence in settings.licences}

    def chunk(self, inputs: list[Input | Skipped]) -> Outcome:
        """All documents of some inputs."""
        outcome = Outcome()
        for item in inputs:
            if isinstance(item, Skipped):
                outcome.results.append(item)
                continue
            outcome.raw_bytes += item.size
            for document in read_bytes(item, self._settings.sources, self._specs):
                outcome.results.append(document if isinstance(document, Skipped) else self._document(document, outcome))
        return outcome

    def _document(self, document: Document, outcome: Outcome) -> Prepared | Skipped:
        """A document as it would be stored, or the reason why it is not."""
        settings, component = self._settings, document.component
        if self._licences and document.origin.licence.lower() not in self._licences:
            return Skipped(document.origin, "licence", document.origin.licence or "unknown")
        paired = component not in ("text", "code")
        notes = list(document.notes)
        mended: list[Segment] = []
        digest = hashlib.sha256()
        near: Signature | Miniature | None = None
        for segment in document.segments:
            if not isinstance(segment.value, str):
                digest.update(_value_digest(segment.value))
                if segment.sense == "image" and near is None:
                    near = miniature(segment.value)
                mended.append(segment)
                continue
            text, repairs = repair(segment.value, component, settings.clean)
            for name in repairs:
                outcome.count("repaired", name)
                notes.append(f"repaired: {name}")
            look = Look(text)
            if not paired:
                if not text.strip():
                    return Skipped(document.origin, "empty", "nothing left after repairs")
                if refusal := refuse(look, component, settings.clean):
                    return Skipped(document.origin, refusal.rule, refusal.detail)
                near = signature(look.words.hashes)
            if self._evaluations.hashes and (owner := self._evaluations.match(look.words.hashes)):
                return Skipped(document.origin, "contaminated", f"shares a passage with {owner}")
            digest.update(text_digest(text))
            if settings.privacy.mode != "off" and (found := privacy.find(text, settings.privacy.without)):
                for finding in found:
                    outcome.count("personal data", finding.kind)
                if settings.privacy.mode == "mask":
                    text = privacy.mask(text, found)
                    notes.append(f"masked: {len(found)}")
            mended.append(Segment("text", text))
        stored = [
            StoredSegment("text", self._encoder.encode(s.value)) if isinstance(s.value, str) else StoredSegment(s.sense, s.value) for s in mended
        ]
        text_bytes = sum(len(s.value.encode()) for s in mended if isinstance(s.value, str))
        return Prepared(replace(document, segments=()), tuple(stored), text_bytes, digest.digest(), near, tuple(notes))


def _value_digest(value: np.ndarray) -> bytes:
    return hashlib.sha256(str(value.shape).encode() + np.ascontiguousarray(value).tobytes()).digest()


_PREPARATION: list[Preparation] = []
"""One, in a worker process."""


def start_worker(settings: BuildSettings, specs: SenseSpecs, tokenizer_json: str, evaluations: Evaluations) -> None:
    """Set a worker process up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process per core is enough
    _PREPARATION[:] = [Preparation(settings, specs, tokenizer_json, evaluations)]


def work(inputs: list[Input | Skipped]) -> Outcome:
    """Prepare a chunk in a worker process. An input that breaks a reader in a way nobody foresaw is skipped, the others are not."""
    return careful(_PREPARATION[0], inputs)


def careful(preparation: Preparation, inputs: list[Input | Skipped]) -> Outcome:
    """Prepare a chunk; what fails unforeseen becomes Skipped("failed")."""
    try:
        return preparation.chunk(inputs)
    except Exception as error:
        if len(inputs) == 1:
            item = inputs[0]
            origin = item.origin if isinstance(item, Skipped) else Origin(item.source, item.member, bytes=item.size)
            return Outcome([Skipped(origin, "failed", f"{type(error).__name__}: {error}")])
        merged = Outcome()
        for part in (careful(preparation, [item]) for item in inputs):
            merged.results += part.results
            merged.raw_bytes += part.raw_bytes
            for table, counts in part.counts.items():
                merged.counts.setdefault(table, Counter()).update(counts)
        return merged
