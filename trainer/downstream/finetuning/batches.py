"""The batches of fine-tuning: which shapes, which of their points, how they are turned and stretched.

All of it is a function of (seed, epoch, shape), as in pre-training; with "batch" settings, of the batch's first shape.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trainer.downstream.clouds import LabelledClouds
from trainer.downstream.finetuning.config import FinetuneConfig
from trainer.downstream.voting import farthest_points, pool_of
from trainer.engine.augmentation import scale_and_shift
from trainer.randomness import Purpose, record_uniforms

__all__ = ["Batch", "batches", "turned"]


class Batch(NamedTuple):
    """rows [B] int64 of the clouds; points [B, N, 3] float32; labels [B] int64."""

    rows: np.ndarray
    points: np.ndarray
    labels: np.ndarray


def batches(clouds: LabelledClouds, rows: np.ndarray, config: FinetuneConfig, epoch: int) -> Iterator[Batch]:
    """The batches of one epoch over `rows`, in random order; what does not fill the last one is left out."""
    order = record_uniforms(rows, 1, seed=config.seed, epoch=epoch, purpose=Purpose.ORDER)[:, 0]
    shuffled = rows[np.argsort(order, kind="stable")]
    for start in range(0, len(rows) - config.batch_size + 1, config.batch_size):
        chosen = shuffled[start : start + config.batch_size]
        yield Batch(chosen, _points(clouds.points[chosen], chosen, config, epoch), clouds.labels[chosen])


def _points(stored: np.ndarray, rows: np.ndarray, config: FinetuneConfig, epoch: int) -> np.ndarray:
    """Rows are shuffled, farthest points chosen from the first of them, of these some drawn, then augmented."""
    M = stored.shape[1]
    drawn = {"seed": config.seed, "epoch": epoch}
    order = np.argsort(record_uniforms(rows, M, **drawn, purpose=Purpose.POINTS), axis=1, kind="stable")
    clouds = np.take_along_axis(stored, order[:, :, None], axis=1)
    pool = config.pool or pool_of(config.points, M)
    if pool < M:  # of as many as there are, all are chosen, and their order is drawn below
        clouds = farthest_points(clouds, pool)
    records = np.full(len(rows), rows[0]) if config.sharing == "batch" else rows
    keys = record_uniforms(records, pool, seed=config.seed, epoch=epoch + 1, purpose=Purpose.SUBSET)  # 0 is the tests'
    ranks = np.argsort(keys, axis=1, kind="stable")[:, : config.points]
    clouds = np.take_along_axis(clouds, ranks[:, :, None], axis=1)
    clouds = scale_and_shift(clouds, rows, scale=config.scale, shift=config.shift, **drawn)
    if config.rotation == "none":
        return clouds
    records = np.full(len(rows), rows[0]) if config.rotation == "batch" else rows
    angle = 2 * np.pi * record_uniforms(records, 1, **drawn, purpose=Purpose.ROTATION)[:, 0].astype(np.float64)
    return turned(clouds, angle, config.up)


def turned(clouds: np.ndarray, angle: np.ndarray, up: str) -> np.ndarray:
    """Clouds [B, N, 3] turned about the axis `up` ("y" or "z") by angles [B] in radians, float32."""
    a, b = (0, 1) if up == "z" else (2, 0)
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    found = clouds.copy()
    found[..., a] = c * clouds[..., a] - s * clouds[..., b]
    found[..., b] = s * clouds[..., a] + c * clouds[..., b]
    return found
