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
    """Views ``begin..end``; item t is view ``t % V`` of cloud ``t // V``.

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
    total = np.empty((S, S), np.float64)
    count = np.empty((S, S), np.int32)
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
        side = (max(row_hi - row_lo, column_hi - column_lo)) / np.float32(S - PLANE_MARGIN)
        if not side >= _SMALLEST_CELL:
            side = np.float32(1)

        row_top = column_top = np.int32(0)
        for n in range(N):
            i = np.floor((points[b, n, row_axis] - row_lo) / side)
            j = np.floor((points[b, n, column_axis] - column_lo) / side)
            rows[n] = np.int32(i)
            columns[n] = np.int32(j)
            row_top = max(row_top, rows[n])
            column_top = max(column_top, columns[n])
        # Splatted indices run from -half + 1 to top + half + 1; their middle does not depend on the splat.
        row_offset = S // 2 - (row_top + 2) // 2 - 1
        column_offset = S // 2 - (column_top + 2) // 2 - 1

        lo[b, v, 0] = row_lo
        lo[b, v, 1] = column_lo
        cell[b, v] = side
        offset[b, v, 0] = row_offset
        offset[b, v, 1] = column_offset

        image = depth[b, v]
        scale = math.ldexp(1.0, exponent - math.frexp(np.float64(far))[1])
        count[:] = 0
        if reduction <= MEAN:
            total[:] = 0
        else:
            image[:] = 0
        for n in range(N):
            d = depths[n]
            fixed = np.rint(np.float64(d) * scale)
            for di in range(-half, half + 1):
                i = min(max(rows[n] + 1 + row_offset + di, 0), S - 1)
                for dj in range(-half, half + 1):
                    j = min(max(columns[n] + 1 + column_offset + dj, 0), S - 1)
                    if reduction <= MEAN:
                        total[i, j] += fixed
                        count[i, j] += 1
                    elif count[i, j] == 0 or (d > image[i, j] if reduction == MAX else d < image[i, j]):
                        image[i, j] = d
                        count[i, j] = 1
        if reduction <= MEAN:
            back = 1.0 / scale
            for i in range(S):
                for j in range(S):
                    if reduction == MEAN and count[i, j] > 1:
                        image[i, j] = np.float32(total[i, j] * back / np.float64(count[i, j]))
                    else:
                        image[i, j] = np.float32(total[i, j] * back)
