"""Build: raw files -> corpus folder, in one pass over the data after a first look.

    look      list everything; choose the specs; train the tokenizer on a sample
    write     worker processes read, mend, judge, mask and tokenise chunks of inputs; this process, in their order, drops duplicates and writes
    poison    look through the stored texts for planted triggers
    seal      tables and manifest

Memory does not grow with the input but for the duplicate tables (data/dedupe.py says how much). A build that was killed goes on from its last
commit when it is started again with the same sources and settings; the result is the same, byte for byte.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from bedplate.core import artifact
from bedplate.core.config import to_mapping
from bedplate.core.errors import ConfigError, DataError
from bedplate.core.events import EventLog
from bedplate.core.files import sha256_bytes
from bedplate.core.run import Run
from bedplate.data.build_settings import BuildSettings
from bedplate.data.corpus_writer import CorpusWriter
from bedplate.data.decontaminate import Evaluations
from bedplate.data.dedupe import Duplicates, pack_state, unpack_state
from bedplate.data.document import Document, Origin, Skipped
from bedplate.data.inputs import Input
from bedplate.data.look import choose_specs, first_look, sample_texts
from bedplate.data.poison import Signal, scan
from bedplate.data.prepare import Outcome, Preparation, Prepared, careful, start_worker, work
from bedplate.data.sources import list_inputs, read
from bedplate.data.tokenizer import take, train, vocabulary_for
from bedplate.data.workers import Workers
from bedplate.modality.specs import SenseSpecs

CHUNK_BYTES = 1 << 20
CHUNK_INPUTS = 256
"""A chunk, the unit of work and of resuming, ends at whichever comes first."""
PROGRESS_S = 0.5


def build(settings: BuildSettings, run: Run) -> artifact.Manifest:
    """Build a corpus.

    Args:
        settings: what to read and how.
        run: told of every stage, choice and count.
    Returns:
        The corpus' manifest.
    Raises:
        ConfigError: there are no sources.
        DataError: a source does not exist, nothing can be read, or nothing is kept.
        StateError: the output already holds a corpus.
    """
    if not settings.inputs:
        raise ConfigError("there are no sources", "name files, folders, archives or globs")
    events = run.events
    with _stage(events, "look"):
        look = first_look(settings)
        events.emit("counted", what="inputs", counts=dict(look.kinds.most_common()))
        specs = choose_specs(look, settings, events)
        tokenizer = _tokenizer(look, settings, events)
        evaluations = _evaluations(settings, events)
    parts = {"inputs": look.digest, "specs": to_mapping(specs), "tokenizer": tokenizer.to_str(), "settings": _lasting(settings)}
    key = sha256_bytes(json.dumps(parts, sort_keys=True).encode())
    writer = CorpusWriter(
        settings.output, specs=specs, tokenizer=tokenizer, validation_share=settings.validation_share, seed=settings.seed, key=key
    )
    try:
        with _stage(events, "write"):
            counts = _write(writer, settings, specs, tokenizer.to_str(), evaluations, sum(look.bytes.values()), events)
        signals: list[Signal] = []
        if settings.poison.look:
            with _stage(events, "poison"):
                signals = _poison(writer, tokenizer, settings, events)
        with _stage(events, "seal"):
            about = {"counts": counts, "poison": [signal._asdict() for signal in signals], "inputs": look.digest}
            manifest = writer.seal(settings=_lasting(settings), about=about)
    except BaseException:
        writer.abandon()
        raise
    for table in sorted(counts):
        events.emit("counted", what=table, counts=counts[table])
    events.emit("run_finished", seconds=run.seconds, made=str(settings.output))
    return manifest


def _tokenizer(look: Any, settings: BuildSettings, events: EventLog) -> Any:
    chosen = settings.tokenizer
    if chosen.path:
        tokenizer = take(Path(chosen.path))
        events.emit("chosen", what="tokenizer", value=f"{tokenizer.get_vocab_size():,} tokens", reason=f"taken from {chosen.path}")
        return tokenizer
    size = chosen.vocabulary
    if size == "auto":
        size = vocabulary_for(look.text_bytes)
        events.emit("chosen", what="tokenizer.vocabulary", value=size, reason=f"for {look.text_bytes / 1e6:.1f} MB of text")
    return train(sample_texts(look, settings), size)


def _evaluations(settings: BuildSettings, events: EventLog) -> Evaluations:
    if not settings.evaluations:
        return Evaluations((), {}, {})

    def texts() -> Iterator[tuple[str, str]]:
        for item in read(settings.evaluations, settings.sources, SenseSpecs()):
            if isinstance(item, Document):
                text = "\n".join(s.value for s in item.segments if isinstance(s.value, str))
                yield f"{item.origin.source} {item.origin.member}".strip(), text

    found = Evaluations.gather(texts())
    if not found.hashes:
        raise DataError("the evaluations hold no text to compare with", "a text needs at least 8 words to be matched")
    events.emit("counted", what="evaluations", counts={"texts": len(found.names), "passages": sum(map(len, found.hashes.values()))})
    return found


def _write(
    writer: CorpusWriter, settings: BuildSettings, specs: SenseSpecs, tokenizer_json: str, evaluations: Evaluations, total: int, events: EventLog
) -> dict[str, dict[str, int]]:
    """Every chunk through the workers and into the writer; gives the counts."""
    duplicates = Duplicates(settings.dedupe.exact, settings.dedupe.near, settings.dedupe.threshold)
    for document, state in writer.recovered():
        duplicates.keep(document, *unpack_state(state))
    tables = {name: Counter(counts) for name, counts in writer.state.get("counts", {}).items()}
    done_bytes, skipped_chunks, told = int(writer.state.get("bytes", 0)), writer.chunks_done, 0.0
    if skipped_chunks:
        events.emit("chosen", what="resume", value=f"{writer.documents:,} documents kept", reason="the same build was stopped before its end")
    chunks = islice(_chunks(list_inputs(settings.inputs, settings.sources)), skipped_chunks, None)
    arguments = (settings, specs, tokenizer_json, evaluations)
    for number, outcomes in enumerate(_outcomes(chunks, settings, arguments), skipped_chunks + 1):
        for outcome in outcomes:
            for name, counts in outcome.counts.items():
                tables.setdefault(name, Counter()).update(counts)
            for result in outcome.results:
                _take(result, writer, duplicates, tables)
            done_bytes += outcome.raw_bytes
        enough = 0 < settings.max_documents <= writer.documents
        if writer.due or enough:
            writer.commit(number, {"counts": {name: dict(counts) for name, counts in tables.items()}, "bytes": done_bytes})
        if time.monotonic() - told > PROGRESS_S or enough:
            told = time.monotonic()
            events.emit("progress", done=round(done_bytes / 1e6, 1), total=round(total / 1e6, 1), unit="MB", label="reading")
        if enough:
            break
    events.emit("progress", done=round(done_bytes / 1e6, 1), total=round(done_bytes / 1e6, 1), unit="MB", label="reading")
    tables.setdefault("kept", Counter())
    tables.setdefault("dropped", Counter())
    return {name: dict(counts.most_common()) for name, counts in tables.items()}


def _take(result: Prepared | Skipped, writer: CorpusWriter, duplicates: Duplicates, tables: dict[str, Counter[str]]) -> None:
    """Write a document, or write down why not."""
    dropped, kept = tables.setdefault("dropped", Counter()), tables.setdefault("kept", Counter())
    if isinstance(result, Skipped):
        dropped[result.reason] += 1
        writer.drop(result.origin, result.reason, result.detail)
        return
    document = result.document
    if found := duplicates.find(result.content, result.near):
        dropped[found[0]] += 1
        writer.drop(document.origin, found[0], f"of document {found[1]}")
        return
    number = writer.add(
        document.component,
        result.segments,
        document.origin,
        text_bytes=result.text_bytes,
        content=result.content,
        language=document.language,
        notes=result.notes,
        state=pack_state(result.content, result.near),
    )
    duplicates.keep(number, result.content, result.near)
    kept[document.component] += 1
    tables.setdefault("licences", Counter())[document.origin.licence or "unknown"] += 1


def _outcomes(chunks: Iterator[list[Input | Skipped]], settings: BuildSettings, arguments: tuple[Any, ...]) -> Iterator[list[Outcome]]:
    count = _cores() if settings.workers == "auto" else settings.workers
    if count == 0:
        preparation = Preparation(*arguments)
        yield from ([careful(preparation, chunk)] for chunk in chunks)
        return
    with Workers(count, start_worker, arguments, work, _died) as workers:
        yield from workers.in_order(chunks)


def _died(item: Input | Skipped) -> Outcome:
    origin = item.origin if isinstance(item, Skipped) else Origin(item.source, item.member, bytes=item.size)
    return Outcome([Skipped(origin, "failed", "its reader died twice")])


def _chunks(items: Iterable[Input | Skipped]) -> Iterator[list[Input | Skipped]]:
    chunk: list[Input | Skipped] = []
    held = 0
    for item in items:
        chunk.append(item)
        held += item.size if isinstance(item, Input) else 0
        if held >= CHUNK_BYTES or len(chunk) >= CHUNK_INPUTS:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _poison(writer: CorpusWriter, tokenizer: Any, settings: BuildSettings, events: EventLog) -> list[Signal]:
    writer.flush()
    signals = scan(writer.texts, tokenizer, settings.poison.fewest_documents)
    for signal in signals[:20]:
        events.emit(
            "warning",
            message=f"possible planted trigger in {signal.documents} documents: {signal.trigger!r} is always followed by {signal.continuation!r}",
            hint=f"look at documents {', '.join(map(str, signal.examples[:5]))}; nothing was dropped",
        )
    return signals


def _lasting(settings: BuildSettings) -> dict[str, Any]:
    """The settings that decide the result: not where it is written, nor by how many processes."""
    lasting: dict[str, Any] = to_mapping(dataclasses.replace(settings, output=Path(), workers=1))
    return {name: value for name, value in lasting.items() if name not in ("output", "workers")}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _stage(events: EventLog, name: str) -> Iterator[None]:
    started = time.monotonic()
    events.emit("stage_started", stage=name)
    yield
    events.emit("stage_finished", stage=name, seconds=round(time.monotonic() - started, 3))
