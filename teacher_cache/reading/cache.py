"""Reading a finished cache: random access, batches, iteration."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import CacheError, ManifestError, SchemaError, ShardDamaged
from teacher_cache.format import paths
from teacher_cache.format.manifest import Description, Manifest, Receipt
from teacher_cache.format.receipts import iter_receipts
from teacher_cache.format.records import CacheSchema, Quarantined, RecordBatch, TeacherRecord
from teacher_cache.location import Location, join
from teacher_cache.reading.open_shards import OPEN_REMOTE_SHARDS, OpenShards
from teacher_cache.recipe import Recipe
from teacher_cache.storage.base import Storage
from teacher_cache.storage.opening import storage_at
from teacher_cache.storage.shard_files import ShardEntry

__all__ = ["Cache", "CacheInfo", "checked_rows", "open_cache"]

MAX_POSES = 64
SMALLEST_SHARE = 4  # records a thread decodes at least: below that, handing over costs more than it saves


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """Figures of a cache.

    path, format, complete, recipe, schema, label_names.
    records      in the cache.
    planned      shapes of the corpus it was built from; -1 while the build is unfinished.
    shards       their number.
    bytes        of their files.
    quarantined  the shapes that are not in the cache, with file and reason.
    """

    path: str
    format: str
    complete: bool
    records: int
    planned: int
    shards: int
    bytes: int
    quarantined: tuple[Quarantined, ...]
    recipe: Recipe
    schema: CacheSchema
    label_names: tuple[str, ...]

    @property
    def bytes_per_record(self) -> float:
        return self.bytes / self.records if self.records else 0.0


def open_cache(path: str | os.PathLike[str], *, allow_incomplete: bool = False, threads: int = 2) -> "Cache":
    """Open a cache for reading; ``teacher_cache.open`` is this function.

    path              the cache's folder, or its URL: s3://, gs://, http:// and whatever else fsspec speaks.
    allow_incomplete  where there is no manifest, the build being unfinished, read the shards committed so far.
    threads           that decode a batch, 1..64; 1 decodes in the caller's own.

    Raises ManifestError when there is no finished cache or its manifest is damaged, UnsupportedVersion for another
    format version, SchemaError for impossible sizes, StorageError for a URL that cannot be read, ValueError for
    arguments.
    """
    if not 1 <= threads <= 64:
        raise ValueError(f"open: threads = {threads}; expected 1..64")
    storage = storage_at(path)
    try:
        manifest = Manifest.decode(storage.read(paths.MANIFEST), str(join(storage.location, paths.MANIFEST)))
    except FileNotFoundError:
        manifest = _unfinished(storage, allow_incomplete)
    return Cache(storage, manifest, threads=threads)


class Cache:
    """A cache that is open for reading; get one from ``teacher_cache.open``.

    Safe to use from several threads, after a fork, and to pickle: a copy opens its files again when it needs them.
    Records are numbered 0..len - 1 through the shards in ascending order; growing a cache keeps the numbers.
    Every record is checked against its checksum as it is read; a record that fails raises ShardDamaged.

    path (a Path, or a URL), recipe, schema, label_names, format ("zarr" or "webdataset"), complete.
    basis   of features in channels of their own: ``cache.basis.restore(features)`` gives the teacher's; None where
            they are the teacher's.
    counts  [shards] int64, records of each shard: what ``epoch_order`` takes.
    """

    def __init__(self, storage: Storage, manifest: Manifest, *, threads: int) -> None:
        self.path: Location = storage.location
        self.recipe = manifest.description.recipe
        self.schema = manifest.description.schema
        self.label_names = manifest.description.label_names
        self.basis = manifest.description.basis
        self.format: str = manifest.description.storage.format
        self.complete = manifest.complete
        self.counts = np.array([entry.records for entry in manifest.shards], np.int64)
        self._ends = np.cumsum(self.counts)
        self._storage = storage
        self._manifest = manifest
        self._threads = threads
        self._open = OpenShards(storage, manifest.description)

    def __len__(self) -> int:
        return self._manifest.records

    def __getitem__(self, index: int) -> TeacherRecord:
        """Return record ``index``, with its depth images if the cache stores them; negative counts from the end."""
        return self.read([index], depth=self.stores_depth).record(0)

    def __iter__(self) -> Iterator[TeacherRecord]:
        return (self[i] for i in range(len(self)))

    @cached_property
    def poses(self) -> int:
        """Records of each shape: records s * poses .. (s + 1) * poses - 1 are shape s, in one shard.

        Raises ManifestError where the recipe's number is impossible for these shards.
        """
        value = self.recipe.corpus.get("poses", 1)
        if type(value) is not int or not 1 <= value <= MAX_POSES:
            raise ManifestError(f"{self.path}: recipe.corpus.poses = {value!r} is not an integer in 1..{MAX_POSES}")
        if (self.counts % value).any():
            shard = self._manifest.shards[int((self.counts % value).argmax())]
            raise ManifestError(
                f"{self.path}: shard {shard.shard} has {shard.records} records, not a multiple of the {value} poses "
                "per shape in its recipe"
            )
        return value

    @property
    def stores_depth(self) -> bool:
        return self._manifest.description.storage.depth != "none"

    @property
    def stores_class(self) -> bool:
        return self._manifest.description.storage.class_token != "none"

    def read(
        self, indices: Sequence[int] | NDArray[np.integer[Any]], *, depth: bool = False, exact: bool = False
    ) -> RecordBatch:
        """Read records as a batch, in the given order; repeats are allowed.

        indices  B integers in -len..len - 1.
        depth    also decode the depth images.
        exact    int8 features as float32, code times scale without the rounding to float16: stored again, they give the
                 same codes and scales (`codecs.quantise`). Whatever else is stored comes back exactly in any case.

        Raises IndexError, TypeError for indices; SchemaError for depth that is not stored and for more records than
        fit into memory; ShardDamaged.
        """
        rows = checked_rows(indices, len(self), self.path)
        try:
            return self._read(rows, depth=depth, exact=exact)
        except MemoryError as error:
            raise SchemaError(
                f"{self.path}: {rows.size} records of {self.schema} do not fit into memory.\n  Read fewer at a time."
            ) from error

    def _read(self, rows: NDArray[np.int64], *, depth: bool, exact: bool) -> RecordBatch:
        if depth and not self.stores_depth:
            raise SchemaError(
                f"{self.path}: expected depth images, this cache stores none (recipe: storage.depth = none).\n"
                "  Build it with cache.depth = uint8 or float16."
            )
        storage = self._manifest.description.storage
        dtype = "float32" if exact and storage.features == "int8" else storage.feature_dtype
        batch = RecordBatch.empty(rows.size, self.schema, dtype, depth=depth, class_token=self.stores_class)
        shards, positions = self._places(rows)

        def decode(share: NDArray[np.int64]) -> None:
            for row in share.tolist():
                entry = self._manifest.shards[shards[row]]
                self._open.get(entry).read_into(batch, row, int(positions[row]))

        parts = min(self._threads, rows.size // SMALLEST_SHARE)
        if parts < 2:
            decode(np.arange(rows.size))
        else:
            pool = self._open.pool(self._threads)
            list(pool.map(decode, np.array_split(np.arange(rows.size), parts)))
        return batch

    def class_tokens(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float16]:
        """Read only the class tokens of records, [B, V, C] float16, in the given order.

        Raises SchemaError where none are stored, IndexError and TypeError for indices, ShardDamaged.
        """
        if not self.stores_class:
            raise SchemaError(
                f"{self.path}: expected class tokens, this cache stores none (recipe: storage without class).\n"
                "  Build it with cache.class_token = float16."
            )
        rows = checked_rows(indices, len(self), self.path)
        out = np.empty((rows.size, *self.schema.class_shape), np.float16)
        shards, positions = self._places(rows)
        for row, (shard, position) in enumerate(zip(shards.tolist(), positions.tolist(), strict=True)):
            self._open.get(self._manifest.shards[shard]).read_class(position, out[row])
        return out

    def _places(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return, for each record, its shard's number in the manifest and its position in the shard."""
        shards = np.searchsorted(self._ends, rows, side="right")
        return shards, rows - (self._ends - self.counts)[shards]

    def prepare(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        """Start fetching what will be read soon, in the background; returns at once.

        indices  records in the order in which they will be read, the next one first.

        Looks as far ahead as two thirds of OPEN_REMOTE_SHARDS, and begins a few shards a call: call it before every
        batch. What goes wrong is raised by the read that needs it. Does nothing for a cache in a folder, whose files
        need no fetching.
        """
        if not self._storage.remote or not self.counts.size:
            return
        limit = 2 * OPEN_REMOTE_SHARDS // 3
        some = checked_rows(np.asarray(indices)[: limit * max(1, int(self.counts.mean()))], len(self), self.path)
        shards, first = np.unique(np.searchsorted(self._ends, some, side="right"), return_index=True)
        wanted = shards[np.argsort(first)][:limit]
        self._open.prepare([self._manifest.shards[shard] for shard in wanted.tolist()])

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """[len] int64, -1 for none; read from the receipts once."""
        return np.array([label for receipt in self.receipts() for label in receipt.labels], np.int64)

    @cached_property
    def ids(self) -> list[str]:
        """All ids, in order; read from the receipts once."""
        return [id for receipt in self.receipts() for id in receipt.ids]

    def receipts(self) -> Iterator[Receipt]:
        """Yield each shard's receipt, ascending. Raises ShardDamaged for one that is not the manifest's."""
        for receipt in load_receipts(self._storage, self._manifest):
            if isinstance(receipt, CacheError):
                raise receipt
            yield receipt

    def info(self) -> CacheInfo:
        """Return the cache's figures, from the manifest alone."""
        manifest = self._manifest
        return CacheInfo(
            path=str(self.path),
            format=self.format,
            complete=self.complete,
            records=len(self),
            planned=manifest.planned,
            shards=len(manifest.shards),
            bytes=sum(entry.bytes for entry in manifest.shards),
            quarantined=tuple(item for _, item in manifest.quarantined),
            recipe=self.recipe,
            schema=self.schema,
            label_names=self.label_names,
        )

    def __repr__(self) -> str:
        return f"<Cache {self.path} {self.format}, {len(self)} records in {len(self.counts)} shards>"


def checked_rows(indices: Any, count: int, where: Location) -> NDArray[np.int64]:
    """Check indices into `count` records; -> [B] int64 in 0..count - 1.

    Negative ones count from the end. Raises IndexError, TypeError.
    """
    rows = np.asarray(indices)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise TypeError(f"read: expected a list of integers, found shape {list(rows.shape)} {rows.dtype.name}")
    rows = rows.astype(np.int64)
    outside = (rows < -count) | (rows >= count)
    if outside.any():
        raise IndexError(f"{where}: record {int(rows[outside][0])} does not exist; the number of records is {count}")
    return np.where(rows < 0, rows + count, rows)


def load_receipts(storage: Storage, manifest: Manifest) -> Iterator[Receipt | CacheError]:
    """Yield the manifest's receipts, in its order; for one that is missing or differs, the error to raise."""
    names = [paths.receipt_path(entry.shard) for entry in manifest.shards]
    for entry, name, data in zip(manifest.shards, names, storage.read_many(names), strict=True):
        try:
            yield _checked_receipt(storage, manifest.description, entry, name, data)
        except CacheError as error:
            yield error


def _checked_receipt(
    storage: Storage, description: Description, entry: ShardEntry, name: str, data: bytes | None
) -> Receipt:
    if data is None:
        raise ShardDamaged("expected a receipt here, found none", shard=entry.shard, file=name)
    if hashlib.sha256(data).hexdigest() != entry.receipt:
        raise ShardDamaged("its SHA-256 differs from the one in the manifest", shard=entry.shard, file=name)
    expected_paths = paths.shard_paths(description.storage, entry.shard)
    where = str(join(storage.location, name))
    receipt = Receipt.decode(data, where, shard=entry.shard, paths=expected_paths)
    found = (receipt.records, len(receipt.quarantined), receipt.total_bytes)
    expected = (entry.records, entry.quarantined, entry.bytes)
    if found != expected:
        raise ManifestError(
            f"{where}: has {found[0]} records, {found[1]} quarantined, {found[2]} bytes; the manifest says "
            f"{expected[0]}, {expected[1]} and {expected[2]}"
        )
    return receipt


def _unfinished(storage: Storage, allow_incomplete: bool) -> Manifest:
    root = storage.location
    try:
        description = Description.decode(storage.read(paths.RECIPE), str(join(root, paths.RECIPE)))
    except FileNotFoundError as error:
        raise ManifestError(f"{root}: expected a cache ({paths.MANIFEST}), found none") from error
    if not allow_incomplete:
        raise ManifestError(
            f"{root}: expected {paths.MANIFEST}, found none: the build of this cache has not finished.\n"
            "  Run the build again to finish it, or open it with allow_incomplete=True to read the committed shards."
        )
    receipts = list(iter_receipts(storage, description))
    entries = tuple(
        ShardEntry(
            shard=receipt.shard,
            records=receipt.records,
            quarantined=len(receipt.quarantined),
            bytes=receipt.total_bytes,
            receipt=receipt.sha256,
        )
        for receipt in receipts
    )
    quarantined = tuple((receipt.shard, item) for receipt in receipts for item in receipt.quarantined)
    # planned is not known before the build finishes; -1 is no corpus size, so the cache never looks complete
    return Manifest(description=description, planned=-1, shards=entries, quarantined=quarantined)
