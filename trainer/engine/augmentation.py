"""Augmentation of the student's cloud: choice of stored pose and points, scale and shift.

The draws of a record are a function of (seed, epoch, record) alone (`trainer.randomness`). So nothing depends on the
batch a shape falls into, on the rank or thread that reads it, or on earlier draws; a resumed run has no generator to
restore.
"""

import numpy as np

from trainer.randomness import Purpose, record_uniforms

__all__ = ["choose_points", "choose_poses", "renormalised", "scale_and_shift", "turned"]


def choose_poses(shapes: np.ndarray, poses: int, *, seed: int, epoch: int) -> np.ndarray:
    """Choose which of its `poses` stored poses each shape shows in this epoch.

    shapes [B] int64, numbers of shapes in the cache -> [B] int64 in 0..poses - 1.
    """
    drawn = record_uniforms(shapes, 1, seed=seed, epoch=epoch, purpose=Purpose.POSE)[:, 0]
    return (drawn.astype(np.float64) * poses).astype(np.int64)


def choose_points(records: np.ndarray, stored: int, count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Choose `count` of the `stored` points of each record for this epoch, without replacement, in random order.

    records [B] int64 -> [B, count] int64. The order matters: farthest point sampling starts from the first point.
    """
    # Sorting keys instead of a generator's permutation: a pure function of the record, and stable at equal keys.
    keys = record_uniforms(records, stored, seed=seed, epoch=epoch, purpose=Purpose.POINTS)
    return np.argsort(keys, axis=1, kind="stable")[:, :count]


def renormalised(points: np.ndarray) -> np.ndarray:
    """Centre clouds [B, N, 3] float32 at their mean and divide them by their largest norm."""
    centred = points - points.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    largest = np.sqrt((centred**2).sum(axis=2)).max(axis=1)
    # All drawn points may coincide (a cloud of many duplicates); it then stays at the origin instead of becoming NaN.
    return centred / np.where(largest > 0, largest, 1)[:, None, None].astype(np.float32)


def scale_and_shift(
    points: np.ndarray,
    records: np.ndarray,
    *,
    scale: tuple[float, float],
    shift: float,
    seed: int,
    epoch: int,
    isotropic: bool = False,
) -> np.ndarray:
    """Scale clouds [B, N, 3] float32 per axis, uniformly in `scale`, and shift them, uniformly in -shift..shift.

    isotropic  all axes of a cloud have one factor, as the field augments for part segmentation.

    Scale (1, 1) and shift 0 return the same values. Source: Point-M2AE's PointcloudScaleAndTranslate.
    """
    drawn = record_uniforms(records, 6, seed=seed, epoch=epoch, purpose=Purpose.AUGMENTATION)
    low, high = np.float32(scale[0]), np.float32(scale[1])
    factor = low + (high - low) * drawn[:, None, : 1 if isotropic else 3]
    offset = np.float32(shift) * (2 * drawn[:, None, 3:] - 1)
    return points * factor + offset


def turned(clouds: np.ndarray, angle: np.ndarray, up: str) -> np.ndarray:
    """Turn clouds [B, N, 3] about the axis `up` ("y" or "z") by angles [B] in radians -> float32."""
    a, b = (0, 1) if up == "z" else (2, 0)
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    found = clouds.copy()
    found[..., a] = c * clouds[..., a] - s * clouds[..., b]
    found[..., b] = s * clouds[..., a] + c * clouds[..., b]
    return found
