"""Adapters: no change at the start, the slow twin's values and gradients, merged and unmerged alike, mixtures as PEFT makes them."""

import copy

import pytest
import torch
import torch.nn.functional as F

from bedplate.core.errors import StateError
from bedplate.model.adapters import AdapterShape, Merged, attach, combine, detach, freeze, merge_several, projections, quantise, trained
from bedplate.model.families import TARGETS
from bedplate.testing.models import tiny_config, tiny_model

ids = torch.randint(20, 320, (2, 24), generator=torch.Generator().manual_seed(0))
KINDS = {
    "lora": AdapterShape(4, 8.0),
    "rslora": AdapterShape(4, 8.0, rslora=True),
    "dora": AdapterShape(4, 8.0, dora=True),
    "some": AdapterShape(3, 6.0, targets=("v_proj", "up_proj", "down_proj")),
    "some-dora": AdapterShape(3, 6.0, dora=True, targets=("q_proj", "gate_proj")),
}


def stirred(model, seed=0, spread=0.1):
    """Adapters that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in trained(model).values():
            weight.add_(spread * torch.randn(weight.shape, generator=generator))
    return model


def slow_twin(x, *group):
    """W + s B A written out, one projection after the other, by autograd alone."""
    parts = []
    for p in group:
        weight = p.matrix(torch.float32).detach()
        if p.adapter is not None:
            weight = weight + p.adapter.scale * p.adapter.B @ p.adapter.A
            if p.adapter.magnitude is not None:
                weight = (p.adapter.magnitude / weight.norm(dim=1).detach())[:, None] * weight
        parts.append(F.linear(x, weight, p.bias))
    return torch.cat(parts, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing(kind):
    model = tiny_model(random=True)
    before = model.forward_tokens(ids)
    weights = attach(model, KINDS[kind])
    assert set(weights) == {f"{name}.adapter.{part}" for name, p in projections(model) if p.adapter for part in ("A", "B", *["magnitude"] * KINDS[kind].dora)}
    assert {name.split(".")[-3] for name in weights} == set(KINDS[kind].targets)
    torch.testing.assert_close(model.forward_tokens(ids), before, rtol=0, atol=1e-6)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == list(weights)
    torch.testing.assert_close(model.forward_tokens(ids[:, :1]), before[:, :1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_the_slow_twin(kind, bits, monkeypatch):
    model = tiny_model(random=True)
    if bits:
        quantise(model, bits)
    attach(model, KINDS[kind])
    stirred(model)
    results = []
    for twin in (False, True):
        if twin:
            monkeypatch.setattr("bedplate.model.transformer.together", slow_twin)
            monkeypatch.setattr("bedplate.model.projection.together", slow_twin)
        model.zero_grad()
        x = model.model.embed_tokens(ids).detach().requires_grad_()
        logits = model.logits(model.model(x))
        F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        results.append([logits.detach(), x.grad, *[p.grad for p in trained(model).values()]])
    for fast, slow in zip(*results, strict=True):
        assert (fast - slow).norm() <= 2e-5 * slow.norm()


def test_dropout_hides_inputs_from_the_low_rank_part_in_training_alone():
    model = stirred_model = tiny_model(random=True)
    attach(model, AdapterShape(4, 8.0, dropout=0.5))
    stirred(model)
    model.eval()
    quiet = model.forward_tokens(ids)
    torch.testing.assert_close(model.forward_tokens(ids), quiet)
    model.train()
    torch.manual_seed(0)
    first = model.forward_tokens(ids)
    first.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained(stirred_model).values())
    torch.manual_seed(0)
    assert torch.equal(first, model.forward_tokens(ids)) and (first - quiet).abs().max() > 1e-3
    detach(model)
    plain = model.forward_tokens(ids)
    model.eval()
    assert torch.equal(plain, model.forward_tokens(ids))


def test_a_frozen_model_keeps_its_values_and_copies_no_matrix(monkeypatch):
    model = tiny_model(random=True)
    before, stored = model.forward_tokens(ids), {name: p.clone() for name, p in model.state_dict().items()}
    freeze(model)
    monkeypatch.setattr("bedplate.model.projection.torch.cat", lambda parts, dim=0: pytest.fail("copied") if dim == 0 else torch.concat(parts, dim))
    torch.testing.assert_close(model.forward_tokens(ids), before)
    assert all(torch.equal(p, stored[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged_and_back(kind):
    model = tiny_model(random=True)
    base = {name: p.clone() for name, p in model.state_dict().items()}
    attach(model, KINDS[kind])
    before = stirred(model).forward_tokens(ids)
    merged = Merged(model)
    assert not trained(model) and set(model.state_dict()) == set(base) and merged.error == (0, 0)
    torch.testing.assert_close(model.forward_tokens(ids), before, rtol=0, atol=1e-5)
    merged.undo()
    torch.testing.assert_close(model.forward_tokens(ids), before, rtol=0, atol=1e-5)
    detach(model)
    for name, p in model.state_dict().items():
        torch.testing.assert_close(p, base[name], rtol=0, atol=1e-6)
    with pytest.raises(StateError, match="no adapter"):
        Merged(model)


@pytest.mark.parametrize("bits,most", [(8, 0.01), (4, 0.12)])
def test_a_merge_into_few_bits_says_what_it_lost(bits, most):
    model = tiny_model(random=True)
    quantise(model, bits)
    attach(model, KINDS["lora"])
    before = stirred(model).forward_tokens(ids)
    codes = {name: p.quantised.codes.clone() for name, p in projections(model)}
    merged = Merged(model)
    assert 0 < merged.error.of_weights < most and merged.error.of_change > merged.error.of_weights
    assert 0 < (model.forward_tokens(ids) - before).abs().mean() < before.std() * most * 5
    merged.undo()
    assert torch.equal(model.forward_tokens(ids), before) and all(torch.equal(p.quantised.codes, codes[name]) for name, p in projections(model))


def test_mixtures_are_weighted_sums_of_changes():
    model = tiny_model(random=True)
    base = copy.deepcopy(model)
    sets, changed = [], []
    for seed, kind in enumerate(("lora", "dora")):
        worker = copy.deepcopy(base)
        attach(worker, KINDS[kind], seed)
        stirred(worker, seed)
        sets.append({f"{name}.weight": p.adapter.changed for name, p in projections(worker) if p.adapter})
        Merged(worker)
        changed.append(worker)
    merge_several(model, sets, [0.7, -0.2])
    for name, weight in model.state_dict().items():
        wanted = base.state_dict()[name] + 0.7 * (changed[0].state_dict()[name] - base.state_dict()[name]) - 0.2 * (changed[1].state_dict()[name] - base.state_dict()[name])
        torch.testing.assert_close(weight, wanted, rtol=0, atol=1e-6)
    alone = copy.deepcopy(base)
    merge_several(alone, sets[:1], [1.0], "ties", density=1.0)
    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(weight, changed[0].state_dict()[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_ties_as_peft_does_it(density):
    utilities = pytest.importorskip("peft.utils.merge_utils", reason="a part of the extra `oracle`")
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(12, 20, generator=generator) for _ in range(3)]
    weights = [1.0, 0.5, 2.0]
    torch.testing.assert_close(combine(parts, weights, "ties", density), utilities.ties(parts, torch.tensor(weights), density))
    torch.testing.assert_close(combine(parts, weights, "linear"), utilities.task_arithmetic(parts, torch.tensor(weights)))


def test_ties_keeps_what_agrees():
    parts = [torch.tensor([4.0, -3.0, 0.1, 2.0]), torch.tensor([2.0, 1.0, 0.2, -3.0])]
    assert combine(parts, [1.0, 1.0], "ties", 0.75).tolist() == [3.0, -3.0, 0.0, -3.0]


def test_every_family_shape_is_covered():
    model = tiny_model()
    assert {name.rpartition(".")[2] for name, _ in projections(model)} == set(TARGETS) and len(dict(projections(model))) == 7 * tiny_config().num_hidden_layers
