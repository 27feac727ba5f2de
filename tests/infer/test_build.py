"""The compiled trunk: every code path gives the same numbers; whatever keeps it from being made, torch computes the same answers."""

import ctypes
import os
import platform
import re
import shutil
import stat

import numpy as np
import pytest
from paged import apart, embedded, plainly, shape, through

from bedplate.core.errors import ResourceError
from bedplate.core.generation import Sampling
from bedplate.infer.cpu import build, runner
from bedplate.infer.cpu.pack import Packer
from bedplate.infer.cpu.runner import CpuRunner
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.request import Request
from bedplate.testing.bases import base_of
from bedplate.testing.heard import Heard
from bedplate.testing.models import FAMILIES, family_model
from bedplate.testing.requests import words

PATHS = {"avx2": ("-mavx2", "-mfma", "-mf16c", "-mno-avx512f"), "avx512bw": ("-march=skylake-avx512",), "plain": ("-march=x86-64",)}
INTEL = platform.machine() in ("x86_64", "AMD64")


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A home of its own, and nothing remembered."""
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path))
    build.library.cache_clear()
    yield tmp_path / "kernels"
    build.library.cache_clear()


def compiled(monkeypatch, model, precision, path):
    monkeypatch.setattr(runner, "library", lambda: build.library(PATHS[path]) if path else build.library())
    return CpuRunner(model, shape(precision, threads=2))


@pytest.mark.skipif(not INTEL, reason="the other code paths are of x86-64 processors")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_code_path_gives_the_same_numbers(monkeypatch, family, path):
    model = family_model(family)
    sequences = embedded(model, (40, 23))
    made = {}
    for precision in ("float32", "int8", "int4"):
        here, there = compiled(monkeypatch, model, precision, ""), compiled(monkeypatch, model, precision, path)
        a, b = through(here, sequences, (9, 16)), through(there, sequences, (9, 16))
        alone = through(there, sequences[:1])
        assert np.array_equal(b[0], alone[0]), "company changes nothing on this path either"
        states = np.concatenate(a)[:30]
        made[precision] = (a, b, here.logits(states).copy(), there.logits(states).copy())
        assert np.array_equal(here.likeliest(made[precision][2]), there.likeliest(made[precision][2]))
        here.close()
        there.close()
    a, b, here, there = made["float32"]
    assert all(apart(x, y) < 1e-5 for x, y in zip(b, a)) and apart(there, here) < 1e-5
    for precision in ("int8", "int4"):
        a, b, here, there = made[precision]
        assert apart(there, here) < 1e-6
        # A sum that differs in its last bit may be rounded to the other side, once in a while: far less than rounding costs at all.
        assert all(apart(y, x) <= 0.3 * apart(x, plainly(model, one)) for one, x, y in zip(sequences, a, b))


@pytest.mark.skipif(not INTEL, reason="the other code paths are of x86-64 processors")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("inputs", [4, 20, 48, 64])
def test_whole_numbers_are_the_same_bit_for_bit(path, inputs):
    """One group of inputs: a product is a whole number times two scales, with nothing to be rounded on the way."""
    rng = np.random.default_rng(inputs)
    weight, x = rng.standard_normal((37, inputs)).astype(np.float32), rng.standard_normal((19, inputs)).astype(np.float32)
    x[3] = 0
    x[4] = np.arange(inputs) % 2 * 2 - 1
    x[5, : inputs // 2] *= np.float32(1e-30)
    x[6] = np.linspace(-127, 127, inputs).round() / 2  # halves: to the even number on every path
    made = []
    for instructions in (build.THIS_MACHINE, PATHS[path]):
        made.append(product(build.library(instructions), weight, x))
    assert np.array_equal(made[0], made[1])
    np.testing.assert_allclose(made[0], rounded(x) @ rounded(weight).T, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not INTEL, reason="the other code paths are of x86-64 processors")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("inputs", [16, 48, 64])
def test_four_bits_are_the_same_on_every_path(path, inputs):
    """As near as they can be: exact on a line of 16 numbers, nearer than from the least to the greatest elsewhere; never beyond 16 bits."""
    rng = np.random.default_rng(inputs)
    weight, x = rng.standard_normal((41, inputs)).astype(np.float32), rng.standard_normal((19, inputs)).astype(np.float32)
    weight[3], weight[4], weight[5] = 0, 0.7, 1e-20 * weight[5]
    weight[6], weight[7] = 1000 + weight[6], -5
    weight[8:24] = rng.integers(0, 16, (16, inputs)) * 0.03 - 0.2
    weight[24], x[3], x[4] = np.where(np.arange(inputs) % 2, 15, 0), 127, -127  # the largest sums that 16 bits must hold
    here, there = (product(build.library(flags), weight, x, "int4") for flags in (build.THIS_MACHINE, PATHS[path]))
    exact = rounded(x) @ weight.T.astype(np.float64)
    sizes = np.abs(rounded(x)) @ np.abs(weight.T)
    assert np.all(np.abs(here - there) <= 1e-6 * sizes)
    on_lines = [3, 4, 7, *range(8, 25)]
    assert np.all(np.abs(here - exact)[:, on_lines] <= 4e-3 * sizes[:, on_lines])
    groups = weight.reshape(len(weight), -1, inputs // 2)
    low, high = groups.min(2, keepdims=True), groups.max(2, keepdims=True)
    plain = (np.rint((groups - low) / np.maximum((high - low) / 15, 1e-30)) * (high - low) / 15 + low).reshape(weight.shape)
    rows = [0, 1, 2, 5, *range(25, 41)]
    assert np.linalg.norm((here - exact)[:, rows]) < np.linalg.norm(rounded(x) @ (plain - weight).T[:, rows])


def rounded(rows):
    scale = np.maximum(np.abs(rows).max(1, keepdims=True), np.float32(1e-30))
    return np.rint(rows * (np.float32(127) / scale)).astype(np.float64) * scale / 127


def product(library, weight, x, precision="int8"):
    """x W' as head_run makes it."""
    import torch

    from bedplate.infer.cpu.structs import LANES, Scratch, at

    library.pool_open.restype = ctypes.c_void_p
    pool = ctypes.c_void_p(library.pool_open(1))
    packer = Packer(library, pool)
    matrix = packer.matrix(torch.from_numpy(weight), None, precision)
    n, stride = len(x), (-(-len(weight) // LANES) + 1) * LANES
    out, scale, offset, small = np.zeros((n, stride), np.float32), np.zeros(n * x.shape[1], np.float32), np.zeros(n * x.shape[1], np.int32), np.zeros(x.size + 64, np.int8)
    scratch = Scratch(None, None, None, None, None, None, at(scale), at(small), at(offset), 0, 0)
    library.head_run(pool, ctypes.byref(matrix), ctypes.c_void_p(at(x)), n, ctypes.c_void_p(at(out)), ctypes.byref(scratch))
    library.pool_close(pool)
    return out[:, : len(weight)]


def test_it_is_made_once_in_a_folder_that_others_cannot_write(kernels, monkeypatch):
    quickly = ("-O0",)
    build.library(quickly)
    made = list(kernels.iterdir())
    assert len(made) == 1 and stat.S_IMODE(kernels.stat().st_mode) == 0o700 and not made[0].stat().st_mode & 0o022
    build.library.cache_clear()
    monkeypatch.setattr(build, "_make", None)  # it is not made again
    build.library(quickly)
    build.library.cache_clear()
    kernels.chmod(0o777)
    with pytest.raises(ResourceError, match="others may write") as caught:
        build.library(quickly)
    assert "chmod" in caught.value.hint


def broken_compiler(tmp_path, monkeypatch):
    path = tmp_path / "c++"
    path.write_text("#!/bin/sh\necho 'trunk.cpp:1: error: no such thing' >&2\nexit 1\n")
    path.chmod(0o700)
    monkeypatch.setenv("CXX", str(path))


def no_compiler(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)


def missing_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "nowhere"))


