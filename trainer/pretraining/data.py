"""Batches from a cache: choice, order and augmentation of records.

The order of an epoch is a pure function of (seed, epoch) and the cache. Batch b of an epoch is the records
order[b * G : (b + 1) * G], G = trainer.batch_size; rank r computes the r-th of equal, contiguous parts of it. So the
content of a batch depends neither on the number of ranks nor on that of reader threads. An incomplete last batch is
dropped; the order changes, so other records are left out in the next epoch.

Where the cache holds several poses of a shape, an epoch visits each shape once, in one of them. Which one is a function
of (seed, epoch, shape), so an epoch has as many steps as without poses.

A damaged record, where trainer.damaged is "skip", is replaced by the next sound one of the epoch's order, which wraps
around. That is a function of the order and of the damage alone; batches keep their size.
"""

from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cuda.geometry import ViewGeometry
from cuda.token_maps import TokenMaps
from teacher_cache import Cache, CacheSchema, RecordBatch, Selection
from teacher_cache.reading.order import epoch_order
from teacher_cache.reading.stream import NothingSound, Stream, StreamBatch
from trainer.config import TrainerConfig
from trainer.engine.augmentation import choose_points, choose_poses, renormalised, scale_and_shift
from trainer.engine.ranks import Ranks
from trainer.errors import DataError
from trainer.models.config import StudentConfig
from trainer.models.random_inputs import Draws
from trainer.pretraining.alignment import wholes_of
from trainer.pretraining.joined import FurtherCache, JoinedBatch, JoinedCaches

__all__ = ["FurtherPart", "Loader", "Part"]


class FurtherPart(NamedTuple):
    """What a further teacher says of a part: its maps and `whole` as in Part; None where they are not learnt from."""

    maps: TokenMaps | None
    whole: Tensor | None


class Part(NamedTuple):
    """The shapes that one rank computes in one pass.

    ids               B names; records [B] int64: their positions in the cache
    points            [B, N, 3] float32, the student's frame
    points_canonical  [B, N, 3] float32, the same points as they are stored, where the teacher saw them
    maps              the teacher's, in that frame; None where a live teacher is going to make them
    draws             the random numbers of the step, of as many samples as there are masks of the B shapes
    skipped           damaged records that others stand in for
    whole             [B, V, C] float32, the teacher's vector for each view as a whole; None without a global loss
    shapes            [B] int64, numbers of the shapes; records that are poses of one shape have the same
    further           of each further teacher
    """

    ids: list[str]
    records: np.ndarray
    points: Tensor
    points_canonical: Tensor
    maps: TokenMaps | None
    draws: Draws
    skipped: int = 0
    whole: Tensor | None = None
    shapes: np.ndarray | None = None
    further: tuple[FurtherPart, ...] = ()

    @property
    def masks(self) -> int:
        """Masks of each shape."""
        return len(self.draws.mask) // len(self.records)

    def to(self, device: torch.device) -> "Part":
        """Return the same part with a plan's inputs on another device; asynchronous if its memory is pinned.

        What describes the whole batch (`whole`, `shapes`) stays where it is: only the global loss reads it.
        """
        return self._replace(
            points=self.points.to(device, non_blocking=True),
            points_canonical=self.points_canonical.to(device, non_blocking=True),
            maps=None if self.maps is None else self.maps.to(device, non_blocking=True),
            draws=self.draws.to(device, non_blocking=True),
            further=tuple(
                said._replace(maps=None if said.maps is None else said.maps.to(device, non_blocking=True))
                for said in self.further
            ),
        )

    def pinned(self) -> "Part":
        """Return the same part in page-locked memory, from which a GPU copies asynchronously."""
        return self._replace(
            points=self.points.pin_memory(),
            points_canonical=self.points_canonical.pin_memory(),
            maps=_pinned_maps(self.maps),
            draws=Draws(*(part.pin_memory() for part in self.draws)),
            whole=None if self.whole is None else self.whole.pin_memory(),
            further=tuple(
                FurtherPart(_pinned_maps(said.maps), None if said.whole is None else said.whole.pin_memory())
                for said in self.further
            ),
        )


def _pinned_maps(maps: TokenMaps | None) -> TokenMaps | None:
    if maps is None:
        return None
    geometry = ViewGeometry(*(part.pin_memory() for part in maps.geometry))
    return TokenMaps(maps.features.pin_memory(), maps.saliency.pin_memory(), geometry, maps.image_side)


