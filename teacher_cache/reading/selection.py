"""Some shapes of a cache, read as if it held no others.

Records of a selection are numbered 0..len - 1 in the order in which the cache holds them, so what is drawn for a record
by its number stays what it is while the cache grows. Only shards with a selected record count as shards: no other file
is opened, and an epoch's order mixes the records of as many shards as that of the whole cache does.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.format.basis import Basis
from teacher_cache.format.records import CacheSchema, RecordBatch, TeacherRecord
from teacher_cache.location import Location
from teacher_cache.reading.cache import Cache, checked_rows
from teacher_cache.recipe import Recipe

__all__ = ["Selection", "first", "select"]

SHOWN = 3


class Selection:
    """Some shapes of a cache, every pose of each; get one from ``select`` or ``first``. Reads like a ``Cache``.

    cache    the whole of it.
    records  [len] int64, ascending: the records of the cache that these are.
    counts   [shards] int64, selected records of each shard that has any: what ``epoch_order`` takes.
    digest   SHA-256 (hex) of the ids, shard by shard, of a selection by id: it says which records these are, in which
             order and shards. None for the first of a cache, which are those of the same cache when it held no more.
    """

    def __init__(self, cache: Cache, records: NDArray[np.int64], counts: NDArray[np.int64], digest: str | None) -> None:
        self.cache, self.records, self.counts, self.digest = cache, records, counts, digest

    @property
    def path(self) -> Location:
        return self.cache.path

    @property
    def recipe(self) -> Recipe:
        return self.cache.recipe

    @property
    def schema(self) -> CacheSchema:
        return self.cache.schema

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.cache.label_names

    @property
    def basis(self) -> Basis | None:
        return self.cache.basis

    @property
    def poses(self) -> int:
        """As of the cache: records s * poses .. (s + 1) * poses - 1 are shape s of the selection."""
        return self.cache.poses

    @property
    def stores_depth(self) -> bool:
        return self.cache.stores_depth

    @property
    def stores_class(self) -> bool:
        return self.cache.stores_class

    @property
    def ids(self) -> list[str]:
        """Ids of the selected records, in order."""
        ids = self.cache.ids
        return [ids[record] for record in self.records.tolist()]

    @property
    def labels(self) -> NDArray[np.int64]:
        """[len] int64, -1 for none."""
        return self.cache.labels[self.records]

    def __len__(self) -> int:
        return int(self.records.size)

    def __getitem__(self, index: int) -> TeacherRecord:
        return self.read([index], depth=self.stores_depth).record(0)

    def __iter__(self) -> Iterator[TeacherRecord]:
        return (self[i] for i in range(len(self)))

    def read(
        self, indices: Sequence[int] | NDArray[np.integer[Any]], *, depth: bool = False, exact: bool = False
    ) -> RecordBatch:
        """As ``Cache.read``, by the numbers of the selection."""
        return self.cache.read(self.stored(indices), depth=depth, exact=exact)

    def class_tokens(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float16]:
        """As ``Cache.class_tokens``, by the numbers of the selection."""
        return self.cache.class_tokens(self.stored(indices))

    def prepare(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        """As ``Cache.prepare``, by the numbers of the selection."""
        self.cache.prepare(self.stored(indices))

    def stored(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Map records of the selection to those of the cache, [B] int64. Raises IndexError, TypeError."""
        return self.records[checked_rows(indices, len(self), self.path)]

    def __repr__(self) -> str:
        return f"<Selection of {len(self)} records in {len(self.counts)} shards of {self.cache!r}>"


def select(cache: Cache, shapes: Collection[str]) -> Selection:
    """Select the records of some shapes of a cache, in the cache's order.

    shapes  ids of shapes, at least one; with several poses a shape, all of its records are selected.

    Reads the receipts. Raises ValueError for ids that the cache does not have, ManifestError and ShardDamaged for
    receipts.
    """
    wanted, poses = frozenset(shapes), cache.poses
    digest = hashlib.sha256()
    pieces: list[NDArray[np.int64]] = []
    found: set[str] = set()
    start = 0
    for receipt in cache.receipts():
        chosen = [place for place, id in enumerate(receipt.ids[::poses]) if id in wanted]
        if chosen:
            found.update(receipt.ids[place * poses] for place in chosen)
            rows = (np.array(chosen, np.int64)[:, None] * poses + np.arange(poses)).reshape(-1)
            digest.update(b"%d\0" % rows.size)  # by shard: an epoch's order follows from how many each has
            for row in rows.tolist():
                digest.update(receipt.ids[row].encode("utf-8", "surrogatepass") + b"\0")
            pieces.append(start + rows)
        start += receipt.records
    if missing := sorted(wanted - found):
        shown = ", ".join(map(repr, missing[:SHOWN])) + (" ..." if len(missing) > SHOWN else "")
        raise ValueError(f"select: {len(missing)} of {len(wanted)} shapes are not in {cache.path}: {shown}")
    if not pieces:
        raise ValueError("select: expected at least one shape id, found none")
    counts = np.array([piece.size for piece in pieces], np.int64)
    return Selection(cache, np.concatenate(pieces), counts, digest.hexdigest())


def first(cache: Cache, records: int) -> Selection:
    """Select a cache's first records, complete shapes only: its content before it grew. Raises ValueError."""
    count, poses = len(cache), cache.poses
    if not 0 < records <= count or records % poses:
        raise ValueError(f"first: records = {records}; expected a multiple of {poses} in 1..{count}, of {cache.path}")
    ends = np.minimum(np.cumsum(cache.counts), records)
    counts = np.diff(ends, prepend=0)
    return Selection(cache, np.arange(records, dtype=np.int64), counts[counts > 0], None)