def turned_off(tmp_path, monkeypatch):
    monkeypatch.setenv("BEDPLATE_KERNELS", "off")


def damaged_file(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_make", lambda compiler, path, flags: path.write_bytes(b"no library"))


def home_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "file"))


HINDRANCES = {
    broken_compiler: "no such thing", no_compiler: "no C\\+\\+ compiler", missing_compiler: "nowhere", turned_off: "turned off",
    damaged_file: "loaded", home_is_a_file: "kept or loaded",
}  # fmt: skip


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_where_it_cannot_be_made_torch_says_the_same(kernels, monkeypatch, hindrance):
    base = base_of(family_model("qwen3"))
    usual = EngineSettings(precision="float32", threads=1, context=64, cache_bytes=2**20)
    asked = Request(words(base, 30), Sampling(max_tokens=12))
    hindrance(kernels.parent, monkeypatch)
    with pytest.raises(ResourceError, match=HINDRANCES[hindrance]):
        build.library()
    with pytest.raises(ResourceError):
        Engine(base, EngineSettings(precision="float32", backend="cpu"))
    slow = Engine(base, usual)
    tokens = answer(slow, asked)
    assert re.search(f"^torch float32 cpu [(].*{HINDRANCES[hindrance]}.*: .+[)]$", slow.computed_by)
    monkeypatch.undo()
    build.library.cache_clear()
    fast = Engine(base, usual)
    assert fast.computed_by == "cpu float32" and answer(fast, asked) == tokens


def answer(engine, asked):
    heard = Heard()
    engine.submit(asked, heard)
    heard.wait()
    engine.close()
    return heard.tokens


def test_these_tests_have_a_compiler():
    """Not skipped where there is none: the compiled trunk would go untested."""
    assert os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"), "install g++ or clang++ to test the compiled trunk"
