"""Numba twin of ``kernels/fps.cu``: farthest point sampling, one cloud after another."""

from typing import Any

import numba
import numba.extending
import numpy as np

from cuda.twins.buckets import BUCKET, bucket_clouds
from cuda.twins.threads import for_each

__all__ = ["fps"]

_NEVER = -(2**31)  # below the bits of any float, -1 included
_U = np.uint64  # of indices: numba checks signed ones for negative values, and those loops stay scalar

# A box's points lie together: BUCKET values each of x, y, z and best, the squared distance to the chosen set.
_X, _Y, _Z, _BEST, _BOX = (_U(row * BUCKET) for row in range(5))

# And so do BLOCK neighbouring boxes: their corners, the bits of the largest best in each, and the gap to a new sample.
_BLOCK = 16
_X_LO, _Y_LO, _Z_LO, _X_HI, _Y_HI, _Z_HI, _TOP, _GAP, _BOXES = (_U(row * _BLOCK) for row in range(9))


def fps(points: np.ndarray, k: int, skip_near_origin: bool, idx: np.ndarray) -> None:
    """Sample every cloud.

    in  points [B, N, 3] f32 contiguous     out  idx [B, K] i32
    Arithmetic: dx*dx, + dy*dy, + dz*dz in that order, unfused. Argmax keeps the lowest index.
    Any B, N >= 1, 1 <= K <= N.

    A box of points is left alone when the new sample is no nearer to it than the farthest of its points is to the
    chosen set: none of its distances would change. So is a block of boxes, by the box around them.
    """
    # BUCKET as an argument: LLVM unrolls a loop of 16 and then leaves it scalar; one of unknown length it vectorises.
    for_each(len(points), _sample, *bucket_clouds(points), points.shape[1], k, skip_near_origin, BUCKET, idx)


def _trailing_zeros(_, value):
    """Return the place of the lowest bit that is set in a uint64: one instruction, which NumPy has no name for."""

    def count_zeros(context, builder, signature, arguments):
        return builder.cttz(arguments[0], context.get_constant(numba.types.boolean, True))

    return value(value), count_zeros


