"""TRAM's sentences and ATT&CK's own -> learn.jsonl and judged.jsonl: text, label, report, counts.

ATT&CK tells of every group and program in a sentence which techniques it used: the same kind of sentence, by other hands, so each counts less.
Judged are sentences of reports that nothing was learned from; what ATT&CK says with one of these reports as its source is left out.

    python recipes/attack-techniques/prepare.py tram.json enterprise-attack.json FOLDER
"""

import json
import re
import sys
import zipfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

COUNTS = 0.3
"""What a sentence of ATT&CK counts beside one of a report (chosen on held-out reports; 0.1 and 1 are a little worse)."""
JUDGED = 0.15
SHORTEST_TITLE = 12
"""Letters from which on a title tells which report it is."""


@dataclass(frozen=True)
class Example:
    """One sentence."""

    text: str
    label: str
    report: str
    """The report that it is from, or the group or program that ATT&CK tells of."""
    counts: float
    sources: tuple[str, ...] = ()
    """Titles that ATT&CK names for it."""


def sentences(tram: Path) -> list[Example]:
    """TRAM's own."""
    return [Example(row["text"], row["label"], row["doc_title"], 1.0) for row in json.loads(tram.read_text(encoding="utf-8"))]


def procedures(attack: Path, labels: Collection[str]) -> list[Example]:
    """ATT&CK's sentences about the techniques in `labels`.

    Args:
        attack: enterprise-attack.json, or a zip that holds it.
        labels: technique numbers; one that was revoked stands for what replaced it.
    """
    if attack.suffix == ".zip":
        with zipfile.ZipFile(attack) as archive:
            bundle = json.loads(archive.read("enterprise-attack.json"))
    else:
        bundle = json.loads(attack.read_text(encoding="utf-8"))
    things: dict[str, dict[str, Any]] = {thing["id"]: thing for thing in bundle["objects"]}
    relations = [thing for thing in bundle["objects"] if thing["type"] == "relationship"]
    became = {one["source_ref"]: one["target_ref"] for one in relations if one["relationship_type"] == "revoked-by"}
    wanted = {}
    for name, thing in things.items():
        numbers = [r.get("external_id") for r in thing.get("external_references", []) if r.get("source_name") == "mitre-attack"]
        if thing["type"] == "attack-pattern" and numbers and numbers[0] in labels:
            wanted[became.get(name, name)] = numbers[0]
    made = []
    for one in relations:
        if one["relationship_type"] == "uses" and one["target_ref"] in wanted and one.get("description"):
            actor = things.get(one["source_ref"], {}).get("name", "")
            sources = tuple(f"{r.get('source_name', '')} {r.get('description', '')}" for r in one.get("external_references", []))
            if text := plain(one["description"]).removeprefix(actor).strip():
                made.append(Example(text, wanted[one["target_ref"]], f"ATT&CK: {actor}", COUNTS, sources))
    return made


def plain(text: str) -> str:
    """Without citations, links and marks of code."""
    text = re.sub(r"\(Citation:[^)]*\)|</?code>", "", text)
    return re.sub(r"\s+", " ", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)).strip()


def without(examples: list[Example], reports: Collection[str]) -> list[Example]:
    """Those that do not name one of the reports as a source."""
    titles = [title for title in map(_letters, reports) if len(title) >= SHORTEST_TITLE]
    return [one for one in examples if not any(title in source for source in map(_letters, one.sources) for title in titles)]


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def prepare(tram: Path, attack: Path, folder: Path, every: int = 1) -> Path:
    """Write both files, of every so many-th sentence; the folder."""
    own = sentences(tram)[::every]
    reports = sorted({one.report for one in own})
    judged = set(np.random.default_rng(0).permutation(reports)[: max(1, round(JUDGED * len(reports)))].tolist())
    learned = [one for one in own if one.report not in judged]
    known = {one.label for one in learned}
    more = without(procedures(attack, known), judged)[::every]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("learn", learned + more), ("judged", [one for one in own if one.report in judged and one.label in known])):
        kept = [{key: value for key, value in asdict(one).items() if key != "sources"} for one in rows]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return folder


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
