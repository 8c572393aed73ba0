"""The batches of fine-tuning: which shapes, which of their points, how they are turned and stretched.

All of it is a function of (seed, epoch, shape), as in pre-training; with "batch" settings, of the batch's first shape.
So neither the number of ranks nor that of accumulated parts changes what a batch holds.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trainer.downstream.clouds import LabelledClouds
from trainer.downstream.finetuning.config import FinetuneConfig, SegmentConfig, TuningConfig
from trainer.downstream.voting import farthest_points, pool_of
from trainer.engine.augmentation import scale_and_shift, turned
from trainer.randomness import Purpose, record_uniforms

__all__ = ["Batch", "batches", "sampled"]


class Batch(NamedTuple):
    """rows [B] int64 of the clouds; points [B, N, 3] float32; labels [B] int64; parts [B, N] int64 of the points, for
    part segmentation alone.
    """

    rows: np.ndarray
    points: np.ndarray
    labels: np.ndarray
    parts: np.ndarray | None = None

    def split(self, count: int) -> list["Batch"]:
        """Cut the batch into `count` equal parts, in order."""
        size = len(self.rows) // count
        cut = [slice(start, start + size) for start in range(0, size * count, size)]
        return [Batch(*(None if array is None else array[part] for array in self)) for part in cut]  # type: ignore[arg-type]


def batches(
    clouds: LabelledClouds, rows: np.ndarray, config: TuningConfig, epoch: int, *, rank: int = 0, ranks: int = 1
) -> Iterator[Batch]:
    """The batches of one epoch over `rows`, in random order; what does not fill the last one is left out.

    rank, ranks  yield the rank-th of so many equal, contiguous shares of each.
    """
    order = record_uniforms(rows, 1, seed=config.seed, epoch=epoch, purpose=Purpose.ORDER)[:, 0]
    shuffled = rows[np.argsort(order, kind="stable")]
    share = config.batch_size // ranks
    for start in range(0, len(rows) - config.batch_size + 1, config.batch_size):
        lead = int(shuffled[start])  # of the whole batch, whichever share this is
        chosen = shuffled[start + rank * share : start + (rank + 1) * share]
        if isinstance(config, SegmentConfig):
            assert clouds.part_labels is not None
            points, parts = sampled(
                clouds.points[chosen], clouds.part_labels[chosen], chosen, config, epoch, Purpose.POINTS
            )
            points = _augmented(points, chosen, lead, config, epoch, isotropic=config.scaling == "cloud")
            yield Batch(chosen, points, clouds.labels[chosen], parts)
        else:
            assert isinstance(config, FinetuneConfig)
            points = _from_pool(clouds.points[chosen], chosen, lead, config, epoch)
            yield Batch(chosen, _augmented(points, chosen, lead, config, epoch), clouds.labels[chosen])


def sampled(
    stored: np.ndarray, parts: np.ndarray, rows: np.ndarray, config: SegmentConfig, epoch: int, purpose: Purpose
) -> tuple[np.ndarray, np.ndarray]:
    """Draw points and the part of each: [B, M, 3] and [B, M] -> [B, N, 3] float32 and [B, N] int64, by `sampling`."""
    M = stored.shape[1]
    if config.sampling == "replacement":
        drawn = record_uniforms(rows, config.points, seed=config.seed, epoch=epoch, purpose=purpose)
        chosen = (drawn.astype(np.float64) * M).astype(np.int64)
    else:
        keys = record_uniforms(rows, M, seed=config.seed, epoch=epoch, purpose=purpose)
        chosen = np.argsort(keys, axis=1, kind="stable")[:, : config.points]
    return np.take_along_axis(stored, chosen[:, :, None], 1), np.take_along_axis(parts, chosen, 1).astype(np.int64)


def _from_pool(stored: np.ndarray, rows: np.ndarray, lead: int, config: FinetuneConfig, epoch: int) -> np.ndarray:
    """Rows are shuffled, farthest points chosen from the first of them, and of these some drawn."""
    M = stored.shape[1]
    keys = record_uniforms(rows, M, seed=config.seed, epoch=epoch, purpose=Purpose.POINTS)
    clouds = np.take_along_axis(stored, np.argsort(keys, axis=1, kind="stable")[:, :, None], axis=1)
    pool = config.pool or pool_of(config.points, M)
    if pool < M:  # of as many as there are, all are chosen, and their order is drawn below
        clouds = farthest_points(clouds, pool)
    records = np.full(len(rows), lead) if config.sharing == "batch" else rows
    keys = record_uniforms(records, pool, seed=config.seed, epoch=epoch + 1, purpose=Purpose.SUBSET)  # 0 is the tests'
    ranks = np.argsort(keys, axis=1, kind="stable")[:, : config.points]
    return np.take_along_axis(clouds, ranks[:, :, None], axis=1)


def _augmented(
    clouds: np.ndarray, rows: np.ndarray, lead: int, config: TuningConfig, epoch: int, *, isotropic: bool = False
) -> np.ndarray:
    drawn = {"seed": config.seed, "epoch": epoch}
    clouds = scale_and_shift(clouds, rows, scale=config.scale, shift=config.shift, isotropic=isotropic, **drawn)
    if config.rotation == "none":
        return clouds
    records = np.full(len(rows), lead) if config.rotation == "batch" else rows
    angle = 2 * np.pi * record_uniforms(records, 1, **drawn, purpose=Purpose.ROTATION)[:, 0].astype(np.float64)
    return turned(clouds, angle, config.up)
