"""How fast a corpus is built from raw text, end to end, and whether memory stays flat when the input grows tenfold.

    python -m benchmarks.corpus_build [--megabytes 20] [--repeat 3]

Input: real texts and sources as they lie (the development data, the standard library, installed packages), as many as fit into ten times
--megabytes, and a tenth of them. Timed is the whole command, from listing to the sealed folder, start of the processes and training of the
tokenizer included. Memory is the largest sum over the building process and its workers of what belongs to each alone (USS), so that shared
libraries and the page cache, which the system takes back when it wants, do not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil

from benchmarks.inputs import SCRATCH, shared
from benchmarks.record import append


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    folder = SCRATCH / "corpus_build"
    texts, data = originals(arguments.megabytes * 10_000_000)
    small = write_input(folder / "small", texts, arguments.megabytes * 1_000_000)
    large = write_input(folder / "large", texts, arguments.megabytes * 10_000_000)
    del texts
    rates: list[float] = []
    peaks: dict[str, list[float]] = {"small": [], "large": []}
    documents = {}
    cpu: list[float] = []
    for turn in range(arguments.repeat):
        for name, size in (("small", small), ("large", large)):
            before = cpu_s()
            seconds, peak, documents[name] = build(folder / name, folder / f"corpus-{name}", arguments.workers)
            peaks[name].append(peak)
            print(f"turn {turn + 1}, {name}: {size / 1e6 / seconds:.2f} MB/s, peak {peak / 2**20:.0f} MiB", flush=True)
            if name == "large":
                rates.append(size / 1e6 / seconds)
                cpu.append((cpu_s() - before) / (size / 1e6))
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
            "cpu_time": (cpu, "s of processor time a MB"),
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


def cpu_s() -> float:
    """Processor time of all finished children, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
        time.sleep(0.4)  # reading it costs the watched process time


def write_input(folder: Path, texts: list[str], size: int) -> int:
    """Write texts of `size` bytes altogether as files of their own; gives the bytes written."""
    shutil.rmtree(folder, ignore_errors=True)
    written = 0
    for number, text in enumerate(texts):
        if written >= size:
            break
        part = folder / f"{number // 1000:03d}"
        part.mkdir(parents=True, exist_ok=True)
        written += (part / f"{number:06d}.txt").write_bytes(text.encode("utf-8"))
    return written


def originals(size: int) -> tuple[list[str], str]:
    """Real texts of about `size` bytes in a fixed random order, and their name for the record."""
    texts, names = [], []
    for name in ("text/litbank.zip", "text/peps.zip", "text/owasp-cheatsheets.zip", "code/thealgorithms.zip"):
        if path := shared(name):
            names.append(path.stem)
            with zipfile.ZipFile(path) as archive:
                members = [n for n in archive.namelist() if n.endswith((".txt", ".rst", ".md", ".py"))]
                texts += [archive.read(n).decode("utf-8", errors="replace") for n in members]
    held = sum(map(len, texts))
    paths = sysconfig.get_paths()
    files = sorted({p for root in (paths["stdlib"], paths["purelib"]) for p in Path(root).rglob("*.py") if p.stat().st_size > 500})
    np.random.default_rng(0).shuffle(files)  # type: ignore[arg-type]
    for file in files:
        if held >= size:
            break
        texts.append(file.read_text(encoding="utf-8", errors="replace"))
        held += len(texts[-1])
    order = np.random.default_rng(1).permutation(len(texts))
    return [texts[n] for n in order], ", ".join([*names, "sources of Python and installed packages"])


if __name__ == "__main__":
    main()
