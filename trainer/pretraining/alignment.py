"""Targets of the global loss (`trainer.losses.alignment`) in one run: read from its cache, gathered over ranks.

Letters: B shapes, V views, C channels.
"""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cuda.geometry import ViewGeometry
from cuda.untouched import untouched_tokens
from teacher_cache import Cache, RecordBatch, Selection, ShardDamaged
from trainer.config import AlignmentConfig
from trainer.engine.ranks import Ranks
from trainer.errors import TrainingError
from trainer.losses.alignment import Candidates, targets

__all__ = ["Alignment", "wholes_of"]

logger = logging.getLogger(__name__)

MEAN_OF = 4096  # records at most that the corpus' mean is taken over
CHUNK = 64  # records read at once
CLASS_TOKEN, STAND_IN = "class token", "mean of the patch features that lookups read"


def wholes_of(batch: RecordBatch, image_side: int, patch_side: int) -> NDArray[np.float32]:
    """Compute the teacher's vector for each view as a whole, [B, V, C] float32.

    These are class tokens where the cache has them. Otherwise the mean over the patch features that some lookup at a
    stored point reads stands in, which `cache.untouched = "zero"` does not change.
    """
    if batch.class_token is not None:
        return batch.class_token.astype(np.float32)
    geometry = ViewGeometry(*(torch.from_numpy(array) for array in (batch.lo, batch.cell, batch.offset)))
    untouched = untouched_tokens(batch.points, geometry, image_side=image_side, side=image_side // patch_side)
    features = np.where(untouched[..., None], np.float32(0), batch.features.astype(np.float32))
    # Every window holds 16 taps, and every stored cloud a point, so at least one token counts.
    return features.sum(axis=2) / (~untouched).sum(axis=2, dtype=np.float32)[..., None]


class Alignment:
    """The targets of one run.

    mean    [V, C] float32, of the corpus' class tokens, or of a sample of MEAN_OF records drawn by the seed
    fixed   candidates of a fixed sample of the corpus; None: those of each batch
    source  the vector that represents a view: CLASS_TOKEN or STAND_IN
    """

    def __init__(self, config: AlignmentConfig, mean: Tensor, fixed: Candidates | None, source: str):
        self.config, self.mean, self.fixed, self.source = config, mean, fixed, source

    @classmethod
    def of_cache(
        cls, config: AlignmentConfig, cache: Cache | Selection, *, seed: int, device: torch.device, skip_damaged: bool
    ) -> "Alignment":
        """Read the targets from a cache; the same for the same cache and seed, whatever the rank.

        skip_damaged  leave records out that fail their checksum, instead of raising ShardDamaged.

        Raises TrainingError where no record is left.
        """
        source = CLASS_TOKEN if cache.stores_class else STAND_IN
        if not cache.stores_class:
            logger.warning(
                "the cache has no class tokens, so the global loss uses the %s of each view instead. A cache built "
                'with cache.class_token = "float16" has them.',
                STAND_IN,
            )
        total, count = np.zeros(1), 0
        for _, wholes in _read(cache, _drawn(len(cache), MEAN_OF, seed, 0), skip_damaged):
            total, count = total + wholes.sum(axis=0, dtype=np.float64), count + len(wholes)
        if not count:
            raise TrainingError("no record of the cache can be read, so the mean for the global loss is undefined")
        mean = torch.from_numpy((total / count).astype(np.float32))
        fixed = None
        if config.negatives:
            chosen = _drawn(len(cache) // cache.poses, config.negatives, seed, 1) * cache.poses
            parts = list(_read(cache, chosen, skip_damaged))
            if not parts:
                raise TrainingError("no record of the fixed sample of alignment.negatives can be read")
            sample = torch.from_numpy(np.concatenate([part for _, part in parts]))
            records = np.concatenate([records for records, _ in parts])
            fixed = cls._candidates(sample, torch.from_numpy(records // cache.poses), mean, device)
        return cls(config, mean.to(device), fixed, source)

    def candidates(self, wholes: Tensor, shapes: Tensor) -> Candidates:
        """Compute targets of shapes. wholes [B, V, C] float32, shapes [B] int64, on the run's device."""
        return self._candidates(wholes, shapes, self.mean, self.mean.device)

    def others(self, own: Candidates, ranks: Ranks) -> Candidates:
        """Return a batch's candidates: the fixed sample, or the batch's own targets over all ranks.

        own  of this rank, as many as every other rank has.
        """
        return self.fixed if self.fixed is not None else Candidates(*map(ranks.gather_rows, own))

    @staticmethod
    def _candidates(wholes: Tensor, shapes: Tensor, mean: Tensor, device: torch.device) -> Candidates:
        values, known = targets(wholes.to(device), mean.to(device))
        return Candidates(values, known, shapes.to(device))


def _drawn(count: int, most: int, seed: int, purpose: int) -> NDArray[np.int64]:
    """Draw `most` of 0..count - 1 by the seed, or take all; ascending, which reads fastest."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, 0xA119, purpose]).choice(count, most, replace=False))


def _read(
    cache: Cache | Selection, records: NDArray[np.int64], skip_damaged: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield (records, their wholes [B, V, C]), a few at a time."""

    def wholes(some: NDArray[np.int64]) -> NDArray[np.float32]:
        if cache.stores_class:
            return cache.class_tokens(some).astype(np.float32)
        return wholes_of(cache.read(some), cache.schema.image_side, cache.schema.patch_side)

    for start in range(0, len(records), CHUNK):
        some = records[start : start + CHUNK]
        try:
            yield some, wholes(some)
        except ShardDamaged:
            if not skip_damaged:
                raise
            for one in np.split(some, len(some)):
                try:
                    found = wholes(one)
                except ShardDamaged:
                    continue
                yield one, found
