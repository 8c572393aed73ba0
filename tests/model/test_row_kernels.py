"""Passes over rows, each against torch's operations."""

import pytest
import torch

from trainer.models.layers.row_kernels import Moments, add_at, group_maximum, moments, normed_relu, slope_and_offset


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 1000])
def test_moments_are_those_of_float64_however_rows_come(rows: int) -> None:
    x = 100 + 0.01 * drawn(rows, 5)  # a sum of squares would lose the variance in float32
    pieces = Moments()
    for piece in x.split(300):
        pieces.add(piece)
    for mean, variance in (moments(x), pieces.result()):
        torch.testing.assert_close(mean, x.double().mean(0).float(), rtol=1e-7, atol=0)
        torch.testing.assert_close(variance, x.double().var(0, unbiased=False).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_maxima_and_their_members_are_torchs_with_ties_and_nan(dtype: torch.dtype) -> None:
    x = drawn(40, 7, 6).mul(2).round().to(dtype)  # many ties
    x[3, 2, 1] = x[3, 5, 1] = x[4, 0, 2] = x[5, 6, 3] = float("nan")
    highest, at = group_maximum(x)
    expected = x.max(1)
    torch.testing.assert_close(highest, expected.values, rtol=0, atol=0, equal_nan=True)
    first = ((x == expected.values[:, None]) | (x.isnan() & expected.values.isnan()[:, None])).int().argmax(1)
    assert torch.equal(at, first)


def test_a_norm_and_its_relu_are_torchs_and_keep_nan() -> None:
    x, scale, shift = drawn(30, 6), drawn(6, seed=1), drawn(6, seed=2)
    mean, variance = moments(x)
    slope, offset = slope_and_offset(mean, variance, scale, shift, 1e-5)
    x[2, 3] = float("nan")
    expected = torch.nn.functional.batch_norm(x, mean, variance, scale, shift, False, 0.0, 1e-5).relu()
    torch.testing.assert_close(normed_relu(x, slope, offset), expected, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_are_added_to_the_members_they_came_from(dtype: torch.dtype) -> None:
    to, values = drawn(9, 4, 5).to(dtype), drawn(9, 5, seed=1)
    at = torch.randint(0, 4, (9, 5), generator=torch.Generator().manual_seed(2))
    expected = to.scatter_add(1, at[:, None], values[:, None].to(dtype))
    add_at(to, at, values)
    torch.testing.assert_close(to, expected)
