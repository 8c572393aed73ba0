"""Numba twin of ``kernels/chamfer.cu``: nearest squared distances between small sets, and their gradient."""

import numba
import numpy as np

__all__ = ["nearest", "nearest_backward"]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def nearest(begin, end, a, b, dist2, idx):
    """Compute sets ``begin..end``: the nearest b of each a.

    in  a [M, P, 3] f32, b [M, Q, 3] f32     out  dist2 [M, P] f32, idx [M, P] i32 into Q: the nearest b of each a
    Arithmetic: subtract first; dx*dx, + dy*dy, + dz*dz in that order, unfused. Ties keep the lowest index.
    """
    Q = b.shape[1]
    x = np.empty(Q, np.float32)
    y = np.empty(Q, np.float32)
    z = np.empty(Q, np.float32)
    found = np.empty(Q, np.float32)
    bits = found.view(np.int32)  # ordered like the (non-negative) floats, and LLVM vectorises an integer minimum
    for m in range(begin, end):
        for q in range(Q):
            x[q] = b[m, q, 0]
            y[q] = b[m, q, 1]
            z[q] = b[m, q, 2]
        for p in range(a.shape[1]):
            ax = a[m, p, 0]
            ay = a[m, p, 1]
            az = a[m, p, 2]
            for q in range(Q):
                dx = ax - x[q]
                dy = ay - y[q]
                dz = az - z[q]
                found[q] = dx * dx + dy * dy + dz * dz
            least = bits[0]
            for q in range(Q):
                least = min(least, bits[q])
            at = 0
            while bits[at] != least:
                at += 1
            dist2[m, p] = found[at]
            idx[m, p] = at


@numba.njit(nogil=True, cache=True, error_model="numpy")
def nearest_backward(begin, end, a, b, from_a, from_b, grad_a, grad_b, grad):
    """Compute sets ``begin..end``: the gradient with respect to a.

    in   a, b as above; from_a [M, P] i32 and from_b [M, Q] i32: the nearest of each; grad_a [M, P], grad_b [M, Q] f32
    out  grad [M, P, 3] f32 with respect to a
    Arithmetic: own term first, then those of the b whose nearest this is, by ascending index; a term is
    (2 * g) * (a - b) in f32, unfused.
    """
    two = np.float32(2)
    for m in range(begin, end):
        for p in range(a.shape[1]):
            g = two * grad_a[m, p]
            for axis in range(3):
                grad[m, p, axis] = g * (a[m, p, axis] - b[m, from_a[m, p], axis])
        for q in range(b.shape[1]):
            p = from_b[m, q]
            g = two * grad_b[m, q]
            for axis in range(3):
                grad[m, p, axis] += g * (a[m, p, axis] - b[m, q, axis])
