"""Several caches of the same shapes, one a teacher, read as one.

The first cache decides: its records, their order and its clouds are those of the run. The other caches may hold more
shapes, in another order and in other shards; each of their records is found by its id. Whatever depends on chance is
drawn for the first cache's record, so a further teacher changes neither clouds nor masks nor order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache import Cache, Selection
from teacher_cache.format.records import CacheSchema, RecordBatch
from trainer.errors import DataError

__all__ = ["FurtherCache", "JoinedBatch", "JoinedCaches", "join"]

SHOWN = 3
Read = RecordBatch | NDArray[np.float16] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedBatch(RecordBatch):
    """Records of the first cache, with what each further cache has of the same shapes.

    further  a RecordBatch; or [B, V, C] float16, class tokens, where nothing else is wanted; or None for nothing.
    """

    further: tuple[Read, ...] = ()


@dataclass(frozen=True, eq=False)
class FurtherCache:
    """A further teacher's records, numbered as those of the first cache.

    records         len entries, in the first cache's order.
    features        patch features are wanted; otherwise nothing but the whole.
    whole           the teacher's vector for each view as a whole is wanted.
    known_as_equal  the receipts say that every shape was made from the same data in both caches.
    """

    records: Selection
    features: bool
    whole: bool
    known_as_equal: bool

    def read(self, indices: NDArray[np.int64]) -> Read:
        """Read what is wanted, and no more than that where it can be known to belong to the same points."""
        if not (self.features or self.whole):
            return None
        if not self.features and self.records.stores_class and self.known_as_equal:
            return self.records.class_tokens(indices)
        return self.records.read(indices)


class JoinedCaches:
    """The first cache, whose batches carry what the further ones hold. Made from `join`'s further caches."""

    def __init__(self, first: Cache | Selection, further: Sequence[FurtherCache]):
        self._first, self.further = first, tuple(further)

    @property
    def schema(self) -> CacheSchema:
        return self._first.schema

    @property
    def counts(self) -> NDArray[np.int64]:
        return self._first.counts

    @property
    def poses(self) -> int:
        return self._first.poses

    def __len__(self) -> int:
        return len(self._first)

    def read(self, indices: NDArray[np.int64], *, depth: bool = False) -> JoinedBatch:
        """Read records of all caches.

        Raises DataError where a further cache holds other points under an id, and what a cache raises: a record is
        damaged if it is so in any of them.
        """
        batch = self._first.read(indices, depth=depth)
        found = tuple(cache.read(indices) for cache in self.further)
        for cache, more in zip(self.further, found, strict=True):
            if isinstance(more, RecordBatch):
                _check_points(batch, more, cache.records)
        return JoinedBatch(**vars(batch), further=found)

    def prepare(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        """As `Cache.prepare`, for every cache that is read."""
        self._first.prepare(indices)
        for cache in self.further:
            if cache.features or cache.whole:
                cache.records.prepare(indices)


def join(
    first: Cache | Selection, others: Sequence[Cache], wanted: Sequence[tuple[bool, bool]]
) -> tuple[FurtherCache, ...]:
    """Find the records of a run's first cache in further teachers' caches.

    others  may hold more shapes.
    wanted  for each of them, whether its features and its wholes are.

    Raises DataError for a cache of a corpus that was read or sampled otherwise, of shapes that were made from other
    data, or without some of the shapes: all by name; and for a teacher that is there twice. What a cache raises for its
    receipts.
    """
    if not others:
        return ()
    makers = [(cache.recipe.teacher, cache.recipe.projection) for cache in (first, *others)]
    for place, other in enumerate(others, start=1):
        if makers[place] in makers[:place]:
            raise DataError(f"{other.path} is the cache of a teacher that was already given; give each teacher once.")
    made_of = _made_of(first.cache if isinstance(first, Selection) else first)
    return tuple(
        _joined(first, other, made_of, features=features, whole=whole)
        for other, (features, whole) in zip(others, wanted, strict=True)
    )


def _joined(
    first: Cache | Selection, other: Cache, made_of: dict[str, str], *, features: bool, whole: bool
) -> FurtherCache:
    if differences := _corpus_differences(first, other):
        lines = "\n  ".join(differences)
        raise DataError(
            f"{other.path} does not have the clouds of {first.path}; the recipes of their corpora differ:\n"
            f"  {lines}\n"
            "Build one of the two with the [corpus] of the other."
        )
    ids = first.ids
    places = {id: place for place, id in enumerate(other.ids)}
    if missing := [id for id in ids if id not in places]:
        raise DataError(
            f"{other.path} lacks {len(missing)} of the {len(ids)} records of {first.path}: {_first_few(missing)}.\n"
            "Build it for the same shapes, or exclude the shapes it refused with a list in corpus.only."
        )
    theirs = _made_of(other)
    shapes = ids[:: first.poses]
    if changed := [id for id in shapes if made_of.get(id) != theirs.get(id) and id in made_of and id in theirs]:
        raise DataError(
            f"{other.path} has {len(changed)} shapes made from other data than in {first.path}: "
            f"{_first_few(changed)}.\n"
            "Their files changed between the two builds. Rebuild the older cache with --changed rebuild."
        )
    known = all(id in made_of and id in theirs for id in shapes)
    records = np.array([places[id] for id in ids], np.int64)
    return FurtherCache(Selection(other, records, first.counts, None), features, whole, known)


def _corpus_differences(first: Cache | Selection, other: Cache) -> list[str]:
    return [line for line in first.recipe.differences(other.recipe) if line.startswith("corpus.")]


def _made_of(cache: Cache) -> dict[str, str]:
    """Read what each shape was made from, where the receipts say so."""
    return {id: made_of for receipt in cache.receipts() for id, made_of in receipt.shapes}


def _check_points(batch: RecordBatch, more: RecordBatch, records: Selection) -> None:
    for row in range(len(batch)):
        if batch.ids[row] != more.ids[row] or not np.array_equal(batch.points[row], more.points[row]):
            raise DataError(
                f"{records.path} has other points of {batch.ids[row]!r} than the first teacher's cache, so its "
                "features belong to another cloud. Build one of the two caches again."
            )


def _first_few(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:SHOWN])) + (" ..." if len(ids) > SHOWN else "")
