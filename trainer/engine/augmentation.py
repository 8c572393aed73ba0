"""The student's cloud: which stored pose and points of a shape, and how they are stretched and shifted.

What is drawn for a record is a function of (seed, epoch, record) alone (`trainer.randomness`). So nothing
depends on the batch a shape falls into, on the rank or thread that reads it, or on what was drawn before; a run that
goes on after a stop has no generator to restore.
"""

import numpy as np

from trainer.randomness import Purpose, record_uniforms

__all__ = ["choose_points", "choose_poses", "renormalised", "scale_and_shift"]


def choose_poses(shapes: np.ndarray, poses: int, *, seed: int, epoch: int) -> np.ndarray:
    """Which of its `poses` stored poses each shape shows in this epoch.

    shapes [B] int64, numbers of shapes in the cache -> [B] int64 in 0..poses - 1.
    """
    drawn = record_uniforms(shapes, 1, seed=seed, epoch=epoch, purpose=Purpose.POSE)[:, 0]
    return (drawn.astype(np.float64) * poses).astype(np.int64)


def choose_points(records: np.ndarray, stored: int, count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Which `count` of the `stored` points each record shows in this epoch: without replacement, in random order.

    records [B] int64 -> [B, count] int64. The order matters: farthest point sampling starts from the first point.
    """
    keys = record_uniforms(records, stored, seed=seed, epoch=epoch, purpose=Purpose.POINTS)
    return np.argsort(keys, axis=1, kind="stable")[:, :count]


def renormalised(points: np.ndarray) -> np.ndarray:
    """Clouds [B, N, 3] float32 minus their mean, divided by their largest norm."""
    centred = points - points.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    largest = np.sqrt((centred**2).sum(axis=2)).max(axis=1)
    # All drawn points may coincide (a cloud of many duplicates); it then stays at the origin instead of becoming NaN.
    return centred / np.where(largest > 0, largest, 1)[:, None, None].astype(np.float32)


def scale_and_shift(
    points: np.ndarray, records: np.ndarray, *, scale: tuple[float, float], shift: float, seed: int, epoch: int
) -> np.ndarray:
    """Clouds [B, N, 3] float32 times a factor uniform in `scale`, plus an offset uniform in -shift..shift, per axis.

    Scale (1, 1) and shift 0 return the same values. Source: Point-M2AE's PointcloudScaleAndTranslate.
    """
    drawn = record_uniforms(records, 6, seed=seed, epoch=epoch, purpose=Purpose.AUGMENTATION)
    low, high = np.float32(scale[0]), np.float32(scale[1])
    factor = low + (high - low) * drawn[:, None, :3]
    offset = np.float32(shift) * (2 * drawn[:, None, 3:] - 1)
    return points * factor + offset
