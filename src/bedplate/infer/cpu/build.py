"""The compiled trunk: made on this machine, for this machine, the first time it is asked for, and kept.

Nothing is downloaded: the sources lie beside this file. What was made bears the digest of sources, compiler and processor in its name, so it
is made anew when one of them changes. `BEDPLATE_KERNELS=off` does without.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bedplate.core.errors import ResourceError
from bedplate.core.home import home

SOURCES = ("trunk.cpp", "attention.h", "bytes.h", "dots.h", "matrix.h", "nibbles.h", "packed.h", "pool.h", "simd.h")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-w")
THIS_MACHINE = ("-march=native",)
BUILD_S = 300.0
"""Longest time that a compiler gets; it takes about ten seconds."""


@functools.cache
def library(instructions: tuple[str, ...] = THIS_MACHINE) -> ctypes.CDLL:
    """The compiled trunk.

    Args:
        instructions: the compiler's flags that say which the processor has; others than this machine's serve tests.
    Raises:
        ResourceError: there is no compiler, it failed, or it was turned off.
    """
    if os.environ.get("BEDPLATE_KERNELS", "").lower() in ("off", "0", "no"):
        raise ResourceError("the compiled trunk is turned off by BEDPLATE_KERNELS", "unset it")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise ResourceError("there is no C++ compiler", "install g++ or clang++, or name one in CXX; until then torch computes")
    try:
        path = _kept(compiler, (*FLAGS, *instructions))
        if not path.exists():
            _make(compiler, path, (*FLAGS, *instructions))
        return ctypes.CDLL(str(path))
    except OSError as error:
        hint = f"remove {home() / 'kernels'}, or name a folder of your own whose files may be run in BEDPLATE_HOME; until then torch computes"
        raise ResourceError(f"the compiled trunk cannot be kept or loaded: {error}", hint) from error


def _kept(compiler: str, flags: Sequence[str]) -> Path:
    version = _run([compiler, "--version"]).stdout
    digest = hashlib.sha256("\0".join((*flags, version, _processor())).encode())
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    folder = home() / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_mode & 0o022 or folder.stat().st_uid != os.getuid():  # what lies here is run
        raise ResourceError(f"others may write into {folder}", f"chmod go-w {folder}, as its owner")
    return folder / f"trunk-{digest.hexdigest()[:16]}.so"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))))


def _make(compiler: str, path: Path, flags: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        done = _run([compiler, *flags, "-o", str(made), str(Path(__file__).with_name(SOURCES[0]))])
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            raise ResourceError(f"{compiler} failed: {first}", "name another compiler in CXX; until then torch computes")
        made.chmod(0o700)
        made.replace(path)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ResourceError(f"{command[0]} could not be run: {error}", "name another compiler in CXX; until then torch computes") from error
