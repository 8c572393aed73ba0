"""Passes over rows [M, D] float32 on a CPU that batch norms, ReLUs and maxima of groups need, each in one reading.

torch has them as several operations that each read and write the array, or as one (the maximum with its index) that
takes twenty times as long. Threads take rows or groups; how they are divided changes no bit.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from cuda.twins.threads import for_each

__all__ = ["Moments", "add_at", "group_maximum", "moments", "normed_relu", "slope_and_offset"]

_ROWS = 256  # that are summed at a time: of the widest layer, they stay in a core's cache


class Moments:
    """Mean and (biased) variance of rows that come in pieces, in float64 inside.

    A piece's rows are taken 256 at a time, about their own mean, and the parts are put together at the end. Source:
    Chan, Golub, LeVeque 1983.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, rows: Tensor) -> None:
        """Add rows [M, D] float32, M at least 1."""
        x = rows.detach().contiguous().numpy()
        chunks = -(-len(x) // _ROWS)
        mean, squares = np.zeros((2, chunks, x.shape[1]))
        for_each(chunks, _chunk_moments, x, mean, squares)
        counts = np.full(chunks, float(_ROWS))
        counts[-1] = len(x) - (chunks - 1) * _ROWS
        self._parts.append((counts, mean, squares))

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance of all rows, [D] float32 each."""
        counts, means, squares = map(np.concatenate, zip(*self._parts, strict=True))
        total = counts.sum()
        mean = (counts[:, None] * means).sum(0) / total
        variance = (squares.sum(0) + (counts[:, None] * np.square(means - mean)).sum(0)) / total
        return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(variance.astype(np.float32))


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and (biased) variance, [D] float32 each, of rows [M, D] float32."""
    found = Moments()
    found.add(rows)
    return found.result()


def slope_and_offset(mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return a norm as a line: (x - mean) / sqrt(variance + eps) * scale + shift = x * slope + offset, [D] each."""
    slope = torch.rsqrt(variance + eps) * scale.detach()
    return slope, shift.detach() - mean * slope


def normed_relu(rows: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Return max(rows * slope + offset, 0), [M, D] float32; NaN stays NaN."""
    out = torch.empty_like(rows)
    for_each(len(rows), _normed_relu, rows.numpy(), slope.numpy(), offset.numpy(), out.numpy())
    return out


def group_maximum(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return each group's maximum, and the first member that has it, as `values.max(1)` does.

    values  [M, K, D] float.   ->  [M, D] of values' dtype; [M, D] int64.
    """
    M, _, D = values.shape
    plain = values if values.dtype in (torch.float32, torch.float64) else values.float()
    highest, at = plain.new_empty(M, D), torch.empty(M, D, dtype=torch.int64)
    for_each(M, _group_maximum, plain.detach().numpy(), highest.numpy(), at.numpy())
    return highest.to(values.dtype), at


def add_at(to: Tensor, at: Tensor, values: Tensor) -> None:
    """Add values [M, D] to `to` [M, K, D], in place, to the members `at` [M, D] int64: a scatter_add_ of one each."""
    if to.dtype == values.dtype and to.dtype in (torch.float32, torch.float64):
        for_each(len(to), _add_at, to.numpy(), at.numpy(), values.numpy())
    else:
        to.scatter_add_(1, at[:, None], values[:, None].to(to.dtype))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _chunk_moments(begin, end, x, mean, squares):
    """Chunks ``begin..end`` of x [M, D]: mean [chunks, D] f64, and the sum of squares about it; both zero before."""
    M, D = x.shape
    for chunk in range(begin, end):
        first, last = chunk * _ROWS, min((chunk + 1) * _ROWS, M)
        total, spread = mean[chunk], squares[chunk]
        for i in range(first, last):
            for c in range(D):
                total[c] += x[i, c]
        for c in range(D):
            total[c] /= last - first
        for i in range(first, last):
            for c in range(D):
                apart = x[i, c] - total[c]
                spread[c] += apart * apart


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _normed_relu(begin, end, x, slope, offset, out):
    D = x.shape[1]
    for i in range(begin, end):
        for c in range(D):
            value = x[i, c] * slope[c] + offset[c]
            out[i, c] = np.float32(0) if value <= np.float32(0) else value


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _group_maximum(begin, end, x, out, at):
    """Groups ``begin..end`` of x [M, K, D]. A NaN is the maximum of its group, the first one if there are several."""
    K, D = x.shape[1:]
    best = np.empty(D, x.dtype)
    place = np.empty(D, np.int32)
    for m in range(begin, end):
        for c in range(D):
            best[c] = x[m, 0, c]
            place[c] = 0
        for k in range(1, K):
            for c in range(D):
                value, before = x[m, k, c], best[c]
                higher = not (value <= before) and before == before
                best[c] = value if higher else before
                place[c] = k if higher else place[c]
        for c in range(D):
            out[m, c] = best[c]
            at[m, c] = place[c]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_at(begin, end, to, at, values):
    for m in range(begin, end):
        for c in range(to.shape[2]):
            to[m, at[m, c], c] += values[m, c]
