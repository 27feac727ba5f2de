"""A model folder in few bits: the same numbers as in memory, an eighth of the size, a base for adapters; damage and misuse are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from bedplate.adapt.base import Base
from bedplate.adapt.loop import adapt
from bedplate.adapt.merge import merge
from bedplate.adapt.settings import AdaptSettings, ExampleSettings, MethodSettings, TrainSettings
from bedplate.cli.app import main
from bedplate.core.artifact import read_manifest
from bedplate.core.config import Resolved
from bedplate.core.errors import ConfigError, DataError, IntegrityError, StateError
from bedplate.core.run import Run
from bedplate.infer.cpu.runner import CpuRunner
from bedplate.infer.engine_settings import EngineSettings, open_runner
from bedplate.infer.worker import Worker
from bedplate.model.adapters import quantise
from bedplate.model.formats.get import get
from bedplate.model.foundation import FoundationModel
from bedplate.testing.bases import tiny_base
from bedplate.testing.models import FAMILIES, family_model

ids = torch.randint(20, 300, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", params=[8, 4])
def bits(request):
    return request.param


@pytest.fixture(scope="module")
def low(base, bits, tmp_path_factory):
    return get(str(base), tmp_path_factory.mktemp("low") / "low", bits=bits).folder


@torch.no_grad()
def test_the_folder_says_what_memory_says(base, low, bits, tmp_path):
    held, exact = FoundationModel.load(low), FoundationModel.load(base)
    plain = exact.forward_tokens(ids)
    quantise(exact, bits)
    assert torch.equal(held.forward_tokens(ids), exact.forward_tokens(ids)) and not torch.equal(held.forward_tokens(ids), plain)
    assert held.bits == held.config.bits == bits and read_manifest(low).parents == {"model": read_manifest(base).digest}
    stored = {name: t for name, t in load_file(low / "model.safetensors").items() if ".quantised." in name}
    numbers = sum(p.numel() for name, p in FoundationModel.load(base).named_parameters() if "_proj." in name)
    assert sum(t.nbytes for t in stored.values()) < 1.1 * numbers * (bits + 0.5) / 8
    again = get(str(base), low, bits=bits)
    assert not again.made and again.manifest.digest == read_manifest(low).digest
    with pytest.raises(StateError, match=f"in {bits} bits"):
        get(str(base), low)
    held.save(tmp_path / "copy", tokenizer=low, dtype=torch.bfloat16)  # what is in few bits stays as it is
    assert torch.equal(load_file(tmp_path / "copy" / "model.safetensors")["model.layers.0.mlp.up_proj.quantised.scales"],
                       stored["model.layers.0.mlp.up_proj.quantised.scales"])  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_lies_in_few_bits(name, tmp_path):
    model = family_model(name)
    quantise(model, 4)
    model.save(tmp_path)
    torch.testing.assert_close(FoundationModel.load(tmp_path).forward_tokens(ids), model.forward_tokens(ids), rtol=0, atol=0)


def adapted(base, to, method, file):
    asked = AdaptSettings(base, to, "generate", ExampleSettings(file, held_out=0), method, train=TrainSettings(threads=1, epochs=2, lr=1e-2))
    with Run.open(to.with_name(to.name + ".run"), "adapt", Resolved(asked, {})) as run:
        return adapt(asked, run)


@torch.no_grad()
def test_a_base_in_few_bits_learns_what_it_learns_in_memory(base, low, bits, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"river {n}", "completion": "lamps lamps"}) + "\n" for n in range(16)))
    with torch.enable_grad():
        adapted(base, tmp_path / "memory", MethodSettings(rank=4, base_bits=bits), file)
        adapted(low, tmp_path / "disk", MethodSettings(rank=4), file)
    memory, disk = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("memory", "disk"))
    assert all(torch.equal(memory[name], disk[name]) for name in memory)
    assert Worker.load(low, tmp_path / "disk").generate(["river 3"], max_tokens=3) == Worker.load(base, tmp_path / "memory").generate(["river 3"], max_tokens=3)
    merge(low, [tmp_path / "disk"], tmp_path / "merged")
    merged = FoundationModel.load(tmp_path / "merged")
    assert merged.bits is None
    torch.testing.assert_close(merged.forward_tokens(ids), Worker.load(low, tmp_path / "disk").base.model.forward_tokens(ids), rtol=0, atol=1e-5)
    for task, method, error, word in (("generate", "full", ConfigError, "trained in full"), ("continue", "lora", DataError, "trained further")):
        with pytest.raises(error, match=word), torch.enable_grad():
            asked = AdaptSettings(low, tmp_path / task, task, ExampleSettings(file), MethodSettings(method))
            with Run.open(tmp_path / f"{task}.run", "adapt", Resolved(asked, {})) as run:
                adapt(asked, run)


@torch.no_grad()
def test_engines_and_exports_take_it(low, tmp_path, capsys):
    settings = EngineSettings(device="cpu", precision="float32", threads=1, cache_bytes=2**22)
    assert isinstance(open_runner(Base.load(low).model, settings).runner, CpuRunner)
    transformers = pytest.importorskip("transformers", reason="a part of the extra `oracle`")
    with pytest.raises(Exception, match="bedplate"):  # it must not take our codes for weights
        transformers.AutoModelForCausalLM.from_pretrained(low)
    main(["export", str(low), "--to", str(tmp_path / "plain")])
    capsys.readouterr()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    torch.testing.assert_close(theirs(ids).logits, FoundationModel.load(low).forward_tokens(ids), rtol=0, atol=1e-4)


def test_damage_is_told(base, low, tmp_path):
    config, tensors = json.loads((low / "config.json").read_text()), load_file(low / "model.safetensors")
    key = "model.layers.0.mlp.up_proj.quantised.codes"
    for number, (change, changed) in enumerate((
        ({}, {key: tensors[key][:-3]}), ({}, {key: tensors[key].float()}), ({}, {key.replace("codes", "scales"): torch.ones(9000)}),
        ({"quantization_config": None}, {}), ({"quantization_config": {"quant_method": "bedplate", "bits": 3, "block": 64}}, {}),
        ({"quantization_config": {"quant_method": "bedplate", "bits": "x", "block": 64}}, {}), ({"quantization_config": {"quant_method": "awq"}}, {}),
    )):  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | change))
        save_file({**tensors, **changed}, folder / "model.safetensors")
        with pytest.raises((IntegrityError, DataError)):
            FoundationModel.read(folder)
