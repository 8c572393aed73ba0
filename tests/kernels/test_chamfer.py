"""Chamfer: nearest squared distances both ways, and their gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cuda.chamfer import chamfer
from tests.support.kernels import CLOUDS, cloud, implementations


def chamfer_in_torch(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same in differentiable torch, in any precision."""
    every = (a[:, :, None] - b[:, None]).square().sum(-1)
    return every.min(2).values, every.min(1).values


@pytest.mark.parametrize("impl", implementations("chamfer"))
def test_by_hand(impl):
    a = np.array([[[0, 0, 0], [3, 0, 0]]], np.float32)
    b = np.array([[[1, 0, 0], [0, 2, 0], [3, 0, 1]]], np.float32)
    a_to_b, b_to_a = impl(a, b)
    assert a_to_b.tolist() == [[1, 1]]
    assert b_to_a.tolist() == [[1, 4, 1]]


@pytest.mark.parametrize("impl", implementations("chamfer backward"))
def test_gradient_by_hand_and_through_the_lowest_tie(impl):
    a = np.array([[[0, 0, 0]]], np.float32)
    b = np.array([[[1, 0, 0], [-1, 0, 0]]], np.float32)  # equally far: the first is the nearest of a
    grad_a, grad_b = impl(a, b, np.array([[1]], np.float32), np.array([[10, 100]], np.float32))
    # Own pair 2 (0 - 1) = -2; from b: 2 * 10 * (0 - 1) + 2 * 100 * (0 + 1).
    assert grad_a.tolist() == [[[178, 0, 0]]]
    assert grad_b.tolist() == [[[22, 0, 0], [-200, 0, 0]]]


@pytest.mark.parametrize("kind", CLOUDS)
@pytest.mark.parametrize("sizes", [(1, 1), (8, 8), (33, 7), (2, 257)], ids=str)
def test_all_equal_the_definition(kind, sizes):
    a, b = (np.stack([cloud(kind, n, seed=seed + n) for seed in range(3)]) for n in sizes)
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=(3, n)).astype(np.float32) for n in sizes]
    for operator, arguments in (("chamfer", (a, b)), ("chamfer backward", (a, b, *grads))):
        plain_impl, *others = (p for p in implementations(operator) if not p.marks)
        expected = plain_impl.values[0](*arguments)
        for other in others:
            for got, wanted in zip(other.values[0](*arguments), expected, strict=True):
                np.testing.assert_array_equal(got, wanted, err_msg=f"{operator}, {other.id}")


def test_the_plain_torch_form_has_the_right_gradient():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, n, 3, generator=generator, dtype=torch.float64, requires_grad=True) for n in (5, 4))
    assert torch.autograd.gradcheck(chamfer_in_torch, (a, b))


def test_gradient_agrees_with_float64():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, n, 3, generator=generator) for n in (8, 9))
    wide = [x.double().requires_grad_() for x in (a, b)]
    narrow = [x.requires_grad_() for x in (a, b)]
    for function, inputs in ((chamfer_in_torch, wide), (chamfer, narrow)):
        first, second = function(*inputs)
        (first.mean() + second.square().mean()).backward()
    for x, y in zip(narrow, wide, strict=True):
        # Rounding of float32 in sums of a few terms of size 0.05; seen 1e-8.
        torch.testing.assert_close(x.grad, y.grad.float(), rtol=1e-5, atol=1e-7)


def test_a_gradient_may_come_from_one_side_only():
    a, b = torch.zeros(1, 2, 3, requires_grad=True), torch.ones(1, 3, 3)
    chamfer(a, b)[1].sum().backward()
    assert a.grad.tolist() == [[[-6, -6, -6], [0, 0, 0]]]
    assert b.grad is None


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31), st.floats(0.1, 10))
@settings(deadline=None, max_examples=40)
def test_laws(p, q, seed, factor):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(1, p, 3, generator=generator), torch.randn(1, q, 3, generator=generator)
    a_to_b, b_to_a = chamfer(a, b)
    assert not any(part.any() for part in chamfer(a, a)), "zero on itself"
    assert torch.equal(chamfer(b, a)[0], b_to_a), "symmetric"
    order = torch.randperm(p, generator=generator)
    assert torch.equal(chamfer(a[:, order], b)[0], a_to_b[:, order])
    assert torch.equal(chamfer(a[:, order], b)[1], b_to_a), "free of order"
    torch.testing.assert_close(chamfer(a * factor, b * factor)[0], a_to_b * factor**2, rtol=1e-4, atol=1e-5)


def test_empty_batch():
    assert [part.shape for part in chamfer(torch.zeros(0, 8, 3), torch.zeros(0, 9, 3))] == [(0, 8), (0, 9)]


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (torch.zeros(1, 4, 3).bfloat16(), torch.zeros(1, 4, 3), TypeError, "a must be float32, got torch.bfloat16"),
        (torch.zeros(1, 0, 3), torch.zeros(1, 4, 3), ValueError, r"a must have at least one point .* \[1, 0, 3\]"),
        (torch.zeros(3, 4, 3), torch.zeros(1, 4, 3), ValueError, "a has 3 clouds and b has 1"),
    ],
)
def test_wrong_arguments_are_named(a, b, error, message):
    with pytest.raises(error, match=f"chamfer: {message}"):
        chamfer(a, b)