_lowest_bit: Any = numba.extending.intrinsic(_trailing_zeros)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _sample(begin, end, xyz, source, box_lo, box_hi, N, k, skip_near_origin, lanes, idx):
    boxes = box_lo.shape[2]
    blocks = (boxes + _BLOCK - 1) // _BLOCK
    assert xyz.shape[2] == boxes * BUCKET, "compiled for another BUCKET: delete cuda/twins/__pycache__"
    box = np.empty(boxes * np.int64(_BOX), np.float32)
    box_bits = box.view(np.int32)  # ordered like the floats, and LLVM vectorises an integer maximum
    block = np.empty(blocks * np.int64(_BOXES), np.float32)
    block_bits = block.view(np.int32)
    lo, hi = np.empty((3, blocks), np.float32), np.empty((3, blocks), np.float32)
    gap = np.empty(blocks, np.float32)
    gap_bits = gap.view(np.int32)
    top = np.empty(blocks, np.int32)  # the bits of the largest best in each block
    near = np.empty(blocks, np.uint64)
    x_lo, y_lo, z_lo = lo[0], lo[1], lo[2]
    x_hi, y_hi, z_hi = hi[0], hi[1], hi[2]
    for b in range(begin, end):
        chosen = _lay_out(xyz[b], source[b], N, skip_near_origin, box)
        _bound(box_lo[b], box_hi[b], box_bits, block, block_bits, lo, hi, top)
        idx[b, 0] = 0
        for j in range(1, k):
            at = _U(chosen // BUCKET) * _BOX + _U(chosen % BUCKET)
            cx, cy, cz = box[at], box[at + _Y], box[at + _Z]
            for s in range(blocks):
                dx = max(x_lo[s] - cx, cx - x_hi[s], np.float32(0))
                dy = max(y_lo[s] - cy, cy - y_hi[s], np.float32(0))
                dz = max(z_lo[s] - cz, cz - z_hi[s], np.float32(0))
                gap[s] = dx * dx + dy * dy + dz * dz
            # Exact, not a heuristic: gap never exceeds the distance of a point inside, since float32 subtraction,
            # squaring and addition are monotonic. So no distance in a box that is left out would change.
            touched = _U(0)
            for s in range(blocks):
                near[touched] = _U(s)
                touched += _U(gap_bits[s] < top[s])
            for t in range(touched):
                s = near[t]
                start = s * _BOXES
                for i in range(_BLOCK):
                    at = start + _U(i)
                    dx = max(block[at + _X_LO] - cx, cx - block[at + _X_HI], np.float32(0))
                    dy = max(block[at + _Y_LO] - cy, cy - block[at + _Y_HI], np.float32(0))
                    dz = max(block[at + _Z_LO] - cz, cz - block[at + _Z_HI], np.float32(0))
                    block[at + _GAP] = dx * dx + dy * dy + dz * dz
                touched_boxes = _U(0)  # a bit each
                for i in range(lanes):
                    at = start + _U(i)
                    touched_boxes |= _U(block_bits[at + _GAP] < block_bits[at + _TOP]) << _U(i)
                left = touched_boxes
                while left:
                    n = _lowest_bit(left)
                    left &= left - _U(1)
                    first = (s * _U(_BLOCK) + n) * _BOX
                    for i in range(lanes):
                        at = first + _U(i)
                        dx = box[at] - cx
                        dy = box[at + _Y] - cy
                        dz = box[at + _Z] - cz
                        dist2 = dx * dx + dy * dy + dz * dz
                        box[at + _BEST] = min(box[at + _BEST], dist2)
                    block_bits[start + _TOP + n] = _highest(box_bits, first + _BEST, lanes)
                if touched_boxes:
                    top[s] = _highest(block_bits, start + _TOP, _BLOCK)

            highest = np.int32(_NEVER)
            for s in range(blocks):
                highest = max(highest, top[s])
            lowest_idx = np.int32(N)
            for s in range(blocks):
                if top[s] == highest:
                    for i in range(_BLOCK):
                        if block_bits[_U(s) * _BOXES + _TOP + _U(i)] == highest:
                            first = (s * _BLOCK + i) * BUCKET
                            at = _U(s * _BLOCK + i) * _BOX + _BEST
                            for p in range(min(BUCKET, N - first)):
                                if box_bits[at + _U(p)] == highest and source[b, first + p] < lowest_idx:
                                    lowest_idx = source[b, first + p]
                                    chosen = first + p
            idx[b, j] = lowest_idx


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _lay_out(xyz, source, N, skip_near_origin, box):
    """Write the boxes of one cloud; -> the place of point 0 in its sorted order."""
    chosen = 0
    for i in range(xyz.shape[1]):
        x, y, z = xyz[0, i], xyz[1, i], xyz[2, i]
        at = _U(i // BUCKET) * _BOX + _U(i % BUCKET)
        box[at], box[at + _Y], box[at + _Z] = x, y, z
        norm2 = x * x + y * y + z * z
        excluded = i >= N or (skip_near_origin and np.float64(norm2) <= 1e-3)
        box[at + _BEST] = np.float32(-1) if excluded else np.float32(np.inf)  # -1: never to be chosen
        if source[i] == 0 and i < N:
            chosen = i
    return chosen


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _bound(box_lo, box_hi, box_bits, block, block_bits, lo, hi, top):
    """Write the blocks of one cloud, the corners around each and the largest best in it."""
    boxes = box_lo.shape[1]
    for s in range(len(top)):
        start = _U(s) * _BOXES
        top[s] = _NEVER
        for i in range(_BLOCK):
            n = min(s * _BLOCK + i, boxes - 1)  # the last block is filled up with boxes that hold no points
            for axis in range(3):
                block[start + _U(axis * _BLOCK + i)] = box_lo[axis, n]
                block[start + _X_HI + _U(axis * _BLOCK + i)] = box_hi[axis, n]
            empty = s * _BLOCK + i >= boxes
            highest = np.int32(_NEVER) if empty else _highest(box_bits, _U(n) * _BOX + _BEST, BUCKET)
            block_bits[start + _TOP + _U(i)] = highest
            top[s] = max(top[s], highest)
        for axis in range(3):
            lo[axis, s], hi[axis, s] = box_lo[axis, s * _BLOCK], box_hi[axis, s * _BLOCK]
            for n in range(s * _BLOCK, min((s + 1) * _BLOCK, boxes)):
                lo[axis, s] = min(lo[axis, s], box_lo[axis, n])
                hi[axis, s] = max(hi[axis, s], box_hi[axis, n])


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _highest(bits, start, count):
    highest = np.int32(_NEVER)
    for i in range(count):
        highest = max(highest, bits[start + _U(i)])
    return highest
