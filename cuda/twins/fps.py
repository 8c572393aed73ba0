"""Numba twin of ``kernels/fps.cu``: farthest point sampling, one cloud after another."""

import numba
import numpy as np

from cuda.twins.buckets import BUCKET, bucket_clouds
from cuda.twins.threads import for_each

__all__ = ["fps"]

_NEVER = -(2**31)  # below the bits of any float, -1 included


def fps(points: np.ndarray, k: int, skip_near_origin: bool, idx: np.ndarray) -> None:
    """Sample every cloud.

    in  points [B, N, 3] f32 contiguous     out  idx [B, K] i32
    Arithmetic: dx*dx, + dy*dy, + dz*dz in that order, unfused. Argmax keeps the lowest index.
    Any B, N >= 1, 1 <= K <= N.

    A box of points is left alone when the new sample is no nearer to it than the farthest of its points is to the
    chosen set: none of its distances would change.
    """
    for_each(len(points), _sample, *bucket_clouds(points), points.shape[1], k, skip_near_origin, idx)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _sample(begin, end, xyz, source, box_lo, box_hi, N, k, skip_near_origin, idx):
    padded = xyz.shape[2]
    boxes = box_lo.shape[2]
    assert padded == boxes * BUCKET, "compiled for another BUCKET: delete cuda/twins/__pycache__"
    best = np.empty(padded, np.float32)  # squared distance to the chosen set; -1: never to be chosen
    bits = best.view(np.int32)  # ordered like the floats, and LLVM vectorises an integer maximum
    gap = np.empty(boxes, np.float32)
    gap_bits = gap.view(np.int32)
    top = np.empty(boxes, np.int32)  # the bits of the largest best in each box
    near = np.empty(boxes, np.int32)
    for b in range(begin, end):
        x, y, z = xyz[b, 0], xyz[b, 1], xyz[b, 2]
        x_lo, y_lo, z_lo = box_lo[b, 0], box_lo[b, 1], box_lo[b, 2]
        x_hi, y_hi, z_hi = box_hi[b, 0], box_hi[b, 1], box_hi[b, 2]
        chosen = 0
        for i in range(padded):
            norm2 = x[i] * x[i] + y[i] * y[i] + z[i] * z[i]
            excluded = i >= N or (skip_near_origin and np.float64(norm2) <= 1e-3)
            best[i] = np.float32(-1) if excluded else np.float32(np.inf)
            if source[b, i] == 0 and i < N:
                chosen = i
        for box in range(boxes):
            top[box] = _NEVER
            for i in range(box * BUCKET, (box + 1) * BUCKET):
                top[box] = max(top[box], bits[i])
        idx[b, 0] = 0
        for j in range(1, k):
            cx, cy, cz = x[chosen], y[chosen], z[chosen]
            for box in range(boxes):
                dx = max(x_lo[box] - cx, cx - x_hi[box], np.float32(0))
                dy = max(y_lo[box] - cy, cy - y_hi[box], np.float32(0))
                dz = max(z_lo[box] - cz, cz - z_hi[box], np.float32(0))
                gap[box] = dx * dx + dy * dy + dz * dz
            # Exact, not a heuristic: gap never exceeds the distance of a point inside, since float32 subtraction,
            # squaring and addition are monotonic. So no distance in a box that is left out would change.
            touched = 0
            for box in range(boxes):
                near[touched] = box
                touched += gap_bits[box] < top[box]
            for t in range(touched):
                start = near[t] * BUCKET
                for i in range(start, start + BUCKET):
                    dx = x[i] - cx
                    dy = y[i] - cy
                    dz = z[i] - cz
                    dist2 = dx * dx + dy * dy + dz * dz
                    best[i] = dist2 if dist2 < best[i] else best[i]
                highest = np.int32(_NEVER)
                for i in range(start, start + BUCKET):
                    highest = max(highest, bits[i])
                top[near[t]] = highest

            highest = np.int32(_NEVER)
            for box in range(boxes):
                highest = max(highest, top[box])
            lowest_idx = np.int32(N)
            for box in range(boxes):
                if top[box] == highest:
                    for i in range(box * BUCKET, min((box + 1) * BUCKET, N)):
                        if bits[i] == highest and source[b, i] < lowest_idx:
                            lowest_idx = source[b, i]
                            chosen = i
            idx[b, j] = lowest_idx
