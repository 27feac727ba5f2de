"""Makes docs/adaptation.md and its figures from the records of `adaptation_pays`. Run by `make docs` through `benchmarks.tables`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.report.figures import SPARE, Line, alone, draw

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
JOBS = ("mnist10k", "fsdd_known", "fsdd", "tram")
ARMS = (("base", "from the base", SPARE[0]), ("scratch", "from scratch", SPARE[1]))


def newest() -> dict[str, dict[str, Any]]:
    """Job -> its newest record; jobs without a record are left out."""
    paths = {job: RESULTS / f"adaptation_pays_{job}.jsonl" for job in JOBS}
    return {job: json.loads(path.read_text().splitlines()[-1]) for job, path in paths.items() if path.exists()}


def sizes(record: dict[str, Any]) -> list[int]:
    """Numbers of labels that a record has."""
    return sorted(int(name.removeprefix("gain_at_")) for name in record["metrics"] if name.startswith("gain_at_"))


def figure(record: dict[str, Any]) -> str:
    """Accuracy over labels, both arms; dots are the lowest and the highest draw."""
    labels, lines = sizes(record), []
    for arm, called, colour in ARMS:
        metrics = [record["metrics"][f"{arm}_at_{size}"] for size in labels]
        dots = (np.repeat(np.array(labels, float), 2), np.array([metric[part] for metric in metrics for part in ("min", "max")]))
        lines.append(Line(called, np.array(labels, float), np.array([metric["median"] for metric in metrics]), colour, dots=dots))
    return alone(draw(lines, x_label="labelled examples", y_format="%", x_ticks=labels))


def page() -> str:
    """docs/adaptation.md."""
    found = newest()
    parts = [
        "# Does adaptation pay?",
        "",
        "Made from `benchmarks/results/` by `make docs`; do not edit. `python -m benchmarks.adaptation_pays` measures it.",
        "",
        "The same labels, the same steps, the same network: once from a pre-trained base, once from fresh weights. Each arm has the learning rate that a",
        "validation part chose for it; the test part decided nothing. Accuracy is the median of three draws of labels, lowest and highest in brackets;",
        "the gain is taken draw by draw.",
        "",
        "| job | labels | from the base | from scratch | gain, points |",
        "| --- | ---: | --- | --- | --- |",
    ]
    for record in found.values():
        for size in sizes(record):
            base, scratch, gain = (_spread(record["metrics"][f"{name}_at_{size}"]) for name in ("base", "scratch", "gain"))
            parts.append(f"| {record['conditions']['job']} | {size:,} | {base} % | {scratch} % | {gain} |")
    parts += ["", verdict(found)]
    for job, record in found.items():
        told = record["conditions"]
        parts += ["", f"## {told['job'][0].upper()}{told['job'][1:]}", ""]
        parts += [f"![Accuracy over labelled examples, from the base and from scratch](figures/adaptation_pays_{job}.svg)", ""]
        parts += [f"- Base: {told['base']}."]
        parts += [f"- {told['classes']} classes, {told['test things']} test things; {told['both arms']}."]
        parts += [f"- Learning rate: {told['learning rate']}."]
        parts += [f"- {record['device']}, {record['date'][:10]}, {told['processor time of both arms']} of processor time for both arms together."]
    return "\n".join(parts) + "\n"


def verdict(found: dict[str, dict[str, Any]]) -> str:
    """In words: where the base wins in every draw, and where it does not."""
    cases = [(record["conditions"]["job"], size, record["metrics"][f"gain_at_{size}"]) for record in found.values() for size in sizes(record)]
    short = [f"{job} at {size:,} labels ({_spread(gain)} points)" for job, size, gain in cases if gain["min"] <= 0]
    won = f"The base wins in every draw of {len(cases) - len(short)} of {len(cases)} cases."
    return won if not short else f"{won} Not in every draw: {'; '.join(short)}."


def _spread(metric: dict[str, Any]) -> str:
    return f"{metric['median']:.1f} ({metric['min']:.1f} .. {metric['max']:.1f})"


def write() -> None:
    """The page and its figures."""
    figures = ROOT / "docs" / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for job, record in newest().items():
        (figures / f"adaptation_pays_{job}.svg").write_text(figure(record), encoding="utf-8")
    (ROOT / "docs" / "adaptation.md").write_text(page(), encoding="utf-8")
