"""Attention under autocast: its products are rounded, its softmax is not."""

import pytest
import torch
from torch.nn import functional as F

from trainer.models.layers.transformer import Attention


@pytest.mark.parametrize("masked", [False, True])
def test_in_bfloat16_on_a_cpu_the_scores_are_float32(masked: bool) -> None:
    """Against its definition; the gradient, too, which torch's own bfloat16 kernel would round on its way."""
    generator = torch.Generator().manual_seed(3)
    attention = Attention(12, 3)
    x = torch.randn(2, 7, 12, generator=generator, requires_grad=True)
    attend = None
    if masked:
        attend = (torch.rand(2, 1, 7, 7, generator=generator) < 0.6) | torch.eye(7, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(x, attend)
        q, k, v = attention.qkv(x).view(2, 7, 3, 3, 4).permute(2, 0, 3, 1, 4)
    assert q.dtype == torch.bfloat16
    scores = q.float() @ k.float().transpose(2, 3) / 2
    if attend is not None:
        scores = scores.masked_fill(~attend, -torch.inf)
    mixed = (scores.softmax(3) @ v.float()).transpose(1, 2).reshape(2, 7, 12)
    weight, bias = (value.bfloat16() for value in (attention.proj.weight, attention.proj.bias))
    expected = F.linear(mixed.bfloat16(), weight, bias)
    assert found.dtype == torch.bfloat16
    # One rounding step where a sum in another order falls on the other side of a half.
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-9)
    direction = torch.randn(found.shape, generator=generator)
    gradients = [
        torch.autograd.grad((out.float() * direction).sum(), x, retain_graph=True)[0] for out in (found, expected)
    ]
    assert (gradients[0] - gradients[1]).norm() < 0.01 * gradients[1].norm()
