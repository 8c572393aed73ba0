"""Definition of every operator in a few lines of NumPy: float32 in the kernels' order of operations, any cost.

Kernels and twins must equal these exactly. Arrays in, arrays out; shapes as in the public functions; no checks.
"""

import math

import numpy as np
from numpy.typing import NDArray

from cuda.geometry import PLANE_MARGIN, VIEW_AXES

__all__ = [
    "backproject",
    "chamfer",
    "chamfer_backward",
    "distances2",
    "farthest_point_sample",
    "gather",
    "gather_backward",
    "group",
    "knn",
    "pixels",
    "project",
]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


def distances2(a: F32, b: F32) -> F32:
    """Compute squared distances, [P, 3], [Q, 3] -> [P, Q]: subtract, then dx*dx + dy*dy + dz*dz."""
    d = a[:, None, :] - b[None, :, :]
    return d[..., 0] * d[..., 0] + d[..., 1] * d[..., 1] + d[..., 2] * d[..., 2]


def farthest_point_sample(points: F32, k: int, *, skip_near_origin: bool = False) -> I64:
    """Sample greedily: each next index has the largest distance to the chosen set; np.argmax takes the first."""
    idx = np.zeros((len(points), k), np.int64)
    for b, cloud in enumerate(points):
        norm2 = distances2(cloud, np.zeros((1, 3), np.float32))[:, 0]
        excluded = skip_near_origin & (norm2.astype(np.float64) <= 1e-3)
        best = np.where(excluded, np.float32(-1), np.float32(np.inf))
        for j in range(1, k):
            best = np.minimum(best, distances2(cloud, cloud[idx[b, j - 1], None])[:, 0])
            idx[b, j] = np.argmax(best)
    return idx


def knn(points: F32, queries: F32, k: int) -> tuple[F32, I64]:
    """Sort all distances stably and keep the first k."""
    shape = (*queries.shape[:2], k)
    dist2, idx = np.empty(shape, np.float32), np.empty(shape, np.int64)
    for b in range(len(points)):
        every = distances2(queries[b], points[b])
        idx[b] = np.argsort(every, axis=1, kind="stable")[:, :k]
        dist2[b] = np.take_along_axis(every, idx[b], axis=1)
    return dist2, idx


def gather(values: F32, idx: I64) -> F32:
    """Gather values [B, N, D] at idx [B, ...] -> [B, ..., D]."""
    return np.stack([rows[i] for rows, i in zip(values, idx, strict=True)])


def group(points: F32, centres: F32, idx: I64) -> F32:
    """Gather points [B, N, D] at idx [B, G, K], minus centres [B, G, D] -> [B, G, K, D]."""
    return gather(points, idx) - centres[:, :, None]


def gather_backward(grad: F32, idx: I64, N: int) -> F32:
    """Sum grad [B, P, D] at idx [B, P] -> [B, N, D], over the places a row went to, from 0, in their order."""
    sums = np.zeros((len(grad), N, grad.shape[2]), grad.dtype)
    for b, p in np.ndindex(idx.shape):
        sums[b, idx[b, p]] += grad[b, p]
    return sums


def project(points: F32, *, image_side: int = 224, splat: int = 5, reduction: str = "sum") -> tuple[F32, F32, F32, I32]:
    """Compute depth [B, V, S, S], lo [B, V, 2], cell [B, V], offset [B, V, 2]."""
    B, N, _ = points.shape
    V, S, half = len(VIEW_AXES), image_side, splat // 2
    depth = np.zeros((B, V, S, S), np.float32)
    lo, cell = np.empty((B, V, 2), np.float32), np.empty((B, V), np.float32)
    offset = np.empty((B, V, 2), np.int32)
    for b in range(B):
        for v, axes in enumerate(VIEW_AXES):
            seen = points[b][:, axes] + np.float32(0)  # -0 becomes 0
            plane, d = seen[:, :2], seen[:, 2]
            lo[b, v] = plane.min(0)
            side = (plane.max(0) - lo[b, v]).max() / np.float32(S - PLANE_MARGIN)
            cell[b, v] = side if side >= np.finfo(np.float32).tiny else 1
            ij = np.floor((plane - lo[b, v]) / cell[b, v]).astype(np.int64) + 1
            spots = ij[:, None, None, :] + np.moveaxis(np.mgrid[-half : half + 1, -half : half + 1], 0, -1)
            centre = (spots.max((0, 1, 2)) + spots.min((0, 1, 2))) // 2
            offset[b, v] = S // 2 - centre - 1
            spots = (spots + offset[b, v]).clip(0, S - 1).reshape(-1, 2)
            depth[b, v] = _reduce(spots, d.repeat(splat * splat), N * splat * splat, S, reduction)
    return depth, lo, cell, offset


