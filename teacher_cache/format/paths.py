"""Paths in a cache directory, and the two shard formats behind one pair of names."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from teacher_cache.config import CacheConfig
from teacher_cache.format import tar_shards, zarr_shards
from teacher_cache.format.manifest import Description
from teacher_cache.format.records import RecordBatch
from teacher_cache.storage.base import VOLATILE, ShardFiles, Storage

__all__ = [
    "BASIS",
    "LOG",
    "MANIFEST",
    "RECIPE",
    "VOLATILE",
    "ShardReader",
    "metadata_files",
    "names_dimensions",
    "open_shard",
    "receipt_path",
    "set_aside",
    "shard_format",
    "shard_paths",
]

MANIFEST = "manifest.json"
RECIPE = "recipe.json"
BASIS = "basis.npy"
LOG = "logs/build.jsonl"
RECEIPTS = "receipts"


class ShardReader(Protocol):
    """One committed shard, open for random access from any number of threads."""

    def read_into(self, batch: RecordBatch, row: int, position: int) -> None:
        """Decode the record at ``position`` into row ``row``; depth only if the batch has it. Raises ShardDamaged."""

    def read_class(self, position: int, out: NDArray[np.float16]) -> None:
        """Decode the class tokens of the record at ``position`` into ``out`` [V, C]. Raises ShardDamaged.

        Only for a cache that stores them.
        """

    def load(self) -> None:
        """Open all files needed to read records without depth. Raises ShardDamaged."""


def receipt_path(shard: int) -> str:
    return f"{RECEIPTS}/{shard:06d}.json"


def set_aside(cache: Path) -> Path:
    """Return the path where `compact` keeps the old cache while the new one takes its place."""
    return cache.with_name(f".compacted-{cache.name}")


def shard_format(config: CacheConfig) -> Any:
    """Return the module that writes and reads this format: ``encode``, ``paths``, ``metadata``, ``Shard``."""
    return {"zarr": zarr_shards, "webdataset": tar_shards}[config.format]


def shard_paths(config: CacheConfig, shard: int) -> list[str]:
    """List the files of one shard, relative to the cache, in the order in which receipts list them."""
    return list(shard_format(config).paths(config, shard))


def metadata_files(description: Description, shards: int, *, named: bool = True) -> dict[str, bytes]:
    """Return the files, by path, that follow from the description and the number of shard indices in use.

    These are Zarr's metadata, and the basis for readers that do not know this package.

    named  whether Zarr's dimensions are named; for an existing cache see `names_dimensions`.
    """
    files = dict(shard_format(description.storage).metadata(description, shards, named=named))
    if description.basis is not None:
        rows = description.basis.rows.astype("<f4", copy=False)
        files[BASIS] = tar_shards.npy_header(rows.shape, rows.dtype) + rows.tobytes()
    return files


def names_dimensions(storage: Storage, description: Description) -> bool:
    """Check whether the Zarr metadata of a cache names its dimensions.

    A new cache's does. Metadata of earlier versions does not, and stays as it is, whatever is added or repaired.
    """
    if description.storage.format != "zarr":
        return True
    found = storage.read_many([name for name in metadata_files(description, 0) if name.endswith("/zarr.json")])
    return not any(zarr_shards.names_dimensions(data) is False for data in found if data is not None)


def open_shard(files: ShardFiles, description: Description, shard: int, records: int) -> ShardReader:
    """Open one shard for reading. Raises ShardDamaged when a file is missing or its index is invalid."""
    reader: ShardReader = shard_format(description.storage).Shard(files, description, shard, records)
    return reader
