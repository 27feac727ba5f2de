"""CorpusWriter: documents in, a sealed corpus folder out; bounded memory, and a killed build goes on where it last committed.

    writer = CorpusWriter(folder, specs=specs, tokenizer=tokenizer, key="digest of inputs and settings")
    for chunk in chunks[writer.chunks_done:]:
        for document in chunk: writer.add(...)
        writer.commit(chunk=number)             # from here on a kill loses nothing of it
    writer.seal(settings=..., about=...)

While it is being written the folder has no manifest. Everything provisional ends in `.tmp`: open shards, and `.build/` with the rows of
committed documents and the journal, which names what counts. What the journal does not name is removed at the next start.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bedplate.core import artifact
from bedplate.core.config import to_mapping
from bedplate.core.errors import DataError, StateError
from bedplate.core.files import atomic_writer, fsync_folder, read_json, write_json, write_text
from bedplate.data.corpus_format import DOCUMENTS, DROPPED, SEGMENTS, SPLITS, VALUE_TYPES, Split, StoredSegment, positions_of, token_type
from bedplate.data.document import Component, Origin
from bedplate.modality.sequence import SPECIAL_TOKENS
from bedplate.modality.specs import SENSES, SenseSpecs

SHARD_BYTES = 64 << 20
"""A shard is closed once it holds this much; a commit happens after about as much over all components."""
BATCH_BYTES = 4 << 20
"""Rows are written in record batches of about this much: the most that is held in memory per component."""
ROWS_A_BATCH = 1024
_PART = pa.schema([*DOCUMENTS, ("draw", pa.uint64()), ("state", pa.binary())])
SMALLEST_WITH_VALIDATION = 10
"""A component with at least this many documents holds out at least one."""


class CorpusWriter:
    """Writes a corpus folder. See the module's text for the order of calls.

    Args:
        folder: where to; made when missing.
        specs: what one unit of each sense is.
        tokenizer: a `tokenizers.Tokenizer`; its vocabulary decides the type of stored token ids.
        validation_share: share of documents held out, chosen by a hash of their content.
        seed: changes which documents are held out.
        key: a build that was killed goes on only when this is the same; "" starts anew.
    Raises:
        StateError: the folder already holds a finished artifact, or files of something else.
    """

    def __init__(self, folder: Path, *, specs: SenseSpecs, tokenizer: Any, validation_share: float = 0.02, seed: int = 0, key: str = "") -> None:
        self.folder, self.specs, self._share, self._seed, self._key = folder, specs, validation_share, seed, key
        self._build = folder / ".build"
        self._tokenizer = tokenizer
        self._dtypes = {**VALUE_TYPES, "text": token_type(tokenizer.get_vocab_size())}
        self._shards: dict[str, _Shard] = {}
        self._rows: list[dict[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []
        self._dropped: list[dict[str, Any]] = []
        self._since_commit = 0
        self._journal: dict[str, Any] = {"key": key, "chunks": 0, "documents": 0, "dropped": 0, "parts": 0, "shards": {}, "state": {}}
        self._start()

    @property
    def chunks_done(self) -> int:
        """Chunks of input that are committed; a resumed build goes on with the next."""
        return int(self._journal["chunks"])

    @property
    def state(self) -> dict[str, Any]:
        """What the builder gave to the last commit."""
        return dict(self._journal["state"])

    @property
    def documents(self) -> int:
        """Documents added so far."""
        held: int = sum(batch.num_rows for batch in self._batches) + len(self._rows)
        return int(self._journal["documents"]) + held

    @property
    def due(self) -> bool:
        """Whether enough was written since the last commit to make another worth its while."""
        return self._since_commit >= SHARD_BYTES

    def add(
        self,
        component: Component,
        segments: Sequence[StoredSegment],
        origin: Origin,
        *,
        text_bytes: int = 0,
        content: bytes = b"",
        language: str = "",
        notes: Sequence[str] = (),
        state: bytes = b"",
    ) -> int:
        """Add a document and return its number.

        Args:
            component: the part of the corpus it belongs to.
            segments: in reading order; text as token ids.
            origin: where it came from.
            text_bytes: UTF-8 bytes of its text, for bits per byte.
            content: digest of its content: decides the split. The digest of the stored values when empty.
            language: programming language of code.
            notes: repairs and filters that changed it.
            state: bytes that `recovered` gives back when the build goes on.
        """
        if not segments:
            raise DataError(f"document of {origin.source} has no segment", "drop it with a reason instead")
        number = self.documents
        arrays = [segment.value.astype(self._dtypes[segment.sense], copy=False) for segment in segments]
        shard = self._shards.get(component)
        if shard is None or shard.bytes >= SHARD_BYTES:
            shard = self._next_shard(component)
        first = shard.rows
        for segment, array in zip(segments, arrays, strict=True):
            data = array.tobytes()
            self._since_commit += len(data)
            shard.add(number, SENSES.index(segment.sense), array.shape, data)
        draw = self._draw(content or b"".join(hashlib.sha256(array.tobytes()).digest() for array in arrays))
        self._rows.append(
            {
                "document": number,
                "component": component,
                "split": "validation" if draw < self._share * 2.0**64 else "train",
                "shard": shard.number,
                "first_row": first,
                "segments": len(segments),
                "positions": positions_of(segments, self.specs),
                "bytes": text_bytes,
                "source": origin.source,
                "member": origin.member,
                "sha256": origin.sha256,
                "raw_bytes": origin.bytes,
                "licence": origin.licence,
                "language": language,
                "notes": list(notes),
                "draw": draw,
                "state": state,
            }
        )
        if len(self._rows) >= ROWS_A_BATCH:  # a row takes a tenth of the memory in Arrow
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, _PART))
            self._rows = []
        return number

    def drop(self, origin: Origin, reason: str, detail: str = "") -> None:
        """Write down that something was not taken, and why."""
        self._dropped.append({"source": origin.source, "member": origin.member, "reason": reason, "detail": detail[:500]})

    def commit(self, chunk: int, state: Mapping[str, Any] | None = None) -> None:
        """Make everything so far durable: shards closed, rows and journal synced.

        Args:
            chunk: how many chunks of input are done.
            state: JSON-able; given back by `.state` when the build goes on.
        """
        for shard in self._shards.values():
            shard.close()
        shards = {component: shard.number + 1 for component, shard in self._shards.items()}
        self._shards.clear()
        part = int(self._journal["parts"])
        rows = pa.RecordBatch.from_pylist(self._rows, _PART)
        _write_table(self._part("documents", part), _PART, [*self._batches, rows])
        _write_table(self._part("dropped", part), DROPPED, [pa.RecordBatch.from_pylist(self._dropped, DROPPED)])
        journal = self._journal | {"chunks": chunk, "parts": part + 1, "state": dict(state or {})}
        journal["documents"] = self.documents
        journal["dropped"] = journal["dropped"] + len(self._dropped)
        journal["shards"] = {**journal["shards"], **shards}
        fsync_folder(self.folder / "shards")
        write_json(self._build / "journal.json.tmp", journal)
        self._journal, self._rows, self._batches, self._dropped, self._since_commit = journal, [], [], [], 0

    def recovered(self) -> Iterator[tuple[int, bytes]]:
        """(document, the state given to `add`) of every committed document, in order."""
        for part in range(int(self._journal["parts"])):
            with pa.memory_map(str(self._part("documents", part))) as source:
                table = pa.ipc.open_file(source).read_all()
                yield from zip(table["document"].to_pylist(), table["state"].to_pylist())

    def flush(self) -> None:
        """Commit what was added since the last commit, if anything."""
        if self._rows or self._batches or self._dropped or self._shards:
            self.commit(self.chunks_done, self.state)

    def texts(self) -> Iterator[tuple[int, np.ndarray]]:
        """(document, token ids) of every committed text segment, shard by shard."""
        text = SENSES.index("text")
        for path in sorted((self.folder / "shards").glob("*.arrow")):
            with pa.memory_map(str(path)) as source:
                reader = pa.ipc.open_file(source)
                for index in range(reader.num_record_batches):
                    batch = reader.get_batch(index)
                    for document, sense, data in zip(batch["document"].to_pylist(), batch["sense"].to_pylist(), batch["data"]):
                        if sense == text:
                            yield document, np.frombuffer(data.as_buffer(), self._dtypes["text"])

    def seal(
        self, *, settings: Mapping[str, Any] | None = None, about: Mapping[str, Any] | None = None, parents: Mapping[str, str] | None = None
    ) -> artifact.Manifest:
        """Commit the rest, write the tables and, last, the manifest.

        Args:
            settings: what it was built with.
            about: more facts for the manifest beside the writer's own (specs, components, tokens).
            parents: role -> digest of artifacts it was made from.
        Raises:
            DataError: there is no document at all.
        """
        if self.documents == 0:
            reasons = sorted({row["reason"] for row in self._dropped})
            raise DataError("no document was kept", f"everything was dropped: {', '.join(reasons)}" if reasons else "the sources hold nothing readable")
        self.flush()
        held_out = self._held_out()
        components: dict[str, dict[str, dict[str, int]]] = {}
        with atomic_writer(self.folder / "documents.arrow") as handle, pa.ipc.new_file(handle, DOCUMENTS) as out:
            for batch in self._parts("documents"):
                rows = batch.to_pylist()
                for row in rows:
                    row["split"] = "validation" if row["document"] in held_out else row["split"]
                    _count(components, row)
                out.write_batch(pa.RecordBatch.from_pylist([{k: row[k] for k in DOCUMENTS.names} for row in rows], DOCUMENTS))
        with atomic_writer(self.folder / "dropped.arrow") as handle, pa.ipc.new_file(handle, DROPPED) as out:
            for batch in self._parts("dropped"):
                out.write_batch(batch)
        write_text(self.folder / "tokenizer.json", self._tokenizer.to_str())
        vocabulary = self._tokenizer.get_vocab_size()
        facts = {
            "specs": {name: to_mapping(spec) for name, spec in self.specs.present().items()},
            "components": components,
            "documents": self.documents,
            "dropped": self._journal["dropped"],
            "vocabulary": vocabulary,
            "token_type": token_type(vocabulary).name,
            "special_ids": {name: i for name in SPECIAL_TOKENS if (i := self._tokenizer.token_to_id(name)) is not None},
        }
        manifest = artifact.seal(self.folder, "corpus", parents=parents, settings=settings, about={**facts, **(about or {})})
        shutil.rmtree(self._build)
        return manifest

    def abandon(self) -> None:
        """Close files without committing; what was committed stays."""
        for shard in self._shards.values():
            shard.discard()
        self._shards.clear()

    def _start(self) -> None:
        if (self.folder / artifact.MANIFEST).exists():
            raise StateError(f"{self.folder} already holds a finished corpus", "give another folder, or remove that one first")
        journal_path = self._build / "journal.json.tmp"
        if journal_path.is_file():
            journal = read_json(journal_path)
            if self._key and journal.get("key") == self._key:
                self._journal = journal
        elif self.folder.is_dir() and any(path.name != ".build" for path in self.folder.iterdir() if not path.name.endswith(".tmp")):
            known = {"shards", "documents.arrow", "dropped.arrow", "tokenizer.json"}
            foreign = sorted(path.name for path in self.folder.iterdir() if path.name not in known and not path.name.endswith(".tmp"))
            if foreign and not self._build.is_dir():
                raise StateError(f"{self.folder} is not empty: it holds {foreign[0]}", "give a new folder for the corpus")
        self._clean()
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        self._build.mkdir(exist_ok=True)
        write_json(journal_path, self._journal)

    def _clean(self) -> None:
        """Remove what the journal does not name."""
        for path in (self.folder / "shards").glob("*"):
            component, _, number = path.name.removesuffix(".arrow").rpartition("-")
            if not number.isdigit() or int(number) >= self._journal["shards"].get(component, 0):
                path.unlink()
        for path in self._build.glob("*.arrow.tmp"):
            number = path.name.removesuffix(".arrow.tmp").rpartition("-")[2]
            if not number.isdigit() or int(number) >= self._journal["parts"]:
                path.unlink()
        for name in ("documents.arrow", "dropped.arrow", "tokenizer.json"):
            (self.folder / name).unlink(missing_ok=True)
        for path in [*self.folder.glob(".*.tmp"), *self._build.glob(".*.tmp")]:
            if path.is_file():
                path.unlink()

    def _next_shard(self, component: Component) -> _Shard:
        if component in self._shards:
            self._shards[component].close()
            number = self._shards[component].number + 1
        else:
            number = self._journal["shards"].get(component, 0)
        self._shards[component] = _Shard(self.folder / "shards" / f"{component}-{number:05d}.arrow", number)
        return self._shards[component]

    def _draw(self, content: bytes) -> int:
        return int.from_bytes(hashlib.sha256(b"%d:" % self._seed + content).digest()[:8], "big")

    def _held_out(self) -> set[int]:
        """Documents to hold out on top of the draw, so that no component of some size is without validation."""
        count: dict[str, int] = defaultdict(int)
        lowest: dict[str, tuple[int, int]] = {}
        with_validation = set()
        if self._share <= 0:
            return set()
        for batch in self._parts("documents"):
            columns = (batch.column(name).to_pylist() for name in ("component", "split", "draw", "document"))
            for component, split, draw, document in zip(*columns):
                count[component] += 1
                lowest[component] = min(lowest.get(component, (draw, document)), (draw, document))
                if split == "validation":
                    with_validation.add(component)
        return {lowest[c][1] for c, n in count.items() if n >= SMALLEST_WITH_VALIDATION and c not in with_validation}

    def _part(self, table: str, number: int) -> Path:
        return self._build / f"{table}-{number:05d}.arrow.tmp"

    def _parts(self, table: str) -> Iterator[pa.RecordBatch]:
        for number in range(int(self._journal["parts"])):
            with pa.memory_map(str(self._part(table, number))) as source:
                reader = pa.ipc.open_file(source)
                for index in range(reader.num_record_batches):
                    yield reader.get_batch(index)


class _Shard:
    """An open shard: rows gather into record batches; the file gets its name when it is complete."""

    def __init__(self, path: Path, number: int) -> None:
        self.number, self.rows, self.bytes = number, 0, 0
        self._path, self._temporary = path, path.with_name(path.name + ".tmp")
        self._handle = self._temporary.open("wb")
        self._file = pa.ipc.new_file(self._handle, SEGMENTS)
        self._columns: tuple[list[Any], ...] = ([], [], [], [])
        self._held = 0

    def add(self, document: int, sense: int, shape: tuple[int, ...], data: bytes) -> None:
        for column, value in zip(self._columns, (document, sense, shape, data)):
            column.append(value)
        self.rows += 1
        self.bytes += len(data) + 40
        self._held += len(data) + 40
        if self._held >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._columns[0]:
            arrays = [pa.array(column, field.type) for column, field in zip(self._columns, SEGMENTS)]
            self._file.write_batch(pa.record_batch(arrays, schema=SEGMENTS))
            self._columns = ([], [], [], [])
            self._held = 0

    def close(self) -> None:
        self._flush()
        self._file.close()
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        self._temporary.replace(self._path)

    def discard(self) -> None:
        self._handle.close()
        self._temporary.unlink(missing_ok=True)


def _write_table(path: Path, schema: pa.Schema, batches: Sequence[pa.RecordBatch]) -> None:
    with atomic_writer(path) as handle, pa.ipc.new_file(handle, schema) as out:
        for batch in batches:
            out.write_batch(batch)


def _count(components: dict[str, dict[str, dict[str, int]]], row: dict[str, Any]) -> None:
    none = {"documents": 0, "positions": 0, "bytes": 0}
    splits = components.setdefault(row["component"], {split: dict(none) for split in SPLITS})
    total: dict[Split, dict[str, int]] = splits  # type: ignore[assignment]
    for name, value in (("documents", 1), ("positions", row["positions"]), ("bytes", row["bytes"])):
        total[row["split"]][name] += value
