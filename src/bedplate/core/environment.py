"""What a job runs on: versions, processor, memory. Read without importing torch."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

import bedplate

PACKAGES = ("torch", "numpy", "pyarrow", "tokenizers")
"""Packages whose versions can change a result."""


def environment() -> dict[str, str | int]:
    """Versions, system, processor, cores, memory and GPUs of this machine, JSON-able."""
    facts: dict[str, str | int] = {"bedplate": bedplate.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    facts |= {"system": f"{platform.system()} {platform.release()}", "processor": _processor(), "cores": _cores()}
    facts["memory_bytes"] = memory_bytes()
    if gpus := _gpus():
        facts["gpu"] = ", ".join(gpus)
    return facts


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where a container sets a limit."""
    limits: list[int] = [psutil.virtual_memory().total]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return min(limits)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpus() -> list[str]:
    """Names of NVIDIA GPUs, from the driver's own files."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text(errors="replace").splitlines()
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return found