class Loader:
    """One rank's share of every batch of every epoch."""

    def __init__(
        self,
        cache: Cache | Selection,
        model: StudentConfig,
        config: TrainerConfig,
        ranks: Ranks,
        *,
        live_teacher: bool = False,
        whole: bool = False,
        further: Sequence[FurtherCache] = (),
        masks: int = 1,
    ):
        """Prepare to load from a cache.

        whole  parts carry the vectors that the global loss learns from; read from the cache, even with a live teacher.
        further  caches of further teachers, joined to the first (`trainer.pretraining.joined`).
        masks  of each shape, masking.per_shape.

        Raises DataError where the cache is too small for a batch, its clouds have too few points, or the batch does
        not divide among ranks and accumulated parts.
        """
        self._cache, self._model, self._config, self._ranks = cache, model, config, ranks
        self._live, self._whole, self._further, self._masks = live_teacher, whole, tuple(further), masks
        self._source = JoinedCaches(cache, self._further) if self._further else cache
        self._damaged: set[int] = set()  # records known to be damaged
        self.points = config.points or cache.schema.points
        shapes = len(cache) // cache.poses
        self.steps_per_epoch = shapes // config.batch_size
        parts = ranks.size * config.accumulation
        if config.batch_size % parts:
            raise DataError(
                f"trainer.batch_size = {config.batch_size} is not divisible by {ranks.size} ranks times "
                f"trainer.accumulation = {config.accumulation}; choose a multiple of {parts}."
            )
        if self.steps_per_epoch == 0:
            raise DataError(
                f"the cache has {shapes} shapes, fewer than trainer.batch_size = {config.batch_size}. "
                "Lower the batch size, or build a cache of more shapes."
            )
        if self.points > cache.schema.points:
            raise DataError(
                f"trainer.points = {self.points} is more than the {cache.schema.points} points stored for each shape. "
                "Lower it, or build a cache with a larger corpus.points."
            )
        if self.points < model.least_points:
            raise DataError(
                f"the student sees {self.points} points of each shape, and {model.least_points_reason} needs at least "
                f"{model.least_points}. Use more points or a smaller student."
            )

    def epoch(self, epoch: int, start: int = 0) -> Generator[list[Part], None, None]:
        """Yield the batches of epoch `epoch` (0-based) from batch `start` on: this rank's parts of each, on the CPU.

        With trainer.readers > 0 they are read ahead in threads; closing the iterator stops these.
        """
        config = self._config
        batches = Stream(
            self._source,
            self._order(epoch),
            batch_size=config.batch_size,
            rank=self._ranks.rank,
            ranks=self._ranks.size,
            start=start,
            damaged=config.damaged,
            readers=config.readers,
            prefetch=config.prefetch,
            apply=lambda batch: self._parts(batch, epoch),
            known_damage=self._damaged,
        )
        return _closing(batches)

    def _order(self, epoch: int) -> np.ndarray:
        """Return the epoch's records, one per shape. [shapes] int64"""
        config, poses = self._config, self._cache.poses
        counts = np.asarray(self._cache.counts) // poses
        shapes = epoch_order(counts, seed=config.seed, epoch=epoch, window=config.shuffle_window)
        if poses == 1:
            return shapes
        return shapes * poses + choose_poses(shapes, poses, seed=config.seed, epoch=epoch)

    def _parts(self, share: StreamBatch, epoch: int) -> list[Part]:
        """Build the parts of a rank's share of a batch."""
        size = len(share) // self._config.accumulation
        parts = [self._part(share, slice(i, i + size), epoch) for i in range(0, len(share), size)]
        return [part.pinned() for part in parts] if self._ranks.device.type == "cuda" else parts

    def _part(self, share: StreamBatch, rows: slice, epoch: int) -> Part:
        config, seed = self._config, self._config.seed
        records, batch, skipped = share.records[rows], share.content, int(share.stand_ins[rows].sum())
        canonical = batch.points[rows]
        stored = canonical.shape[1]
        if config.resample:
            chosen = choose_points(records, stored, self.points, seed=seed, epoch=epoch)  # [B, n]
            canonical = np.take_along_axis(canonical, chosen[:, :, None], axis=1)
        elif self.points < stored:
            canonical = np.ascontiguousarray(canonical[:, : self.points])
        student = canonical
        # A cloud with all its stored points is in its own frame already: the canonical one, or a stored pose.
        if config.renormalise and self.points < stored:
            student = renormalised(student)
        if tuple(config.scale) != (1.0, 1.0) or config.shift:
            student = scale_and_shift(student, records, scale=config.scale, shift=config.shift, seed=seed, epoch=epoch)
        return Part(
            ids=batch.ids[rows],
            records=records,
            points=torch.from_numpy(student),
            points_canonical=torch.from_numpy(canonical),
            maps=None if self._live else _maps(batch, rows, self._cache.schema.image_side),
            draws=Draws.for_records(records, self._model, seed=seed, epoch=epoch, masks=self._masks),
            skipped=skipped,
            whole=_wholes(batch, rows, self._cache.schema) if self._whole else None,
            shapes=records // self._cache.poses,
            further=tuple(_further(cache, said, rows) for cache, said in zip(self._further, _said(batch), strict=True)),
        )


def _said(batch: RecordBatch) -> tuple[RecordBatch | np.ndarray | None, ...]:
    return batch.further if isinstance(batch, JoinedBatch) else ()


def _further(cache: FurtherCache, said: RecordBatch | np.ndarray | None, rows: slice) -> FurtherPart:
    """Take some rows of what a further teacher says of a batch."""
    if not isinstance(said, RecordBatch):
        return FurtherPart(None, None if said is None else torch.from_numpy(said[rows].astype(np.float32)))
    schema = cache.records.schema
    maps = _maps(said, rows, schema.image_side) if cache.features else None
    return FurtherPart(maps, _wholes(said, rows, schema) if cache.whole else None)


def _wholes(batch: RecordBatch, rows: slice, schema: CacheSchema) -> Tensor:
    kept = {
        name: getattr(batch, name)[rows]
        for name in ("ids", "label", "points", "lo", "cell", "offset", "features", "saliency")
    }
    token = None if batch.class_token is None else batch.class_token[rows]
    return torch.from_numpy(wholes_of(RecordBatch(**kept, class_token=token), schema.image_side, schema.patch_side))


def _closing(batches: Stream) -> Generator[list[Part], None, None]:
    """Yield the batches; closing the generator, or leaving it by an error, ends the threads behind them."""
    with batches:
        try:
            yield from batches
        except NothingSound as error:
            raise DataError(str(error)) from error


def _maps(batch: RecordBatch, rows: slice, image_side: int) -> TokenMaps:
    geometry = ViewGeometry(*(torch.from_numpy(array[rows]) for array in (batch.lo, batch.cell, batch.offset)))
    return TokenMaps(
        torch.from_numpy(batch.features[rows]), torch.from_numpy(batch.saliency[rows]), geometry, image_side
    )
