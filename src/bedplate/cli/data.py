"""`bedplate data`: from raw files to a corpus, and a look inside."""

from __future__ import annotations

from pathlib import Path

from bedplate.cli.app import Here, Overrides
from bedplate.core.config import load
from bedplate.core.run import Run
from bedplate.core.units import format_bytes, format_count, format_seconds
from bedplate.data.document import COMPONENTS


def build(
    *sources: str,
    to: Path,
    settings: Path | None = None,
    tokenizer: Path | None = None,
    overrides: Overrides = (),
    console: Here,
) -> None:
    """Build a corpus from raw files, folders and archives; goes on where a stopped build was.

    Args:
        sources: files, folders, archives or globs; archives are read in place.
        to: the corpus folder to write. What happened is kept beside it, in TO.run.
        settings: a settings file; see docs/settings.md.
        tokenizer: a model folder or tokenizer.json to take the tokenizer from, instead of training one.
    """
    from bedplate.data.build import build as build_corpus
    from bedplate.data.build_settings import BuildSettings

    given = {"inputs": sources or None, "output": to, "tokenizer.path": None if tokenizer is None else str(tokenizer)}
    resolved = load(BuildSettings, path=settings, overrides=overrides, given=given)
    with Run.open(to.with_name(to.name + ".run"), "data build", resolved, listeners=(console,)) as run:
        manifest = build_corpus(resolved.value, run)
        seconds = run.seconds
    rows = component_rows(manifest.about["components"])
    console.table(("component", "documents", "positions", "text", "held out"), rows, title=str(to))
    console.say(f"corpus in {to} after {format_seconds(seconds)}; look inside: bedplate data inspect {to}")
    counts = manifest.about["counts"]
    console.data({"folder": str(to), "digest": manifest.digest, "components": manifest.about["components"], "counts": counts, "seconds": seconds})


def component_rows(components: dict[str, dict[str, dict[str, int]]]) -> list[tuple[object, ...]]:
    """(component, documents, positions, text, held out) of a corpus."""
    rows: list[tuple[object, ...]] = []
    for name in COMPONENTS:
        if (splits := components.get(name)) is None:
            continue
        total = {key: sum(split[key] for split in splits.values()) for key in ("documents", "positions", "bytes")}
        text = format_bytes(total["bytes"]) if total["bytes"] else ""
        rows.append((name, total["documents"], format_count(total["positions"]), text, splits["validation"]["documents"]))
    return rows


def inspect(corpus: Path, *, to: Path | None = None, console: Here) -> None:
    """Show what is in a corpus, and write a page with samples of each sense and what was dropped and why.

    Args:
        corpus: the corpus folder.
        to: the HTML file to write; CORPUS.html beside the folder when left out.
    """
    from bedplate.data.inspect import inspect as inspect_corpus

    page = to or corpus.with_name(corpus.name + ".html")
    summary = inspect_corpus(corpus, page)
    console.table(("component", "documents", "positions", "text", "held out"), component_rows(summary.components), title=str(corpus))
    for title, table in (("dropped", "dropped"), ("licences", "licences"), ("personal data and secrets", "personal data"), ("repaired", "repaired")):
        if counts := summary.counts.get(table):
            console.table((title, "count"), list(counts.items())[:12])
    tokens = f"{summary.vocabulary:,} tokens, {summary.bytes_per_token:.2f} bytes each" if summary.bytes_per_token else f"{summary.vocabulary:,} tokens"
    console.print(f"{summary.documents:,} documents, {format_bytes(summary.bytes_on_disk)} on disk; {tokens}; digest {summary.digest[:16]}")
    if summary.signals:
        console.say(f"warning: passages that look planted: {summary.signals}; the page shows where they stand")
    console.print(f"wrote {page}")
    console.data(summary._asdict() | {"page": str(page)})
