"""The one way to keep a measurement: a line of JSON per run in results/<case>.jsonl, with device, versions and commit."""

from __future__ import annotations

import datetime as dt
import json
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bedplate.core.environment import environment
from bedplate.core.units import format_bytes

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Metrics = Mapping[str, tuple[Sequence[float], str]]
"""Name -> (values of the repetitions, unit)."""


def append(case: str, conditions: Mapping[str, Any], metrics: Metrics, results: Path = RESULTS) -> dict[str, Any]:
    """Append one record and print it in a line a metric.

    Args:
        case: the file's name without suffix, such as "corpus_build".
        conditions: what the numbers depend on: data, sizes, settings.
        metrics: name -> (values of the repetitions, unit); median, lowest and highest are kept.
        results: the folder of the records.
    Returns:
        The record as written.
    """
    facts = environment()
    device = f"{facts['processor']}, {facts['cores']} cores, {format_bytes(int(facts['memory_bytes']))}"
    record = {
        "case": case,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": f"{facts['gpu']}; {device}" if "gpu" in facts else device,
        "versions": {name: facts[name] for name in ("bedplate", "python", "torch", "numpy", "pyarrow", "tokenizers") if name in facts},
        "conditions": dict(conditions),
        "metrics": {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values), "unit": unit}
            for name, (values, unit) in metrics.items()
        },
    }
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)  # before the file is opened: a NaN leaves no half line
    results.mkdir(parents=True, exist_ok=True)
    with (results / f"{case}.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(line + "\n")
    for name, (values, unit) in metrics.items():
        print(f"{case}: {name} {statistics.median(values):.4g} {unit} ({min(values):.4g} .. {max(values):.4g}, n={len(values)})", flush=True)
    return record


def commit() -> str:
    """The commit of this checkout, with "+changes" where sources differ from it; "unknown" outside of git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if changed else head


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
