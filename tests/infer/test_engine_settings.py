"""How large an engine's workplaces become: pages take the memory that they were counted with, and what is free is asked of where they lie."""

import numpy as np
import psutil
import pytest
import torch

from bedplate.core.errors import ResourceError
from bedplate.infer import engine_settings
from bedplate.infer.cpu.runner import CpuRunner
from bedplate.infer.engine_settings import GPU_SHARE, MEMORY_SHARE, EngineSettings, open_runner
from bedplate.infer.torch_runner import TorchRunner
from bedplate.testing.models import family_model

MEMORY_BYTES = 400_000
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def model():
    return family_model("qwen3")


def cache_bytes(runner):
    """That keys and values take."""
    if isinstance(runner, TorchRunner):
        return sum(part.numel() * part.element_size() for part in (*runner._keys, *runner._values))
    return sum(part.nbytes for part in runner._cache)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("precision", ["auto", "float32", "int8", "int4"])
def test_pages_take_the_memory_that_was_given(model, backend, precision):
    runner, shape, _ = open_runner(model, EngineSettings(backend=backend, precision=precision, device="cpu", cache_bytes=MEMORY_BYTES, threads=1))
    taken = cache_bytes(runner)
    assert MEMORY_BYTES - taken / shape.pages < taken <= MEMORY_BYTES
    runner.close()


def test_torch_in_the_compilers_place_is_counted_as_torch(model, monkeypatch):
    def refused(model, shape):
        raise ResourceError("no compiler", "install one")

    monkeypatch.setattr(engine_settings, "CpuRunner", refused)
    runner, shape, _ = open_runner(model, EngineSettings(device="cpu", cache_bytes=MEMORY_BYTES))
    assert isinstance(runner, TorchRunner) and MEMORY_BYTES - cache_bytes(runner) / shape.pages < cache_bytes(runner) <= MEMORY_BYTES
    with pytest.raises(ResourceError, match="compiler"):
        open_runner(model, EngineSettings(backend="cpu", device="cpu"))


def test_what_is_free_is_asked_of_the_gpu(model, monkeypatch):
    """By a GPU's word for it, as none need be here."""
    weights = 2 * sum(p.numel() for p in model.parameters())
    free = weights + 10 * MEMORY_BYTES
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    most = EngineSettings(most_running=10**6)
    page = 2 * 2 * np.prod([model.config.num_hidden_layers, model.config.num_key_value_heads, model.config.head_dim, 16])
    assert most.derive(model, torch.bfloat16, CUDA).pages == int(GPU_SHARE * (free - weights)) // page - 1
    assert most.derive(model, torch.float32, CUDA).pages == int(GPU_SHARE * (free - 2 * weights)) // (2 * page) - 1
    free = weights // 2
    with pytest.raises(ResourceError, match="two pages"):
        most.derive(model, torch.bfloat16, CUDA)


def test_what_is_free_is_asked_of_the_machine(model, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": MEMORY_BYTES}))
    for backend in ("cpu", "torch"):
        runner, shape, _ = open_runner(model, EngineSettings(backend=backend, device="cpu", most_running=10**3, context=64, threads=1))
        taken = cache_bytes(runner)
        assert MEMORY_SHARE * MEMORY_BYTES - taken / shape.pages < taken <= MEMORY_SHARE * MEMORY_BYTES
        assert isinstance(runner, CpuRunner) == (backend == "cpu")
        runner.close()
