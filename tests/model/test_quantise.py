"""Weights in few bits: errors within their bounds, bytes as promised, and NF4 as its authors store it."""

import pytest
import torch

from bedplate.model.adapters import projections, quantise
from bedplate.model.quantise import BLOCK, LEVELS, WORST, Quantised
from bedplate.testing.models import tiny_model


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(32, 64), (7, 9), (1, 1), (3, 64)])
def test_no_number_is_further_off_than_promised(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    stored = Quantised(weight, bits)
    wrong = (stored.dense() - weight).abs().flatten()
    for start in range(0, weight.numel(), BLOCK):
        block = weight.flatten()[start : start + BLOCK]
        assert wrong[start : start + BLOCK].max() <= WORST[bits] * block.abs().max() * (1 + 1e-5)
    assert stored.dense(torch.bfloat16).dtype == torch.bfloat16 and stored.dense().shape == weight.shape


def test_normal_weights_lose_little_and_take_what_is_said():
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    errors = {bits: float((Quantised(weight, bits).dense() - weight).norm() / weight.norm()) for bits in (8, 4)}
    assert errors[8] < 0.008 and errors[4] < 0.1
    assert Quantised(weight, 8).stored_bytes == weight.numel() * 8.5 / 8 and Quantised(weight, 4).stored_bytes == weight.numel() * 4.5 / 8


def test_what_the_levels_say_is_kept_exactly():
    exact = torch.tensor(LEVELS).repeat(8).view(8, 16) * 0.37
    assert torch.allclose(Quantised(exact, 4).dense(), exact, atol=1e-7)
    again = Quantised(Quantised(torch.randn(16, 64), 4).dense(), 4)
    torch.testing.assert_close(Quantised(again.dense(), 4).dense(), again.dense())
    zeros = Quantised(torch.zeros(4, 64), 4).dense()
    assert torch.equal(zeros, torch.zeros(4, 64)) and torch.equal(Quantised(torch.zeros(4, 64), 8).dense(), zeros)


@pytest.mark.parametrize("bits,most", [(8, 0.05), (4, 0.5)])
def test_a_model_in_few_bits_says_nearly_the_same(bits, most):
    model = tiny_model(random=True)
    ids = torch.arange(30, 60)[None]
    with torch.no_grad():
        before = model.forward_tokens(ids)
        quantise(model, bits)
        after = model.forward_tokens(ids)
    assert 0 < (after - before).norm() / before.norm() < most
    assert all(p.weight is None for _, p in projections(model))
