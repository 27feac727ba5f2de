"""How fast a corpus is built from raw text, end to end, and whether memory stays flat when the input grows tenfold.

    python -m benchmarks.corpus_build [--megabytes 25] [--repeat 3]

Input: real prose and code in documents of about 4 kB, each made unique by shuffling its own lines (a copy would be dropped as a duplicate
before the tokenizer sees it), as JSONL. Timed is the whole command, from listing to the sealed folder, tokenizer training included. Memory is
the largest sum over the building process and its workers of what belongs to each alone (USS), so that shared libraries and the page cache,
which the system takes back when it wants, do not count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from benchmarks.inputs import SCRATCH, shared
from benchmarks.record import append

DOCUMENT_BYTES = 4096
FILE_BYTES = 4 << 20


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=25)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    folder = SCRATCH / "corpus_build"
    small, data = write_input(folder / "small", arguments.megabytes * 1_000_000, seed=0)
    large, _ = write_input(folder / "large", arguments.megabytes * 10_000_000, seed=1)
    rates: list[float] = []
    peaks: dict[str, list[float]] = {"small": [], "large": []}
    documents = {}
    for turn in range(arguments.repeat):
        for name, size in (("small", small), ("large", large)):
            seconds, peak, documents[name] = build(folder / name, folder / f"corpus-{name}", arguments.workers)
            peaks[name].append(peak)
            print(f"turn {turn + 1}, {name}: {size / 1e6 / seconds:.2f} MB/s, peak {peak / 2**20:.0f} MiB", flush=True)
            if name == "large":
                rates.append(size / 1e6 / seconds)
    append(
        "corpus_build",
        conditions={
            "data": data,
            "small": f"{small / 1e6:.0f} MB, {documents['small']:,} documents kept",
            "large": f"{large / 1e6:.0f} MB, {documents['large']:,} documents kept",
            "workers": arguments.workers,
            "settings": "defaults: clean, privacy report, exact and near dedupe, poison signals, tokenizer trained, digests",
            "other load on the machine": f"{psutil.getloadavg()[0]:.1f} at the end, own work included",
        },
        metrics={
            "raw_text_rate": (rates, "MB/s"),
            "peak_memory_small": ([peak / 2**20 for peak in peaks["small"]], "MiB"),
            "peak_memory_large": ([peak / 2**20 for peak in peaks["large"]], "MiB"),
            "peak_memory_ratio_tenfold": ([b / a for a, b in zip(peaks["small"], peaks["large"])], "ratio"),
        },
    )


def build(source: Path, corpus: Path, workers: int) -> tuple[float, float, int]:
    """(seconds, peak bytes, documents kept) of one build in a process of its own."""
    shutil.rmtree(corpus, ignore_errors=True)
    shutil.rmtree(corpus.with_name(corpus.name + ".run"), ignore_errors=True)
    command = [sys.executable, "-m", "bedplate.cli.app", "data", "build", str(source), "--to", str(corpus), "--set", f"workers={workers}", "--json"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = [0.0]
    watcher = threading.Thread(target=watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    out, _ = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"the build failed with exit code {process.returncode}")
    kept = sum(json.loads(out)["counts"]["kept"].values())
    shutil.rmtree(corpus)
    return seconds, peak[0], kept


def watch(pid: int, peak: list[float]) -> None:
    """Keep the largest memory that a process and its children had to themselves."""
    while True:
        try:
            parent = psutil.Process(pid)
            total = 0
            for process in [parent, *parent.children(recursive=True)]:
                try:
                    total += process.memory_full_info().uss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
        except psutil.NoSuchProcess:
            return
        peak[0] = max(peak[0], total)
        time.sleep(0.05)


def write_input(folder: Path, size: int, seed: int) -> tuple[int, str]:
    """Write JSONL files of about `size` bytes of text; gives (bytes of text, what it is made of). An earlier input of that size is used again."""
    texts, name = originals()
    done = folder.with_name(folder.name + ".json")
    if done.exists() and (found := json.loads(done.read_text()))["wanted"] == size:
        return int(found["bytes"]), name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    written = number = 0
    documents = unique_documents(texts, seed)
    while written < size:
        with (folder / f"part-{number:05d}.jsonl").open("w", encoding="utf-8") as handle:
            held = 0
            while held < FILE_BYTES and written + held < size:
                text = next(documents)
                handle.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                held += len(text.encode())
        written += held
        number += 1
    done.write_text(json.dumps({"wanted": size, "bytes": written}))
    return written, name


def unique_documents(texts: list[str], seed: int) -> Iterator[str]:
    """Documents without end: stretches of the originals, their lines in a random order."""
    rng = np.random.default_rng(seed)
    whole = "\n".join(texts)
    while True:
        start = int(rng.integers(0, len(whole) - 2 * DOCUMENT_BYTES))
        lines = whole[start : start + int(rng.integers(DOCUMENT_BYTES // 2, 2 * DOCUMENT_BYTES))].split("\n")
        rng.shuffle(lines)
        yield "\n".join(lines)


def originals() -> tuple[list[str], str]:
    """Real texts and their name for the record."""
    found = [path for name in ("text/litbank.zip", "text/peps.zip", "code/thealgorithms.zip") if (path := shared(name))]
    if found:
        texts = []
        for path in found:
            with zipfile.ZipFile(path) as archive:
                names = [n for n in archive.namelist() if n.endswith((".txt", ".rst", ".py"))]
                texts += [archive.read(n).decode("utf-8", errors="replace") for n in names]
        return texts, "litbank, peps and TheAlgorithms in documents of about 4 kB, lines shuffled, JSONL"
    import sysconfig

    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [f.read_text(encoding="utf-8", errors="replace") for f in files], "Python standard library in documents of about 4 kB, lines shuffled, JSONL"


if __name__ == "__main__":
    main()
