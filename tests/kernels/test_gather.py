"""Rows at indices, groups relative to their centres, and gradients that are the same bits every time."""

import numpy as np
import pytest
import torch

from cuda import plain
from cuda.gather import gather, gather_on, group
from tests.support.kernels import host_launch, implementations

DTYPES = (np.float32, np.float64)


def numbers(*shape: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def indices(*shape: int, below: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, below, size=shape)


@pytest.mark.parametrize("impl", implementations("gather"))
def test_rows_by_hand(impl):
    values = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.float32)
    assert impl(values, np.array([[1, 1, 0], [0, 1, 1]])).tolist() == [
        [[3, 4], [3, 4], [1, 2]],
        [[5, 6], [7, 8], [7, 8]],
    ]


@pytest.mark.parametrize("impl", implementations("group"))
def test_groups_by_hand(impl):
    points = np.array([[[1, 0, 0], [0, 2, 0], [0, 0, 3]]], np.float32)
    centres = np.array([[[1, 1, 1], [0, 0, 3]]], np.float32)
    rows = impl(points, centres, np.array([[[0, 1], [2, 2]]]))
    assert rows.tolist() == [[[[0, -1, -1], [-1, 1, -1]], [[0, 0, 0], [0, 0, 0]]]]


@pytest.mark.parametrize("impl", implementations("gather backward"))
def test_gradients_add_up_in_the_order_of_places(impl):
    # 1e8 + 1 - 1e8 is 0 in float32 from left to right, and 1 in the order 1e8, -1e8, 1; row 2 goes nowhere.
    grad = np.array([[[1e8], [5], [1], [-1e8]]], np.float32)
    assert impl(grad, np.array([[0, 1, 0, 0]]), 3).tolist() == [[[0], [5], [0]]]
    assert impl(grad, np.array([[0, 1, 1, 0]]), 3).tolist() == [[[0], [6], [0]]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 33, 129])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 33, 7, 5), (2, 65, 32, 16)], ids=str)
def test_all_equal_the_definition(sizes, channels, dtype):
    B, N, G, K = sizes
    points, centres = numbers(B, N, channels, dtype=dtype), numbers(B, G, channels, dtype=dtype, seed=2)
    idx = indices(B, G, K, below=N)
    flat = idx.reshape(B, G * K)
    cases = {
        "gather": (points, flat),
        "group": (points, centres, idx),
        "gather backward": (numbers(B, G * K, channels, dtype=dtype, seed=3), flat, N),
    }
    for operator, arguments in cases.items():
        plain_impl, *others = (p for p in implementations(operator) if not p.marks)
        expected = plain_impl.values[0](*arguments)
        for other in others:
            got = other.values[0](*arguments)
            assert got.dtype == dtype
            np.testing.assert_array_equal(got, expected, err_msg=f"{operator}, {other.id}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_values_keep_their_bits_and_sum_gradients_in_float32(dtype):
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype).view(1, -1, 2)
    idx = torch.arange(every.shape[1]).flip(0)[None]
    for run in (gather, lambda *a: gather_on(host_launch(), *a)):
        assert torch.equal(run(every, idx).view(torch.uint16), every.flip(1).view(torch.uint16))
    values = torch.zeros(1, 1, 1, dtype=dtype, requires_grad=True)
    # 257 ones: in bfloat16 a running sum would stop at 256, in float16 2049 at 2048; in float32 the sum is exact.
    count = 258 if dtype == torch.bfloat16 else 2050
    gather(values, torch.zeros(1, count, dtype=torch.int64)).sum().backward()
    assert values.grad.dtype == dtype
    assert values.grad.item() == count


