"""Numba twin of ``kernels/gather.cu``: rows of a cloud's array at indices, and the gradient.

An index outside the cloud is reported, not read: the work item's place in ``wrong`` is set.
"""

import numba

__all__ = ["gather", "gather_backward", "group"]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def gather(begin, end, values, idx, parts, rows, wrong):
    """Compute work items ``begin..end``; item t is part ``t % parts`` of the rows of cloud ``t // parts``.

    in   values [B, N, D] f32 or f64, or u16 bits; idx [B, P] i64
    out  rows [B, P, D], values' dtype; wrong [B parts] bool
    """
    P = idx.shape[1]
    size = (P + parts - 1) // parts
    for item in range(begin, end):
        b = item // parts
        start = item % parts * size
        for p in range(start, min(start + size, P)):
            n = idx[b, p]
            if n < 0 or n >= values.shape[1]:
                wrong[item] = True
                continue
            _copy(values[b, n], rows[b, p])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def group(begin, end, points, centres, idx, parts, rows, wrong):
    """Compute work items as in `gather`, of groups instead of rows.

    in   points [B, N, D] f32 or f64, centres [B, G, D], idx [B, G, K] i64     out  rows [B, G, K, D]; wrong as above
    """
    G, K, D = idx.shape[1], idx.shape[2], points.shape[2]
    size = (G + parts - 1) // parts
    for item in range(begin, end):
        b = item // parts
        start = item % parts * size
        for g in range(start, min(start + size, G)):
            for k in range(K):
                n = idx[b, g, k]
                if n < 0 or n >= points.shape[1]:
                    wrong[item] = True
                    continue
                for d in range(D):
                    rows[b, g, k, d] = points[b, n, d] - centres[b, g, d]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def gather_backward(begin, end, grad, idx, parts, sums):
    """Compute work items ``begin..end``; item t is part ``t % parts`` of the channels of cloud ``t // parts``.

    in  grad [B, P, D] f32 or f64, idx [B, P] i64, all of it inside     out  sums [B, N, D]
    Arithmetic: from 0, by ascending p, in that type.
    """
    D = grad.shape[2]
    size = (D + parts - 1) // parts
    for item in range(begin, end):
        b = item // parts
        start = item % parts * size
        stop = min(start + size, D)
        for n in range(sums.shape[1]):
            for d in range(start, stop):
                sums[b, n, d] = 0
        for p in range(idx.shape[1]):
            n = idx[b, p]
            _add(grad[b, p, start:stop], sums[b, n, start:stop])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _copy(row, to):
    for d in range(len(to)):
        to[d] = row[d]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add(row, to):
    for d in range(len(to)):
        to[d] += row[d]
