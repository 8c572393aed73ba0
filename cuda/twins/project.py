"""Numba twin of ``kernels/project.cu``: the depth views of a cloud."""

import math

import numba
import numpy as np

from cuda.geometry import PLANE_MARGIN, VIEW_AXES

__all__ = ["MAX", "MEAN", "NEAREST", "SUM", "project"]

SUM, MEAN, MAX, NEAREST = 0, 1, 2, 3

_AXES = np.array(VIEW_AXES)
_VIEWS = len(VIEW_AXES)
_SMALLEST_CELL = np.float32(2.0**-126)  # smallest normal float32: below it a quotient is no longer bounded


@numba.njit(nogil=True, cache=True, error_model="numpy")
def project(begin, end, points, splat, reduction, exponent, depth, lo, cell, offset):
    """Compute views ``begin..end``; item t is view ``t % V`` of cloud ``t // V``.

    in   points [B, N, 3] f32     exponent: sums stay exact when depths are multiples of 2^(e - exponent), |d| < 2^e
    out  depth [B, V, S, S] f32; lo [B, V, 2] f32; cell [B, V] f32; offset [B, V, 2] i32
    Arithmetic: floor((p - lo) / cell) in f32. Sums are of whole numbers below 2^53, so their order is free.
    """
    N = points.shape[1]
    S = depth.shape[2]
    half = splat // 2
    rows = np.empty(N, np.int32)
    columns = np.empty(N, np.int32)
    depths = np.empty(N, np.float32)
    total = np.zeros((S, S), np.float64)
    count = np.zeros((S, S), np.int32)
    for item in range(begin, end):
        b = item // _VIEWS
        v = item % _VIEWS
        row_axis, column_axis, depth_axis = _AXES[v, 0], _AXES[v, 1], _AXES[v, 2]

        row_lo = row_hi = points[b, 0, row_axis]
        column_lo = column_hi = points[b, 0, column_axis]
        far = np.float32(0)
        for n in range(N):
            p = points[b, n, row_axis]
            row_lo = p if p < row_lo else row_lo
            row_hi = p if p > row_hi else row_hi
            p = points[b, n, column_axis]
            column_lo = p if p < column_lo else column_lo
            column_hi = p if p > column_hi else column_hi
            depths[n] = points[b, n, depth_axis] + np.float32(0)  # -0 becomes 0
            size = abs(depths[n])
            far = size if size > far else far
        row_lo += np.float32(0)
        column_lo += np.float32(0)
        side = max(row_hi - row_lo, column_hi - column_lo) / np.float32(S - PLANE_MARGIN)
        if not side >= _SMALLEST_CELL:
            side = np.float32(1)

        # The far edge has the largest index, because subtraction, division and floor are monotonic.
        row_top = _index(row_hi, row_lo, side, S)
        column_top = _index(column_hi, column_lo, side, S)
        # Splatted indices run from 1 - half to top + 1 + half; their middle does not depend on the splat.
        row_offset = S // 2 - (row_top + 2) // 2 - 1
        column_offset = S // 2 - (column_top + 2) // 2 - 1
        lo[b, v, 0] = row_lo
        lo[b, v, 1] = column_lo
        cell[b, v] = side
        offset[b, v, 0] = row_offset
        offset[b, v, 1] = column_offset
        for n in range(N):
            rows[n] = _index(points[b, n, row_axis], row_lo, side, row_top) + 1 + row_offset
            columns[n] = _index(points[b, n, column_axis], column_lo, side, column_top) + 1 + column_offset

        # What is written lies in these rows and columns.
        top = max(1 + row_offset - half, 0)
        bottom = min(row_top + 1 + row_offset + half, S - 1)
        left = max(1 + column_offset - half, 0)
        right = min(column_top + 1 + column_offset + half, S - 1)
        image = depth[b, v]
        image[:] = 0
        if reduction <= MEAN:
            scale = math.ldexp(1.0, exponent - math.frexp(np.float64(far))[1])
            _add(rows, columns, depths, half, scale, total)
            if reduction == MEAN:
                _count(rows, columns, half, count)
            back = 1.0 / scale
            for i in range(top, bottom + 1):
                for j in range(left, right + 1):
                    value = total[i, j] * back
                    if reduction == MEAN:
                        value /= np.float64(max(count[i, j], 1))
                        count[i, j] = 0
                    image[i, j] = np.float32(value)
                    total[i, j] = 0
        else:
            _keep_best(rows, columns, depths, half, reduction == MAX, count, image)
            count[top : bottom + 1, left : right + 1] = 0


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _index(p, lo, side, limit):
    """Return the pixel of a coordinate before centring, clamped so that a non-finite cloud harms no other."""
    at = np.floor((p - lo) / side)
    at = at if at > np.float32(0) else np.float32(0)
    return int(at if at < np.float32(limit) else np.float32(limit))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add(rows, columns, depths, half, scale, total):
    S = total.shape[0]
    for n in range(len(rows)):
        fixed = np.rint(np.float64(depths[n]) * scale)
        left, right = columns[n] - half, columns[n] + half
        for at in range(rows[n] - half, rows[n] + half + 1):
            i = min(max(at, 0), S - 1)
            if left >= 0 and right < S:
                for j in range(left, right + 1):
                    total[i, j] += fixed
            else:
                for j in range(left, right + 1):
                    total[i, min(max(j, 0), S - 1)] += fixed


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _count(rows, columns, half, count):
    S = count.shape[0]
    for n in range(len(rows)):
        for i in range(rows[n] - half, rows[n] + half + 1):
            for j in range(columns[n] - half, columns[n] + half + 1):
                count[min(max(i, 0), S - 1), min(max(j, 0), S - 1)] += 1


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _keep_best(rows, columns, depths, half, largest, written, image):
    S = image.shape[0]
    for n in range(len(rows)):
        d = depths[n]
        for at in range(rows[n] - half, rows[n] + half + 1):
            i = min(max(at, 0), S - 1)
            for beside in range(columns[n] - half, columns[n] + half + 1):
                j = min(max(beside, 0), S - 1)
                if written[i, j] == 0 or (d > image[i, j] if largest else d < image[i, j]):
                    image[i, j] = d
                    written[i, j] = 1
