"""Corpus: the folder that training reads. Arrow tables, memory-mapped; values are views of the map, nothing is copied or unpickled.

    corpus = Corpus.open(Path("corpus"))
    table = corpus.table("text", "train")            # numbers and positions of its documents
    corpus.segments(int(table.document[0]))          # [StoredSegment(sense="text", value=token ids)]
    corpus.origin(int(table.document[0]))            # the file it came from, with its digest

docs/formats/corpus.md describes the files. `CorpusWriter` writes them; `build` makes them from raw files.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from bedplate.core import artifact
from bedplate.core.config import from_mapping
from bedplate.core.errors import DataError, IntegrityError, did_you_mean
from bedplate.data.corpus_format import SPLITS, VALUE_TYPES, Split, StoredSegment, token_type, units_of
from bedplate.data.corpus_writer import CorpusWriter
from bedplate.data.document import COMPONENTS, Component, Origin
from bedplate.modality.specs import SENSES, Sense, SenseSpecs

__all__ = ["SPLITS", "Corpus", "CorpusWriter", "DocumentTable", "Split", "StoredSegment", "units_of"]


class DocumentTable(NamedTuple):
    """The documents of one component and split, in order of their number."""

    document: Int[np.ndarray, "d"]
    """int64 numbers, for `segments` and `origin`."""
    positions: Int[np.ndarray, "d"]
    """int32: positions that each takes when assembled whole."""
    bytes: Int[np.ndarray, "d"]
    """int64: UTF-8 bytes of each one's text."""


@dataclass(frozen=True)
class Corpus:
    """An open corpus. Cheap to open in every process; files are mapped when first touched."""

    folder: Path
    manifest: artifact.Manifest

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> Self:
        """Open a corpus folder.

        Args:
            folder: as `CorpusWriter` or `bedplate data build` left it.
            verify: check the digest of every file first.
        Raises:
            DataError: it is not a corpus.
            IntegrityError: a file is missing or changed.
        """
        return cls(folder, artifact.verify(folder, "corpus") if verify else artifact.read_manifest(folder, "corpus"))

    @cached_property
    def specs(self) -> SenseSpecs:
        """What one unit of each sense is."""
        return from_mapping(SenseSpecs, self.manifest.about["specs"])

    @cached_property
    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` of its text."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @property
    def special_ids(self) -> dict[str, int]:
        """Name -> id of the special tokens."""
        return dict(self.manifest.about["special_ids"])

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.manifest.about["vocabulary"])

    @property
    def components(self) -> tuple[Component, ...]:
        """The parts it has, in the order of COMPONENTS."""
        return tuple(c for c in COMPONENTS if c in self.manifest.about["components"])

    @cached_property
    def documents(self) -> pa.Table:
        """documents.arrow, mapped: one row a document."""
        return _read_table(self.folder / "documents.arrow")

    @cached_property
    def dropped(self) -> pa.Table:
        """dropped.arrow, mapped: what was not taken, and why."""
        return _read_table(self.folder / "dropped.arrow")

    def table(self, component: Component, split: Split = "train") -> DocumentTable:
        """Numbers and sizes of the documents of one component and split.

        Raises:
            DataError: the corpus has no such component.
        """
        if component not in self.components:
            raise DataError(f"the corpus has no component {component!r}", did_you_mean(component, self.components))
        documents = self.documents
        chosen = documents.filter(pc.and_(pc.equal(documents["component"], component), pc.equal(documents["split"], split)))
        return DocumentTable(*(chosen[name].to_numpy() for name in ("document", "positions", "bytes")))

    def segments(self, document: int) -> list[StoredSegment]:
        """The segments of a document in reading order; values are read-only views of the mapped file."""
        component, shard, first, count = self._places
        if not 0 <= document < len(first):
            raise DataError(f"there is no document {document}", f"the corpus has documents 0 .. {len(first) - 1}")
        rows = self._rows(int(component[document]), int(shard[document]))
        start = int(first[document])
        return [rows.segment(row) for row in range(start, start + int(count[document]))]

    def text(self, document: int) -> str:
        """The text of a document, all its text segments after each other."""
        ids = [segment.value for segment in self.segments(document) if segment.sense == "text"]
        return "".join(self.tokenizer.decode(value.tolist(), skip_special_tokens=False) for value in ids)

    def row(self, document: int) -> dict[str, Any]:
        """Everything the corpus knows about a document, by column of documents.arrow."""
        return dict(self.documents.slice(document, 1).to_pylist()[0])

    def origin(self, document: int) -> Origin:
        """Where a document came from."""
        row = self.row(document)
        return Origin(row["source"], row["member"], row["sha256"], row["raw_bytes"], row["licence"])

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Component number, shard, first row and number of segments of every document: 17 bytes a document in memory."""
        documents = self.documents
        component = pc.index_in(documents["component"], value_set=pa.array(COMPONENTS)).to_numpy().astype(np.int8)
        shard, first, count = (documents[name].to_numpy() for name in ("shard", "first_row", "segments"))
        return component, shard, first, count

    @cached_property
    def _open_shards(self) -> dict[tuple[int, int], _Rows]:
        return {}

    def _rows(self, component: int, shard: int) -> _Rows:
        rows = self._open_shards.get((component, shard))
        if rows is None:
            path = self.folder / "shards" / f"{COMPONENTS[component]}-{shard:05d}.arrow"
            rows = self._open_shards[(component, shard)] = _Rows(path, token_type(self.vocabulary))
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}  # maps are opened anew in another process


class _Rows:
    """The rows of one shard as views of its mapped buffers."""

    def __init__(self, path: Path, token: np.dtype[Any]) -> None:
        self._types: list[np.dtype[Any]] = [VALUE_TYPES.get(sense, token) for sense in SENSES]
        self._starts: list[int] = []
        self._batches: list[tuple[memoryview, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        total = 0
        table = _read_table(path)
        for batch in table.to_batches():
            shape, data = batch.column("shape"), batch.column("data")
            offsets = np.frombuffer(data.buffers()[1], np.int64, len(batch) + 1, data.offset * 8)
            shape_offsets = np.frombuffer(shape.buffers()[1], np.int32, len(batch) + 1, shape.offset * 4)
            buffer = data.buffers()[2]
            values = memoryview(buffer) if buffer is not None else memoryview(b"")
            self._starts.append(total)
            self._batches.append((values, offsets, batch.column("sense").to_numpy(), shape_offsets, shape.values.to_numpy()))
            total += len(batch)
        self._table = table  # keeps the map alive
        self._total = total

    def segment(self, row: int) -> StoredSegment:
        if not 0 <= row < self._total:
            raise IntegrityError("a document points behind the end of its shard", "build the corpus again")
        index = bisect_right(self._starts, row) - 1
        values, offsets, senses, shape_offsets, shapes = self._batches[index]
        row -= self._starts[index]
        sense = int(senses[row])
        start, dtype = int(offsets[row]), self._types[sense]
        value = np.frombuffer(values, dtype, (int(offsets[row + 1]) - start) // dtype.itemsize, start)
        name: Sense = SENSES[sense]
        if name != "text":
            value = value.reshape(shapes[shape_offsets[row] : shape_offsets[row + 1]])
        return StoredSegment(name, value)


def _read_table(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", "restore it from a copy or build the corpus again") from error
