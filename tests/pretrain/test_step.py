from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small import SmallModel, SmallRows

from bedplate.modality.sequence import Batch
from bedplate.pretrain.optim import Optimiser, OptimSettings
from bedplate.pretrain.step import Stepper, count_targets, generator_seed


def stepper(model, **more):
    return Stepper(model, Optimiser(model.named_parameters(), OptimSettings(clip_norm=0.0)), torch.device("cpu"), **more)


def split(batch: Batch, sizes: list[int]) -> list[Batch]:
    arrays = [getattr(batch, name) for name in ("tokens", "sense", "document", "block", "token_loss")]
    return [Batch(*(a[end - size : end] for a in arrays), {}, {}, {}) for size, end in zip(sizes, np.cumsum(sizes))]


@pytest.mark.parametrize("sizes", [[4, 4], [1, 7], [3, 2, 3], [1] * 8])
def test_accumulation_is_one_big_batch(sizes):
    """Although the parts have unequal numbers of targets: the weights are the step's counts, not the parts'."""
    torch.manual_seed(0)
    model = SmallModel(noise=0.0)
    twin = copy.deepcopy(model)
    batch = SmallRows().batch(0, 8, 32)
    batch.token_loss[0] = False  # a row without a target
    batch.token_loss[5, 4:] = False
    whole = stepper(model).gradients(0, [batch])
    parts = stepper(twin).gradients(0, split(batch, sizes))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7)


def test_processes_share_one_mean():
    """Two ranks with half of the rows each add up to one process with all of them."""
    torch.manual_seed(0)
    model = SmallModel(noise=0.0)
    batch = SmallRows().batch(0, 8, 32)
    batch.token_loss[5, 4:] = False
    total = count_targets([batch])
    halves = []
    for part in split(batch, [4, 4]):
        twin = copy.deepcopy(model)
        stepper(twin, sum_counts=lambda counts: total).gradients(0, [part])
        halves.append([p.grad for p in twin.parameters()])
    stepper(model).gradients(0, [batch])
    for p, *both in zip(model.parameters(), *halves):
        torch.testing.assert_close(p.grad, sum(both), rtol=1e-4, atol=1e-7)


def test_gradients_of_processes_are_added_before_clipping():
    model = SmallModel()
    seen = []

    def double(gradients):
        seen.append(len(gradients))
        for gradient in gradients:
            gradient.mul_(2)

    alone = stepper(model).gradients(0, [SmallRows().batch(0, 4, 16)]).gradient_norm
    both = stepper(model, sum_tensors=double).gradients(0, [SmallRows().batch(0, 4, 16)]).gradient_norm
    assert both == pytest.approx(2 * alone, rel=1e-5) and seen == [len(list(model.parameters())), 3]  # gradients, then what was used, the objective and its one loss


def test_noise_is_a_function_of_seed_step_rank_and_micro_batch():
    places = {(seed, step, rank, micro) for seed in range(3) for step in range(20) for rank in range(3) for micro in range(3)}
    assert len({generator_seed(*place) for place in places}) == len(places)
    torch.manual_seed(0)
    model = SmallModel(noise=0.5)
    batches = [SmallRows().batch(0, 4, 16)]
    same = [stepper(model, seed=1).gradients(3, batches).loss for _ in range(2)]
    assert same[0] == same[1]
    assert stepper(model, seed=2).gradients(3, batches).loss != same[0]
    assert stepper(model, seed=1).gradients(4, batches).loss != same[0]
    assert stepper(model, seed=1, rank=1).gradients(3, batches).loss != same[0]


def test_a_batch_without_targets_is_harmless():
    model = SmallModel(noise=0.0)
    batch = SmallRows().batch(0, 2, 16)
    batch.token_loss[:] = False
    result = stepper(model).gradients(0, [batch])
    assert result.loss == 0 and result.gradient_norm == 0
