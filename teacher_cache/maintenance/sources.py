"""Finished caches that another is made from: their shards as parts of a plan, and their records read exactly.

Every shard is compared with its checksums before it is read: damage must not leave here under new, matching checksums.
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, ShardDamaged
from teacher_cache.format.records import Quarantined, RecordBatch, TeacherRecord
from teacher_cache.reading.cache import Cache, open_cache
from teacher_cache.storage.opening import storage_at
from teacher_cache.storage.shard_files import ShardFile

__all__ = ["FindUntouched", "Part", "SourceReader", "open_source", "parts_of"]

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)

FindUntouched = Callable[[RecordBatch], NDArray[np.bool_]]
"""Which tokens [B, V, T] of a batch no lookup reads."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Shapes that lie in one shard of a source.

    source       its place among the sources.
    shard        the shard there.
    records      numbers of their records in that cache, in stored order; all poses of a shape or none.
    ids          of these records.
    quarantined  shapes of that shard that left no record.
    files        of that shard, with their checksums.
    shapes       (shape id, SHA-256 of what it was made from) of that shard, all of them.
    """

    source: int
    shard: int
    records: tuple[int, ...]
    ids: tuple[str, ...]
    quarantined: tuple[Quarantined, ...]
    files: tuple[ShardFile, ...]
    shapes: tuple[tuple[str, str], ...] = ()


def open_source(path: str | os.PathLike[str]) -> Cache:
    """Open a finished cache to be read by one thread per shard. Raises ManifestError, with the remedy."""
    return open_cache(path, threads=1)


def parts_of(cache: Cache, source: int = 0) -> list[Part]:
    """Return one part for each shard of a cache, in order.

    Raises CacheError for a receipt that is not the manifest's.
    """
    try:
        receipts = list(cache.receipts())
    except ShardDamaged as error:
        raise CacheError(f"{cache.path}: {error}") from error
    parts, first = [], 0
    for receipt in receipts:
        parts.append(
            Part(
                source=source,
                shard=receipt.shard,
                records=tuple(range(first, first + receipt.records)),
                ids=receipt.ids,
                quarantined=receipt.quarantined,
                files=receipt.files,
                shapes=receipt.shapes,
            )
        )
        first += receipt.records
    return parts


class SourceReader:
    """Records of the sources, each shard compared with its checksums first. Safe from several threads."""

    def __init__(self, sources: Sequence[Cache]) -> None:
        self._sources = sources
        self._storages = [storage_at(source.path) for source in sources]
        self._sound: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def records(self, part: Part, storage: CacheConfig, untouched: FindUntouched | None = None) -> list[TeacherRecord]:
        """Read the records of a part so that storing them as `storage` loses no more than it asks for."""
        self._check(part)
        source = self._sources[part.source]
        depth = source.stores_depth and storage.depth != "none"
        try:
            batch = source.read(part.records, depth=depth, exact=True)
        except ShardDamaged as error:
            raise CacheError(f"{source.path}: {error}") from error
        if source.recipe.storage["features"] == "int8":
            _check_exact(batch, storage.steps, source)
        if untouched is not None and len(batch):
            batch.features[untouched(batch)] = 0
        return [batch.record(row) for row in range(len(batch))]

    def _check(self, part: Part) -> None:
        key = (part.source, part.shard)
        with self._lock:
            if key in self._sound:
                return
        # Outside the lock, since hashing takes seconds; two threads that check the same shard get the same answer.
        for file in part.files:
            try:
                found = self._storages[part.source].digest(file.path, file.bytes)
            except FileNotFoundError:
                found = None
            if found != (file.bytes, file.sha256):
                what = "expected a file here, found none" if found is None else "its bytes differ from those committed"
                error = ShardDamaged(what, shard=part.shard, file=file.path)
                raise CacheError(f"{self._sources[part.source].path}: {error}")
        with self._lock:
            self._sound.add(key)


def _check_exact(batch: RecordBatch, steps: int, source: Cache) -> None:
    """Check that int8 features come back as the same codes and scales; they do if the scale is a normal float32."""
    largest = np.abs(batch.features).max(axis=-1) if len(batch) else np.zeros(1)
    if ((largest > 0) & (largest < steps * SMALLEST_NORMAL)).any():
        raise CacheError(
            f"{source.path}: the features of a token reach only {largest[largest > 0].min():.1e}; expected 0 or at "
            f"least {steps * SMALLEST_NORMAL:.1e}: smaller int8 features cannot be written again to the same bytes.\n"
            "  Build the cache with the new storage instead."
        )
