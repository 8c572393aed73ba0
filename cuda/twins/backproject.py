"""Numba twin of ``kernels/backproject.cu``: pixels of points, and bicubic values of token maps at pixels."""

import numba
import numpy as np

from cuda.geometry import VIEW_AXES

__all__ = ["backproject", "backproject_half", "pixels"]

_AXES = np.array(VIEW_AXES)
_VIEWS = len(VIEW_AXES)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def pixels(begin, end, points, lo, cell, offset, image_side, pixel):
    """Compute views ``begin..end``; item t is view ``t % V`` of cloud ``t // V``.

    in  points [B, Q, 3] f32, lo [B, V, 2] f32, cell [B, V] f32, offset [B, V, 2] i32     out  pixel [B, V, Q, 2] i32
    Arithmetic: floor((p - lo) / cell) + 1 + offset, all in f32, then clamped to 0..S-1.
    """
    top = np.float32(image_side - 1)
    for item in range(begin, end):
        b = item // _VIEWS
        v = item % _VIEWS
        for axis in range(2):
            shift = np.float32(1 + offset[b, v, axis])
            for q in range(points.shape[1]):
                at = np.floor((points[b, q, _AXES[v, axis]] - lo[b, v, axis]) / cell[b, v]) + shift
                # Clamped as a float, so that a far-off or non-finite query stays inside the image.
                at = at if at > np.float32(0) else np.float32(0)
                at = at if at < top else top
                pixel[b, v, q, axis] = np.int32(at)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def backproject(begin, end, maps, side, pixel, first, weights, parts, values):
    """Compute work items ``begin..end``; item t is part ``t % parts`` of the queries of view ``t // parts`` (over B V).

    in   maps [B, V, T, C] f32; pixel [B, V, Q, 2] i32
         first [S] i32: first of the four map rows (columns) a pixel reads, before clamping; weights [S, 4] f32
    out  values [B, Q, V, C] f32
    Arithmetic: weight = row weight * column weight; products added row by row, column by column, in f32, unfused.
    """
    Q = pixel.shape[2]
    size = (Q + parts - 1) // parts
    rows = np.empty(4, np.int64)
    columns = np.empty(4, np.int64)
    for item in range(begin, end):
        b = item // parts // _VIEWS
        v = item // parts % _VIEWS
        start = item % parts * size
        for q in range(start, min(start + size, Q)):
            i, j = pixel[b, v, q, 0], pixel[b, v, q, 1]
            _window(first[i], first[j], side, rows, columns)
            _gather(maps[b, v], rows, columns, weights[i], weights[j], values[b, q, v])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def backproject_half(begin, end, maps, bfloat16, side, pixel, first, weights, parts, values):
    """Interpolate like `backproject`, from half-precision maps.

    maps [B, V, T, C] u16: the bits of float16, or of bfloat16. A map row is widened when first read.
    """
    T, C = maps.shape[2], maps.shape[3]
    Q = pixel.shape[2]
    size = (Q + parts - 1) // parts
    rows = np.empty(4, np.int64)
    columns = np.empty(4, np.int64)
    bits = np.empty((T, C), np.uint32)
    wide = bits.view(np.float32)
    widened = np.empty(T, np.bool_)
    for item in range(begin, end):
        b = item // parts // _VIEWS
        v = item // parts % _VIEWS
        start = item % parts * size
        widened[:] = False
        for q in range(start, min(start + size, Q)):
            i, j = pixel[b, v, q, 0], pixel[b, v, q, 1]
            _window(first[i], first[j], side, rows, columns)
            for row in rows:
                for column in columns:
                    t = row + column
                    if not widened[t]:
                        _widen(maps[b, v, t], bfloat16, bits[t], wide[t])
                        widened[t] = True
            _gather(wide, rows, columns, weights[i], weights[j], values[b, q, v])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _window(first_row, first_column, side, rows, columns):
    """Compute the rows and columns of the 4 x 4 cells around a pixel; token = rows[a] + columns[c]. Borders repeat."""
    for a in range(4):
        rows[a] = min(max(first_row + a, 0), side - 1) * side
        columns[a] = min(max(first_column + a, 0), side - 1)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _gather(table, rows, columns, row_weights, column_weights, out):
    """Sum ``row_weights[r] * column_weights[k] * table[rows[r] + columns[k], c]`` into ``out[c]``, in that order."""
    for r in range(4):
        w0 = row_weights[r] * column_weights[0]
        w1 = row_weights[r] * column_weights[1]
        w2 = row_weights[r] * column_weights[2]
        w3 = row_weights[r] * column_weights[3]
        a0 = table[rows[r] + columns[0]]
        a1 = table[rows[r] + columns[1]]
        a2 = table[rows[r] + columns[2]]
        a3 = table[rows[r] + columns[3]]
        if r == 0:
            for c in range(out.shape[0]):
                out[c] = w0 * a0[c] + w1 * a1[c] + w2 * a2[c] + w3 * a3[c]
        else:
            for c in range(out.shape[0]):
                out[c] = out[c] + w0 * a0[c] + w1 * a1[c] + w2 * a2[c] + w3 * a3[c]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _widen(row, bfloat16, bits, wide):
    """Widen half-precision bits to float32, exactly; ``bits`` and ``wide`` are the same memory."""
    if bfloat16:
        for c in range(row.shape[0]):
            bits[c] = np.uint32(row[c]) << np.uint32(16)
        return
    for c in range(row.shape[0]):
        half = np.uint32(row[c])
        exponent = half & np.uint32(0x7C00)
        rebias = np.uint32(112 << 23)
        if exponent == np.uint32(0x7C00):  # infinity or NaN
            rebias = np.uint32(224 << 23)
        elif exponent == np.uint32(0):  # subnormal: as 2^-14 + itself, corrected below
            rebias = np.uint32(113 << 23)
        bits[c] = ((half & np.uint32(0x7FFF)) << np.uint32(13)) + rebias
    for c in range(row.shape[0]):
        if (row[c] & np.uint16(0x7C00)) == 0:
            wide[c] -= np.float32(2.0**-14)
    for c in range(row.shape[0]):
        bits[c] |= (np.uint32(row[c]) & np.uint32(0x8000)) << np.uint32(16)
