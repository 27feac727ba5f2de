"""A look inside a corpus: a summary for the terminal, and one offline HTML page with samples of each sense.

    summary = inspect(Path("corpus"), Path("corpus.html"))

The page shows what a stranger asks first: what is in it, what was dropped and why, what looks planted, whose licence it is, and some of it to
see and hear. All of it comes from the corpus folder alone; samples are spread evenly over it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from bedplate.core.config import flatten
from bedplate.core.files import write_text
from bedplate.core.units import format_bytes, format_count
from bedplate.data.corpus import SPLITS, Corpus
from bedplate.data.document import COMPONENTS, Component
from bedplate.modality import audio, image, video
from bedplate.report import figures
from bedplate.report.html import render
from bedplate.report.samples import data_uri

PICTURES, SOUNDS, CLIPS, SERIES, TEXTS = 24, 4, 4, 4, 2
"""Samples shown; texts of each component."""
TEXT_CHARACTERS = 900
COLOURS = {"text": "text", "code": "7", "image": "image", "audio": "audio", "video": "video", "series": "series"}


class Summary(NamedTuple):
    """What a corpus holds, in a few numbers."""

    folder: str
    digest: str
    documents: int
    positions: int
    bytes_on_disk: int
    vocabulary: int
    bytes_per_token: float
    """UTF-8 bytes that a token of text and code stands for, on average; 0 without text."""
    components: dict[str, dict[str, dict[str, int]]]
    counts: dict[str, dict[str, int]]
    signals: int
    """Passages that look planted."""


def inspect(folder: Path, page: Path | None = None, verify: bool = True) -> Summary:
    """Summarise a corpus, and write its page.

    Args:
        folder: the corpus.
        page: the HTML file to write; none when left out.
        verify: check the digest of every file first.
    Raises:
        DataError: it is no corpus.
        IntegrityError: a file is missing or changed.
    """
    corpus = Corpus.open(folder, verify=verify)
    summary = summarise(corpus)
    if page is not None:
        write_text(page, corpus_page(corpus, summary))
    return summary


def summarise(corpus: Corpus) -> Summary:
    """The numbers of a corpus."""
    about = corpus.manifest.about
    components = about["components"]
    written = [components[name][split] for name in ("text", "code") if name in components for split in SPLITS]
    tokens = sum(part["positions"] - 2 * part["documents"] for part in written)
    return Summary(
        folder=str(corpus.folder),
        digest=corpus.manifest.digest,
        documents=about["documents"],
        positions=sum(split["positions"] for splits in components.values() for split in splits.values()),
        bytes_on_disk=sum((corpus.folder / name).stat().st_size for name in corpus.manifest.files),
        vocabulary=corpus.vocabulary,
        bytes_per_token=sum(part["bytes"] for part in written) / tokens if tokens else 0.0,
        components=components,
        counts=about.get("counts") or {"kept": _kept(components), "dropped": _dropped(corpus)},
        signals=len(about.get("poison", ())),
    )


def corpus_page(corpus: Corpus, summary: Summary) -> str:
    """The page as HTML."""
    facts = [
        ("documents", f"{summary.documents:,}"),
        ("positions", format_count(summary.positions)),
        ("text and captions", format_bytes(sum(s["bytes"] for c in summary.components.values() for s in c.values()))),
        ("vocabulary", f"{summary.vocabulary:,}"),
        ("on disk", format_bytes(summary.bytes_on_disk)),
        ("dropped", f"{len(corpus.dropped):,}"),
    ]
    if summary.bytes_per_token:
        facts.insert(4, ("bytes a token", f"{summary.bytes_per_token:.2f}"))
    pictures = [_picture(corpus, number) for number in _spread(corpus, "image", PICTURES)]
    return render(
        "corpus.html",
        title=f"{corpus.folder.name} - Bedplate corpus",
        name=corpus.folder.resolve().name,
        subtitle=f"sealed {corpus.manifest.made_at.replace('T', ' ')[:16]} UTC by {corpus.manifest.made_by} · {corpus.manifest.digest[:16]}",
        facts=facts,
        components=_components(summary),
        signals=_signals(corpus),
        dropped=_dropped_rows(corpus),
        dropped_line=f"{len(corpus.dropped):,} inputs and documents against {summary.documents:,} kept. All of them are listed in dropped.arrow.",
        pictures=pictures,
        sounds=[_sound(corpus, number) for number in _spread(corpus, "audio", SOUNDS)],
        clips=[_clip(corpus, number) for number in _spread(corpus, "video", CLIPS)],
        series=[channel for number in _spread(corpus, "series", SERIES) for channel in _series(corpus, number)][:SERIES],
        texts=[_text(corpus, number) for component in ("text", "code") for number in _spread(corpus, component, TEXTS)],
        histograms=[_histogram(corpus, component) for component in corpus.components],
        tables=_tables(corpus, summary),
        specs=[(name, _spec(spec)) for name, spec in corpus.manifest.about["specs"].items()] or [("text", f"{summary.vocabulary:,} tokens")],
        settings=[(key, _setting(value)) for key, value in flatten(corpus.manifest.settings) if value not in ({}, [], "")],
    )


def _components(summary: Summary) -> list[dict[str, Any]]:
    rows = []
    for name in COMPONENTS:
        if (splits := summary.components.get(name)) is None:
            continue
        total = {key: sum(split[key] for split in splits.values()) for key in ("documents", "positions", "bytes")}
        share = 100 * total["positions"] / max(1, summary.positions)
        rows.append(
            {
                "name": name,
                "colour": COLOURS[name],
                "documents": f"{total['documents']:,}",
                "positions": format_count(total["positions"]),
                "share": f"{share:.2f}",
                "percent": f"{share:.1f}%" if share >= 0.1 else "< 0.1%",
                "text": format_bytes(total["bytes"]) if total["bytes"] else "",
                "held_out": f"{splits['validation']['documents']:,}",
            }
        )
    return rows


def _spread(corpus: Corpus, component: Component, count: int) -> list[int]:
    """Numbers of documents spread evenly over a component."""
    if component not in corpus.components:
        return []
    numbers = np.concatenate([corpus.table(component, split).document for split in SPLITS])
    numbers.sort()
    return [int(n) for n in numbers[np.linspace(0, len(numbers) - 1, min(count, len(numbers))).astype(int)]]


def _caption(corpus: Corpus, number: int) -> str:
    text = corpus.text(number).strip()
    return text if len(text) <= 120 else text[:119] + "…"


def _value(corpus: Corpus, number: int, sense: str) -> np.ndarray:
    return next(segment.value for segment in corpus.segments(number) if segment.sense == sense)


def _picture(corpus: Corpus, number: int) -> dict[str, str]:
    return {"uri": data_uri(image.encode(_value(corpus, number, "image")), "image/png"), "caption": _caption(corpus, number)}


def _sound(corpus: Corpus, number: int) -> dict[str, str]:
    spec = corpus.specs.audio
    assert spec is not None  # the writer refuses a segment without its spec
    samples = audio.to_waveform(_value(corpus, number, "audio"), spec)
    picture = figures.spectrogram(samples, spec.sample_rate)
    wave = data_uri(audio.encode(samples, spec.sample_rate), "audio/wav")
    return {"uri": wave, "picture": data_uri(picture, "image/png"), "caption": _caption(corpus, number)}


def _clip(corpus: Corpus, number: int) -> dict[str, str]:
    spec = corpus.specs.video
    assert spec is not None
    return {"uri": data_uri(video.encode(_value(corpus, number, "video"), spec.frames_per_s), "image/gif"), "caption": _caption(corpus, number)}


def _series(corpus: Corpus, number: int) -> list[dict[str, Any]]:
    """The channels of a document, each behind its name."""
    name, out = "", []
    for segment in corpus.segments(number):
        if segment.sense == "text":
            name = corpus.tokenizer.decode(segment.value.tolist(), skip_special_tokens=False)
        else:
            out.append({"svg": Markup(figures.series(segment.value.astype(np.float64))), "caption": name.strip()})
    return out


def _text(corpus: Corpus, number: int) -> dict[str, str]:
    row, text = corpus.row(number), corpus.text(number)
    middle = max(0, len(text) // 3 if len(text) > 3 * TEXT_CHARACTERS else 0)  # a book begins with its title page
    start = text.find("\n", middle) + 1 if middle else 0
    shown = ("… " if start else "") + text[start : start + TEXT_CHARACTERS].strip() + (" …" if start + TEXT_CHARACTERS < len(text) else "")
    return {"component": row["component"], "language": row["language"], "text": shown, "source": _place(row)}


def _place(row: dict[str, Any]) -> str:
    return f"{row['source']} {row['member']}".strip()


def _histogram(corpus: Corpus, component: Component) -> dict[str, Any]:
    positions = np.concatenate([corpus.table(component, split).positions for split in SPLITS])
    low, middle, high = (int(np.percentile(positions, q)) for q in (5, 50, 95))
    colour = component if component in figures.SENSE_COLOURS else "code"
    if positions.min() == positions.max():
        return {"title": component, "middle": f"{middle:,}", "note": f"each of the {len(positions):,} documents takes as many positions", "svg": ""}
    svg = figures.histogram(positions.astype(np.float64), colour, "positions in a document")
    return {"title": component, "middle": f"{middle:,}", "note": f"in the middle; nine of ten lie between {low:,} and {high:,}", "svg": Markup(svg)}


def _dropped(corpus: Corpus) -> dict[str, int]:
    counts = pc.value_counts(corpus.dropped["reason"]).to_pylist()
    return dict(sorted(((row["values"], row["counts"]) for row in counts), key=lambda pair: -pair[1]))


def _kept(components: dict[str, dict[str, dict[str, int]]]) -> dict[str, int]:
    return {name: sum(split["documents"] for split in splits.values()) for name, splits in components.items()}


def _dropped_rows(corpus: Corpus) -> list[dict[str, Any]]:
    rows = []
    counts = _dropped(corpus)
    for reason, count in counts.items():
        first = corpus.dropped.filter(pc.equal(corpus.dropped["reason"], reason)).slice(0, 2).to_pylist()
        examples = [f"{_place(row)}{': ' + row['detail'] if row['detail'] else ''}"[:160] for row in first]
        rows.append({"reason": reason, "count": f"{count:,}", "share": f"{100 * count / max(counts.values()):.1f}", "examples": examples})
    return rows


def _signals(corpus: Corpus) -> list[dict[str, Any]]:
    out = []
    for signal in list(corpus.manifest.about.get("poison", ()))[:20]:
        evidence = []
        for number in signal["examples"][:3]:
            text = " ".join(corpus.text(number).split())
            at = text.find(signal["trigger"])
            end = at + len(signal["trigger"]) + 1 + len(signal["continuation"])
            parts = {"before": text[max(0, at - 60) : at], "passage": text[at:end], "after": text[end : end + 60]}
            evidence.append({**parts, "document": number, "source": _place(corpus.row(number))})
        out.append({"documents": signal["documents"], "contexts": signal["contexts"], "evidence": evidence})
    return out


def _tables(corpus: Corpus, summary: Summary) -> list[dict[str, Any]]:
    languages = Counter({r["values"]: r["counts"] for r in pc.value_counts(corpus.documents["language"]).to_pylist() if r["values"]})
    licences = Counter({r["values"] or "unknown": r["counts"] for r in pc.value_counts(corpus.documents["licence"]).to_pylist()})
    wanted = [
        ("Licences", "By document, as its source says; unknown where it says nothing.", licences),
        ("Languages", "Of code.", languages),
        ("Personal data and secrets", _privacy_note(corpus), Counter(summary.counts.get("personal data", {}))),
        ("Repairs", "Documents that were mended.", Counter(summary.counts.get("repaired", {}))),
    ]
    return [
        {"title": title, "note": note, "rows": [(name, f"{count:,}") for name, count in counts.most_common(12)]} for title, note, counts in wanted if counts
    ]


def _privacy_note(corpus: Corpus) -> str:
    mode = corpus.manifest.settings.get("privacy", {}).get("mode", "report")
    return "Found and masked." if mode == "mask" else "Found and left in place; privacy.mode = mask takes them out."


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _spec(spec: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in spec.items())
