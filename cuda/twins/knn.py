"""Numba twin of ``kernels/knn.cu``: exact nearest neighbours."""

import numba
import numpy as np

from cuda.twins.buckets import BUCKET, bucket_clouds
from cuda.twins.threads import for_each

__all__ = ["knn"]

_QUERIES = 32  # of one cloud that make a work item
_NONE = 2**63 - 1
_CAPACITY = 192  # candidates held; more than the largest k, a box and some
_FIRST = 4  # boxes; with one alone the limit is so loose that several times as many candidates are left to rank
_VISITED = 2**31 - 1  # above the bits of any float


def knn(points: np.ndarray, queries: np.ndarray, k: int, dist2: np.ndarray, idx: np.ndarray) -> None:
    """Find the neighbours of every query.

    in  points [B, N, 3] f32, queries [B, M, 3] f32     out  dist2 [B, M, K] f32, idx [B, M, K] i32, ascending
    Arithmetic: subtract first; dx*dx, + dy*dy, + dz*dz in that order, unfused. Ties keep the lowest index.

    A box of points is passed over when it is farther than the worst neighbour kept.
    """
    items = len(queries) * -(-queries.shape[1] // _QUERIES)
    if items:
        for_each(items, _search, *bucket_clouds(points), points.shape[1], queries, k, dist2, idx)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _search(begin, end, xyz, source, box_lo, box_hi, N, queries, k, dist2, idx):
    M = queries.shape[1]
    items_of_cloud = (M + _QUERIES - 1) // _QUERIES
    boxes = box_lo.shape[2]
    assert xyz.shape[2] == boxes * BUCKET, "compiled for another BUCKET: delete cuda/twins/__pycache__"
    gap = np.empty(boxes, np.float32)
    gap_bits = gap.view(np.int32)
    found = np.empty(BUCKET, np.float32)
    found_bits = found.view(np.int32)
    order = np.empty(boxes, np.int32)
    # A key is the bits of the squared distance (ordered like it, since none is negative) over the index: unique, so the
    # order in which boxes are visited is free.
    keys = np.empty(_CAPACITY, np.int64)
    ranked = np.empty(_CAPACITY + 1, np.int64)
    kept = np.empty(1, np.float32)
    kept_bits = kept.view(np.int32)
    for item in range(begin, end):
        b = item // items_of_cloud
        x, y, z, index = xyz[b, 0], xyz[b, 1], xyz[b, 2], source[b]
        x_lo, y_lo, z_lo = box_lo[b, 0], box_lo[b, 1], box_lo[b, 2]
        x_hi, y_hi, z_hi = box_hi[b, 0], box_hi[b, 1], box_hi[b, 2]
        first = item % items_of_cloud * _QUERIES
        for m in range(first, min(first + _QUERIES, M)):
            qx, qy, qz = queries[b, m, 0], queries[b, m, 1], queries[b, m, 2]
            for box in range(boxes):
                dx = _outside(qx, x_lo[box], x_hi[box])
                dy = _outside(qy, y_lo[box], y_hi[box])
                dz = _outside(qz, z_lo[box], z_hi[box])
                gap[box] = dx * dx + dy * dy + dz * dz
            # The nearest boxes first, one by one, until the limit is tight; then the others that are within it.
            count = 0
            visited = 0
            while visited < min(_FIRST, boxes) or count < k:
                nearest = np.int32(_VISITED)
                for box in range(boxes):
                    nearest = min(nearest, gap_bits[box])
                box = 0
                while gap_bits[box] != nearest:
                    box += 1
                gap_bits[box] = _VISITED
                worst = keys[k - 1] if count >= k else _NONE
                count = _visit(x, y, z, index, box * BUCKET, N, qx, qy, qz, found, found_bits, keys, count, worst)
                visited += 1
                if count >= k:
                    count = _rank(keys, ranked, count, k)
            # A box at exactly the limit is visited too: it may hold an equal distance with a lower index.
            limit = np.int32(keys[k - 1] >> 32)
            waiting = 0
            for box in range(boxes):
                order[waiting] = box
                waiting += gap_bits[box] <= limit
            for w in range(waiting):
                worst = keys[k - 1]
                count = _visit(x, y, z, index, order[w] * BUCKET, N, qx, qy, qz, found, found_bits, keys, count, worst)
                if count > _CAPACITY - BUCKET:
                    count = _rank(keys, ranked, count, k)
            if count > k:
                _rank(keys, ranked, count, k)
            for j in range(k):
                idx[b, m, j] = np.int32(keys[j] & 0xFFFFFFFF)
                kept_bits[0] = np.int32(keys[j] >> 32)
                dist2[b, m, j] = kept[0]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _outside(q, lo, hi):
    """Return how far a coordinate lies outside an interval; 0 inside."""
    below = lo - q
    above = q - hi
    gap = below if below > above else above
    return gap if gap > np.float32(0) else np.float32(0)


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _visit(x, y, z, index, start, N, qx, qy, qz, found, found_bits, keys, count, limit):
    """Append the keys below ``limit`` of the box that begins at ``start``; -> the new count."""
    for i in range(BUCKET):
        dx = x[start + i] - qx
        dy = y[start + i] - qy
        dz = z[start + i] - qz
        found[i] = dx * dx + dy * dy + dz * dz
    for i in range(min(BUCKET, N - start)):
        key = np.int64(found_bits[i]) << 32 | index[start + i]
        keys[count] = key  # written without a branch, which the processor could not predict
        count += key < limit
    return count


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _rank(keys, ranked, count, k):
    """Sort the first ``count`` keys by counting the smaller ones, which needs no branch either; keep k."""
    for i in range(count):
        key = keys[i]
        rank = 0
        for j in range(count):
            rank += keys[j] < key
        ranked[rank] = key
    keys[:k] = ranked[:k]
    return k
