"""The hand-written passes against their slow twins: values and gradients."""

import pytest
import torch
from torch.nn.functional import rms_norm as slow_norm
from torch.nn.functional import silu

from bedplate.model import pointwise
from bedplate.model.product import product


def slow_rotation(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def slow_swiglu(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return silu(gate) * up


def outcome(function, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    result = function(*leaves)
    torch.manual_seed(1)
    return [result, *torch.autograd.grad(result, leaves, torch.randn(result.shape, dtype=result.dtype))]


def compare(fast, slow, *tensors):
    for one, other in zip(outcome(fast, *tensors), outcome(slow, *tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def drawn(*shape):
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 7, 24), (2, 5, 3, 8), (4, 24)])
def test_norm_equals_torchs(shape):
    compare(lambda x, w: pointwise.rms_norm(x, w, 1e-2), lambda x, w: slow_norm(x, w.shape, w, 1e-2), drawn(*shape), drawn(shape[-1]))


def test_norm_of_a_view_that_lies_apart():
    def of_a_part(norm):
        return lambda x, w: norm(x[:, :, 1:3].transpose(1, 2), w)

    compare(of_a_part(lambda x, w: pointwise.rms_norm(x, w, 1e-2)), of_a_part(lambda x, w: slow_norm(x, w.shape, w, 1e-2)), drawn(2, 5, 4, 8), drawn(8))


def test_norm_of_frozen_weights_and_frozen_input():
    x, weight = drawn(3, 8).requires_grad_(), drawn(8)
    (gradient,) = torch.autograd.grad(pointwise.rms_norm(x, weight, 1e-5).sum(), x)
    assert gradient.shape == x.shape
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(pointwise.rms_norm(x.detach(), weight, 1e-5).sum(), weight)
    assert gradient.shape == weight.shape


def test_rotation_equals_the_plain_one():
    angles = drawn(5, 4).repeat(1, 2)
    cos, sin = 1.3 * angles.cos(), 1.3 * angles.sin()  # scaled as YaRN scales them
    compare(
        lambda x: pointwise.rotate(x.transpose(1, 2), cos, sin), lambda x: slow_rotation(x.transpose(1, 2), cos, sin), drawn(2, 5, 3, 8)
    )


def test_swiglu_equals_the_plain_one():
    compare(pointwise.swiglu, slow_swiglu, 3 * drawn(2, 5, 16))


def test_nothing_changes_where_nothing_is_learned():
    x, weight, gate_up = drawn(2, 3, 8).float(), drawn(8).float(), drawn(2, 3, 16).float()
    with torch.no_grad():
        assert torch.equal(pointwise.rms_norm(x, weight, 1e-5), slow_norm(x, weight.shape, weight, 1e-5))
        assert torch.equal(pointwise.swiglu(gate_up), slow_swiglu(gate_up))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 130])
def test_a_product_equals_torchs(rows, dtype):
    x, matrix = drawn(rows, 48).to(dtype), drawn(32, 48).to(dtype)
    exact = x.double() @ matrix.double().t()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(product(x, matrix).double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(product(x, matrix.t().contiguous().t()).double(), exact, rtol=tolerance, atol=tolerance)
    apart = torch.zeros(rows, 96, dtype=dtype)[:, ::2].copy_(x), torch.zeros(64, 96, dtype=dtype)[::2, ::2].copy_(matrix)
    torch.testing.assert_close(product(*apart).double(), exact, rtol=tolerance, atol=tolerance)
