from __future__ import annotations

import dataclasses

import pytest
import torch
from small import SmallModel
from torch import nn

from bedplate.core.errors import ConfigError, IntegrityError
from bedplate.pretrain.optim import Optimiser, OptimSettings, group_of, orthogonalise


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8)])
def test_orthogonalise_brings_singular_values_near_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.min() > 0.3 and values.max() < 1.4
    # and keeps the directions: the same as the polar factor of the exact decomposition
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert torch.nn.functional.cosine_similarity((u @ v).flatten(1), orthogonalise(x).flatten(1)).min() > 0.95


def test_stacked_matrices_are_independent():
    x = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([orthogonalise(part[None]) for part in x])
    torch.testing.assert_close(orthogonalise(x), alone, rtol=1e-4, atol=1e-5)


def test_muon_agrees_with_the_one_in_torch():
    """Oracle: torch.optim.Muon, whose iterations run in bfloat16; weight decay is checked apart, as ours is cautious."""
    generator = torch.Generator().manual_seed(2)
    start = [torch.randn(shape, generator=generator) for shape in ((24, 8), (8, 24), (24, 8))]
    ours = [nn.Parameter(w.clone()) for w in start]
    theirs = [nn.Parameter(w.clone()) for w in start]
    named = [(f"layers.{i}.weight", p) for i, p in enumerate(ours)]
    optimiser = Optimiser(named, OptimSettings(lr_matrix=0.02, weight_decay=0.0, orthogonalise_in="bfloat16"))
    oracle = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0, momentum=0.9, nesterov=True)
    for _ in range(5):
        for mine, other in zip(ours, theirs):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        optimiser.step(1.0, 0.9)
        oracle.step()
    for mine, other, first in zip(ours, theirs, start):
        moved = (other - first).norm()
        assert (mine - other).norm() < 0.02 * moved


def test_cautious_decay_only_shrinks_what_the_update_shrinks():
    weight = nn.Parameter(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    plain, decayed = weight, nn.Parameter(weight.detach().clone())
    gradient = torch.tensor([[1.0, 1.0], [0.0, -2.0]])
    for parameter, decay in ((plain, 0.0), (decayed, 0.5)):
        parameter.grad = gradient.clone()
        Optimiser([("layers.0.w", parameter)], OptimSettings(lr_matrix=0.1, weight_decay=decay)).step(1.0, 0.0)
    direction = 1.0 * orthogonalise(gradient[None])[0]
    before = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    shrunk = direction * before > 0
    assert torch.equal((plain - decayed).abs() > 1e-4, shrunk)
    assert bool((decayed.abs() <= plain.abs() + 1e-6).all())


def test_parameters_go_to_their_groups():
    model = SmallModel()
    groups = {name: group_of(name, p) for name, p in model.named_parameters()}
    assert groups["embed_tokens.weight"] == "embedding"
    assert groups["layers.0.up.weight"] == "matrix"
    assert groups["layers.0.norm.weight"] == "vector"
    assert groups["head.weight"] == "head"
    optimiser = Optimiser(model.named_parameters(), OptimSettings())
    assert {id(p) for p in optimiser.parameters} == {id(p) for p in model.parameters()}
    assert len(optimiser.muons) == 2  # two shapes, four matrices


def one_step(settings: OptimSettings, factor: float = 1.0) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = SmallModel()
    optimiser = Optimiser(model.named_parameters(), settings)
    for count in range(2):  # the second step is where beta1 and beta2 begin to matter
        generator = torch.Generator().manual_seed(3 + count)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimiser.clip()
        optimiser.step(factor, 0.9)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("key", "value", "moves"),
    [
        ("lr_matrix", 0.5, {"layers.0.up.weight"}),
        ("lr_embedding", 0.5, {"embed_tokens.weight"}),
        ("lr_head", 0.5, {"head.weight"}),
        ("lr_vector", 0.5, {"layers.0.norm.weight"}),
        ("weight_decay", 5.0, {"layers.0.up.weight", "head.weight"}),
        ("beta1", 0.1, {"embed_tokens.weight", "head.weight", "layers.0.norm.weight"}),
        ("beta2", 0.1, {"embed_tokens.weight", "head.weight", "layers.0.norm.weight"}),
        ("eps", 1.0, {"embed_tokens.weight", "head.weight", "layers.0.norm.weight"}),
        ("iterations", 1, {"layers.0.up.weight"}),
        ("orthogonalise_in", "bfloat16", {"layers.0.up.weight"}),
    ],
)
def test_every_setting_moves_exactly_its_parameters(key, value, moves):
    base = OptimSettings(orthogonalise_in="float32", clip_norm=0.0)
    before, after = one_step(base), one_step(dataclasses.replace(base, **{key: value}))
    watched = {"layers.0.up.weight", "embed_tokens.weight", "head.weight", "layers.0.norm.weight"}
    assert {name for name in watched if not torch.equal(before[name], after[name])} == moves


def test_clip_norm_scales_all_gradients_to_it():
    model = SmallModel()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    norm = Optimiser(model.named_parameters(), OptimSettings(clip_norm=0.5)).clip()
    assert norm == pytest.approx(sum(p.numel() for p in model.parameters()) ** 0.5, rel=1e-5)
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]) == pytest.approx(0.5, rel=1e-3)


def test_state_restores_bit_for_bit():
    def run(optimiser, model, steps):
        for step in steps:
            for i, p in enumerate(model.parameters()):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i))
            optimiser.step(1.0, 0.9)

    torch.manual_seed(0)
    model = SmallModel()
    optimiser = Optimiser(model.named_parameters(), OptimSettings())
    run(optimiser, model, range(3))
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: v.clone() for k, v in optimiser.state().items()}
    run(optimiser, model, range(3, 6))

    other = SmallModel()
    other.load_state_dict(weights)
    fresh = Optimiser(other.named_parameters(), OptimSettings())
    fresh.load(state)
    run(fresh, other, range(3, 6))
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_state_of_another_model_is_refused():
    state = {k: v.clone() for k, v in Optimiser(SmallModel(16).named_parameters(), OptimSettings()).state().items()}
    with pytest.raises(IntegrityError, match="does not fit"):
        Optimiser(SmallModel(8).named_parameters(), OptimSettings()).load(state)


@pytest.mark.parametrize("settings", [{"lr_head": -1.0}, {"beta1": 1.0}, {"iterations": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        OptimSettings(**settings)
