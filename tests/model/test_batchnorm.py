"""Batch norm: torch's own where every row counts, and the same on the counting rows where some do not."""

import pytest
import torch
from torch import nn

from trainer.models.layers.batch_norm import BatchNorm


def twins(width: int = 5) -> tuple[BatchNorm, nn.BatchNorm1d]:
    ours, torchs = BatchNorm(width), nn.BatchNorm1d(width)
    with torch.no_grad():
        ours.weight.copy_(torch.linspace(0.5, 1.5, width))
        ours.bias.copy_(torch.linspace(-1, 1, width))
    torchs.load_state_dict(ours.state_dict())  # also: the same names and shapes
    return ours, torchs


def rows(count: int = 40, width: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 3 + 2


@pytest.mark.parametrize("training", [True, False])
def test_all_rows_is_torchs(training):
    ours, torchs = (norm.train(training) for norm in twins())
    torch.testing.assert_close(ours(rows()), torchs(rows()))
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())


def test_left_out_rows_are_normalised_but_do_not_count():
    ours, torchs = twins()
    keep = torch.arange(40) % 3 != 0
    x, y = rows().requires_grad_(), rows().requires_grad_()
    out = ours(x, keep.float())
    expected = torchs(y[keep])
    torch.testing.assert_close(out[keep], expected)
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    out[keep].backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.weight.grad, torchs.weight.grad)
    assert out[~keep].isfinite().all()


def test_gradient_in_double_precision():
    norm = BatchNorm(3).double()
    weight = torch.tensor([1.0, 1, 0, 1, 1, 0, 1], dtype=torch.float64)
    x = rows(7, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: norm(v, weight), (x,))


def test_far_from_zero_the_spread_survives():
    norm = BatchNorm(1)
    x = torch.tensor([[10000.0], [10000.5], [10001.0], [0.0]])
    out = norm(x, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(out[:3, 0], torch.tensor([-1.2247, 0.0, 1.2247]), atol=1e-3, rtol=0)


def test_leading_axes_and_half_precision_keep_shape_and_type():
    norm = BatchNorm(5)
    x = rows(24).view(2, 3, 4, 5).bfloat16()
    out = norm(x, torch.ones(2, 3, 4))
    assert out.shape == x.shape
    assert out.dtype == torch.bfloat16


def test_nothing_counts_is_finite():
    norm = BatchNorm(5)
    assert norm(rows(), torch.zeros(40)).isfinite().all()
    assert norm.running_var.isfinite().all()


def test_many_rows_are_summed_without_losing_digits():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50_000, 3, generator=generator) * 0.1 + 2
    seed = torch.randn(50_000, 3, generator=generator)
    results = []
    for dtype in (torch.float32, torch.float64):
        norm = BatchNorm(3).to(dtype).train()
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
        rows = x.to(dtype, copy=True).requires_grad_()
        y = norm(rows)
        y.backward(seed.to(dtype))
        results.append((y.detach(), rows.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var))
    for ours, exact in zip(*results, strict=True):
        # measured 1.1e-5 of the largest (the weight's gradient); torch's float32 sums, row after row, are off by 3e-4
        assert (ours - exact).abs().max() <= 5e-5 * exact.abs().max()
    # measured 2e-6, and 1.2e-4 with torch's sums
    torch.testing.assert_close(results[0][0].double(), results[1][0], rtol=0, atol=1e-5)
