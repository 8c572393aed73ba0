"""Sizes and checksums of a shard's files, and reads from them that detect a short file."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import ShardDamaged
from teacher_cache.system import read_at

__all__ = ["ShardEntry", "ShardFile", "ShardFileReader"]


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A committed file: path relative to the cache (with /), size, SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard's line of the manifest; ``receipt`` is the SHA-256 of the receipt's file."""

    shard: int
    records: int
    quarantined: int
    bytes: int
    receipt: str


class ShardFileReader:
    """Positional reads from one file of a shard, safe from several threads and after a fork.

    The descriptor closes when the object is collected, so a reader that drops a shard from its pool never closes it
    under another thread's read. Plain reads, not a memory map: a file cut short while mapped would kill the process.
    """

    def __init__(self, descriptor: int, path: str, shard: int) -> None:
        """Takes over an open descriptor; `path`, relative to the cache, and `shard` are for errors."""
        self._descriptor = descriptor
        self.path = path
        self.shard = shard
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int, size: int, record: int | None = None) -> NDArray[np.uint8]:
        """Read ``size`` bytes from ``offset``. Raises ShardDamaged when the file ends before."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self.damaged(f"expected {size} bytes at {offset}, the file ends at {self.size}", record)
        data = np.empty(size, np.uint8)
        view = data.data
        done = 0
        while done < size:
            count = read_at(self._descriptor, view[done:], offset + done)
            if count == 0:
                raise self.damaged(f"expected {size} bytes at {offset}, the file was truncated while open", record)
            done += count
        return data

    def damaged(self, what: str, record: int | None = None) -> ShardDamaged:
        return ShardDamaged(what, shard=self.shard, file=self.path, record=record)

    @staticmethod
    def missing(path: str, shard: int) -> ShardDamaged:
        """Return the error for a file that is not there."""
        return ShardDamaged("expected a file here, found none", shard=shard, file=path)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def __reduce__(self) -> Any:
        raise TypeError("an open shard file cannot be pickled; pickle the Cache, which opens its shards again")
