"""Sort points into small boxes, so that the other twins can skip boxes that cannot matter.

A box bounds what the kernels compute, not just the real distances: subtraction, squaring and addition in float32 are
monotonic, so the squared distance to a box, taken in the same order of operations, is never above that of a point
inside.
"""

import numba
import numpy as np

from cuda.twins.threads import for_each

__all__ = ["BUCKET", "Buckets", "bucket_clouds"]

BUCKET = 16
"""Points in a box: one AVX-512 vector. Fewer would make more boxes to test, more would make looser ones."""

_CELLS = 16  # along an axis of the grid whose Morton order the points are put in

Buckets = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def bucket_clouds(points: np.ndarray) -> Buckets:
    """Sort each cloud along a Morton curve and cut it into boxes of BUCKET.

    points  [B, N, 3] float32.
    ->      xyz [B, 3, R] float32, the sorted points, padded with the last to a multiple of BUCKET;
            source [B, R] int32, their indices into N; box_lo and box_hi [B, 3, R / BUCKET] float32.
    """
    B, N, _ = points.shape
    boxes = -(-N // BUCKET)
    xyz = np.empty((B, 3, boxes * BUCKET), np.float32)
    source = np.empty((B, boxes * BUCKET), np.int32)
    box_lo, box_hi = np.empty((B, 3, boxes), np.float32), np.empty((B, 3, boxes), np.float32)
    for_each(B, _sort, points, xyz, source, box_lo, box_hi)
    return xyz, source, box_lo, box_hi


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _sort(begin, end, points, xyz, source, box_lo, box_hi):
    N = points.shape[1]
    padded = xyz.shape[2]
    code = np.empty(N, np.int32)
    place = np.empty(_CELLS**3 + 1, np.int32)
    for b in range(begin, end):
        code[:] = 0
        for axis in range(3):
            low = high = points[b, 0, axis]
            for i in range(N):
                p = points[b, i, axis]
                low = p if p < low else low
                high = p if p > high else high
            extent = high - low
            if not extent > np.float32(0):
                continue
            for i in range(N):
                at = (points[b, i, axis] - low) / extent * np.float32(_CELLS)
                at = at if at > np.float32(0) else np.float32(0)  # also what an infinite extent leaves undefined
                cell = np.int32(at if at < np.float32(_CELLS - 1) else np.float32(_CELLS - 1))
                spread = (cell & 1) | (cell & 2) << 2 | (cell & 4) << 4 | (cell & 8) << 6
                code[i] |= spread << axis

        place[:] = 0
        for i in range(N):
            place[code[i] + 1] += 1
        for c in range(_CELLS**3):
            place[c + 1] += place[c]
        for i in range(N):
            at_place = place[code[i]]
            place[code[i]] += 1
            source[b, at_place] = i
            for axis in range(3):
                xyz[b, axis, at_place] = points[b, i, axis]
        for i in range(N, padded):
            source[b, i] = source[b, N - 1]
            for axis in range(3):
                xyz[b, axis, i] = xyz[b, axis, N - 1]

        for axis in range(3):
            for box in range(padded // BUCKET):
                low = high = xyz[b, axis, box * BUCKET]
                for i in range(box * BUCKET, (box + 1) * BUCKET):
                    p = xyz[b, axis, i]
                    low = p if p < low else low
                    high = p if p > high else high
                box_lo[b, axis, box] = low
                box_hi[b, axis, box] = high