def _reduce(spots: I64, d: F32, count: int, S: int, reduction: str) -> NDArray[np.floating]:
    where = (spots[:, 0], spots[:, 1])
    written = np.zeros((S, S), np.int64)
    np.add.at(written, where, 1)
    if reduction in ("max", "nearest"):
        best = np.full((S, S), -np.inf if reduction == "max" else np.inf)
        (np.maximum if reduction == "max" else np.minimum).at(best, where, d)
        return np.where(written > 0, best, 0)
    # Fixed point: depths become whole numbers so small that all of them add up to less than 2^53.
    bits = 53 - (count - 1).bit_length() - math.frexp(float(np.abs(d).max()))[1]
    total = np.zeros((S, S), np.int64)
    np.add.at(total, where, np.rint(d.astype(np.float64) * 2.0**bits).astype(np.int64))
    value = total.astype(np.float64) * 2.0**-bits
    return value / np.maximum(written, 1) if reduction == "mean" else value


def pixels(points: F32, lo: F32, cell: F32, offset: I32, image_side: int = 224) -> I32:
    """Compute floor((p - lo) / cell) + 1 + offset in float32, clamped to the image."""
    plane = np.stack([points[..., axes[:2]] for axes in VIEW_AXES], axis=1)  # [B, V, Q, 2]
    with np.errstate(over="ignore"):  # a query may lie anywhere
        cells = np.floor((plane - lo[:, :, None]) / cell[:, :, None, None])
    at = cells + (1 + offset[:, :, None]).astype(np.float32)
    return at.clip(0, image_side - 1).astype(np.int32)


def backproject(maps: F32, pixel: I32, image_side: int = 224) -> F32:
    """Interpolate maps [B, V, T, C] at pixel [B, V, Q, 2] -> [B, Q, V, C] by Keys' cubic (a = -0.75)."""
    B, V, T, C = maps.shape
    side = round(T**0.5)
    grid = maps.reshape(B, V, side, side, C)
    out = np.zeros((B, pixel.shape[2], V, C), np.float32)
    for b, v, q in np.ndindex(B, V, pixel.shape[2]):
        cells, weights = zip(*(_cubic_taps(int(p), image_side, side) for p in pixel[b, v, q]), strict=True)
        terms = [
            np.float32(wi * wj) * grid[b, v, i, j]
            for i, wi in zip(cells[0], weights[0], strict=True)
            for j, wj in zip(cells[1], weights[1], strict=True)
        ]
        out[b, q, v] = terms[0]
        for term in terms[1:]:
            out[b, q, v] += term
    return out


def _cubic_taps(pixel: int, image_side: int, side: int) -> tuple[list[int], list[np.float32]]:
    centre = (pixel + 0.5) * side / image_side - 0.5
    base = math.floor(centre)

    def cubic(distance: float) -> np.float32:
        a, x = -0.75, abs(distance)
        if x <= 1:
            return np.float32(((a + 2) * x - (a + 3)) * x * x + 1)
        return np.float32(((a * x - 5 * a) * x + 8 * a) * x - 4 * a)

    reached = range(base - 1, base + 3)
    return [min(max(i, 0), side - 1) for i in reached], [cubic(centre - i) for i in reached]


def chamfer(a: F32, b: F32) -> tuple[F32, F32, I64, I64]:
    """Compute least squared distances a to b [M, P] and b to a [M, Q], and the indices of the nearest."""
    every = np.stack([distances2(p, q) for p, q in zip(a, b, strict=True)])  # [M, P, Q]
    return every.min(2), every.min(1), every.argmin(2), every.argmin(1)


def chamfer_backward(a: F32, b: F32, from_a: I64, from_b: I64, grad_a: F32, grad_b: F32) -> F32:
    """Compute the gradient with respect to a: its own pairs, then those of the b that chose it, by ascending index."""
    grad = np.empty_like(a)
    two = np.float32(2)
    for m in range(len(a)):
        for p in range(a.shape[1]):
            grad[m, p] = two * grad_a[m, p] * (a[m, p] - b[m, from_a[m, p]])
            for q in np.flatnonzero(from_b[m] == p):
                grad[m, p] += two * grad_b[m, q] * (a[m, p] - b[m, q])
    return grad