def test_gradients_are_those_of_plain_indexing():
    points = torch.from_numpy(numbers(3, 20, 6, dtype=np.float64)).requires_grad_()
    centres = torch.from_numpy(numbers(3, 8, 6, dtype=np.float64, seed=2)).requires_grad_()
    idx = torch.from_numpy(indices(3, 8, 5, below=20))
    assert torch.autograd.gradcheck(lambda p, c: group(p, c, idx), (points, centres))
    assert torch.autograd.gradcheck(lambda p: gather(p, idx), (points,))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_gradient_is_the_same_bits_on_any_number_of_threads(threads, monkeypatch):
    grad, idx = numbers(2, 4000, 10), indices(2, 4000, below=9)
    expected = plain.gather_backward(grad, idx, 9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    values = torch.zeros(2, 9, 10, requires_grad=True)
    for _ in range(3):
        (got,) = torch.autograd.grad(gather(values, torch.from_numpy(idx)), values, torch.from_numpy(grad))
        np.testing.assert_array_equal(got, expected)


def test_any_shape_of_indices_strides_and_nothing_at_all():
    values = torch.from_numpy(numbers(2, 6, 8))[:, ::2, ::2]
    idx = torch.from_numpy(indices(2, 3, 4, 5, below=3))
    assert torch.equal(gather(values, idx), gather(values.contiguous(), idx.flatten(1)).view(2, 3, 4, 5, 4))
    assert gather(values, idx[:, 0, 0, 0:0]).shape == (2, 0, 4)
    assert gather(torch.zeros(0, 5, 3), torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2, 3)
    turned = idx[:, 0].transpose(1, 2)
    expected = group(values.contiguous(), torch.zeros(2, 5, 4), turned.contiguous())
    assert torch.equal(group(values, torch.zeros(4, 5, 2).permute(2, 1, 0), turned), expected)


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_an_index_outside_is_an_error_on_the_cpu_and_nan_from_the_kernel(bad):
    values, idx = torch.ones(2, 3, 4), torch.tensor([[0, 1], [2, bad]])
    message = rf"idx has values in {min(bad, 0)}\.\.{max(bad, 2)}, but the clouds have points 0\.\.2; use indices into"
    with pytest.raises(IndexError, match=f"gather: {message}"):
        gather(values, idx)
    with pytest.raises(IndexError, match=f"group: {message}"):
        group(values, torch.zeros(2, 1, 4), idx[:, None])
    rows = gather_on(host_launch(), values, idx)
    assert rows[1, 1].isnan().all()
    assert torch.equal(rows[:, 0], torch.ones(2, 4))


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (
            gather,
            (torch.zeros(1, 4, 3).int(), torch.zeros(1, 2).long()),
            TypeError,
            "values must be float32 or float64",
        ),
        (gather, (torch.zeros(1, 4, 3), torch.zeros(1, 2).int()), TypeError, r"idx must be int64, .* idx.long\(\)"),
        (
            gather,
            (torch.zeros(4, 3), torch.zeros(4, 2).long()),
            ValueError,
            r"values must be \[B, N, D\], got \[4, 3\]",
        ),
        (gather, (torch.zeros(2, 4, 3), torch.zeros(2).long()), ValueError, r"idx must be \[B, ...\], got \[2\]"),
        (gather, (torch.zeros(2, 4, 3), torch.zeros(1, 2).long()), ValueError, "values has 2 clouds and idx has 1"),
        (
            group,
            (torch.zeros(1, 4, 3), torch.zeros(1, 2, 3), torch.zeros(1, 3, 2).long()),
            ValueError,
            r"points must be \[1, N, 3\] and idx \[1, 2, K\], got \[1, 4, 3\] and \[1, 3, 2\]",
        ),
        (
            group,
            (torch.zeros(1, 4, 3), torch.zeros(1, 2, 3).double(), torch.zeros(1, 2, 2).long()),
            TypeError,
            "centres must be float32, got torch.float64",
        ),
    ],
)
def test_wrong_arguments_are_named(function, arguments, error, message):
    with pytest.raises(error, match=f"{function.__name__}: .*{message}"):
        function(*arguments)
