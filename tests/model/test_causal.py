"""The fast CPU attention against its slow twin."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from bedplate.model.causal import causal_attention, suits


@pytest.mark.parametrize("positions", [384, 142, 17, 1])
@pytest.mark.parametrize("heads,key_heads", [(4, 4), (4, 2), (4, 1)])
def test_values_and_gradients_equal_the_slow_twin(heads, key_heads, positions):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, positions, 32, requires_grad=True) for n in (heads, key_heads, key_heads))
    weight = torch.randn(2, heads, positions, 32)
    outcomes = []
    for attention in (causal_attention, lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)):
        for x in (q, k, v):
            x.grad = None
        out = attention(q, k, v)
        (out * weight).sum().backward()
        outcomes.append([out.detach(), q.grad, k.grad, v.grad])
    for fast, slow in zip(*outcomes):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_the_future_does_not_leak():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 256, 16) for _ in range(3))
    before = causal_attention(q, k, v)
    k[:, :, 200:], v[:, :, 200:] = 7.0, 7.0
    assert torch.equal(causal_attention(q, k, v)[:, :, :200], before[:, :, :200])


def test_where_it_is_used():
    assert suits(torch.empty(1, 1, 512, 64))
    assert suits(torch.empty(1, 1, 17, 64))
    assert not suits(torch.empty(1, 1, 1025, 64))
    with torch.no_grad():
        assert not suits(torch.empty(1, 1, 512, 64))
