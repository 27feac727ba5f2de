"""Experts: the grouped products against their slow twin, adapters with peft, few bits, the engine, and refusals where experts are not computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import BedplateError, ConfigError, DataError
from bedplate.infer.cpu.runner import CpuRunner
from bedplate.infer.engine_settings import EngineSettings, open_runner
from bedplate.infer.torch_runner import TorchRunner
from bedplate.model.adapters import AdapterShape, attach, quantise, trained
from bedplate.model.arithmetic import flops_per_token, parameters
from bedplate.model.config import ModelConfig
from bedplate.model.feed_forward import Experts
from bedplate.model.formats import peft as ours
from bedplate.model.formats.gguf.shape import metadata
from bedplate.model.foundation import FoundationModel
from bedplate.testing.models import EXPERTS, family_model

transformers = pytest.importorskip("transformers", reason="a part of the extra `oracle`")
peft = pytest.importorskip("peft", reason="a part of the extra `oracle`")

ids = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=EXPERTS)
def family(request):
    return request.param


def one_by_one(experts, x):
    """The slow twin: every position by itself."""
    rows = []
    for row in x:
        shares = torch.softmax(experts.gate(row), -1)
        best = shares.argsort(descending=True)[: experts.chosen]
        whole = shares[best].sum() if experts.normalised else 1.0
        rows.append(sum(shares[e] / whole * experts.experts[e].down_proj(F.silu(experts.experts[e].gate_proj(row)) * experts.experts[e].up_proj(row)) for e in best))
    return torch.stack(rows)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 9), st.data(), st.booleans(), st.integers(0, 99))
def test_grouped_products_are_those_of_every_position(positions, experts, data, normalised, seed):
    chosen = data.draw(st.integers(1, experts))
    shape = replace(EXPERTS["qwen3-moe"], num_experts=experts, num_experts_per_tok=chosen, norm_topk_prob=normalised)
    torch.manual_seed(seed)
    module, x = Experts(shape), torch.randn(positions, 32, requires_grad=True)
    torch.testing.assert_close(module(x), one_by_one(module, x), rtol=1e-4, atol=1e-6)
    grads = [torch.autograd.grad(made.square().sum(), [x, module.gate.weight]) for made in (module(x), one_by_one(module, x))]
    for mine, theirs in zip(*grads):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_a_position_does_not_see_its_batch(family):
    model = family_model(family)
    layer = next(module for module in model.modules() if isinstance(module, Experts))
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x)[7:9], layer(x[7:9]), rtol=1e-5, atol=1e-6)


def test_only_used_experts_count_as_work(family):
    config = EXPERTS[family]
    more = replace(config, num_experts=config.num_experts + 4)
    assert parameters(more).total - parameters(config).total == len(config.expert_layers) * 4 * (32 + 3 * 32 * config.moe_intermediate_size)
    assert flops_per_token(more, 64) - flops_per_token(config, 64) == 6 * len(config.expert_layers) * 4 * 32  # the router's rows alone


@torch.no_grad()
@pytest.mark.parametrize("shape", [AdapterShape(4, 8.0), AdapterShape(4, 8.0, dora=True, targets=("q_proj", "o_proj"))], ids=["lora", "dora"])
def test_adapters_of_attention_go_both_ways(family, shape, tmp_path):
    shape = replace(shape, targets=tuple(name for name in shape.targets if name in ("q_proj", "k_proj", "v_proj", "o_proj")))
    family_model(family).save(tmp_path / "base")
    model = FoundationModel.load(tmp_path / "base")
    weights = attach(model, shape)
    generator = torch.Generator().manual_seed(3)
    for weight in weights.values():
        weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    (tmp_path / "ours").mkdir()
    ours.write(tmp_path / "ours", model, shape, "base")
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "ours").eval()
    torch.testing.assert_close(model.eval().forward_tokens(ids), theirs(ids).logits, rtol=0, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    again = FoundationModel.load(tmp_path / "base")
    assert (again.forward_tokens(ids) - theirs(ids).logits).abs().max() > 0.01
    ours.put_on(again, ours.read(tmp_path / "theirs", again))
    torch.testing.assert_close(again.forward_tokens(ids), theirs(ids).logits, rtol=0, atol=1e-4)


def test_adapters_stay_off_experts(family, tmp_path):
    model = family_model(family)
    attach(model, AdapterShape(2, 4.0))
    assert all("self_attn" in name or (family == "qwen3-moe" and "layers.1.mlp" in name) for name in trained(model))
    if family == "mixtral":
        with pytest.raises(ConfigError, match="outside of experts"):
            attach(model, AdapterShape(2, 4.0, targets=("up_proj",)))
    family_model(family).save(tmp_path / "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft.get_peft_model(theirs, peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])).save_pretrained(tmp_path / "theirs")
    with pytest.raises(DataError, match="target_parameters"):
        ours.read(tmp_path / "theirs", model)


@torch.no_grad()
def test_experts_in_few_bits(family):
    model, exact = family_model(family), family_model(family)
    quantise(model, 8)
    error = (model.forward_tokens(ids) - exact.forward_tokens(ids)).norm() / exact.forward_tokens(ids).norm()
    assert 0 < error < 0.05


def test_the_engine_takes_torch(family):
    settings = EngineSettings(device="cpu", cache_bytes=2**20)
    model = family_model(family)
    with pytest.raises(ConfigError, match="experts of a .* are not in the compiled trunk"):
        CpuRunner(model, settings.derive(model))
    assert isinstance(open_runner(model, settings).runner, TorchRunner)


def test_where_experts_have_no_place(family):
    with pytest.raises(BedplateError, match="experts, which are not written to GGUF"):
        metadata(EXPERTS[family])
    with pytest.raises(ConfigError, match="num_experts = 4 does not exist"):
        ModelConfig(96, 32, 48, 1, 4, 2, 8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
    with pytest.raises(ConfigError, match="leave nothing to compute"):
        replace(EXPERTS[family], num_experts_per_tok=np.iinfo(int).max)
