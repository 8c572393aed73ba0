"""The storage interface: the files of one cache in a folder of this machine, or behind an fsspec URL.

Everything above works with paths relative to the cache and asks a `Storage` for bytes. The guarantees differ in one
point: a folder has locks, so builders that disagree never mix in a shard; an object store has none, so there the
guarantee only holds for builders that compute the same bytes (docs/object-stores.md).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from teacher_cache.location import Location
from teacher_cache.storage.shard_files import ShardEntry, ShardFile, ShardFileReader

__all__ = ["VOLATILE", "ShardFiles", "Storage"]

VOLATILE = ("logs", "tmp")  # folders that no checksum covers


class ShardFiles(Protocol):
    """Access to the files of one shard."""

    def open(self, path: str, shard: int) -> ShardFileReader:
        """Open a file of a shard for random access. Raises ShardDamaged if it is missing or longer than allowed."""


class Storage(Protocol):
    """The files of one cache, by path relative to it. Picklable; safe from several threads and after a fork.

    location  of the cache, as its users name it.
    remote    True if opening a file fetches all of it over a network.

    A missing file raises FileNotFoundError, a failing disk OSError, a store that does not answer or refuses
    StorageError.
    """

    @property
    def location(self) -> Location: ...

    @property
    def remote(self) -> bool: ...

    def read(self, path: str) -> bytes:
        """Read a whole file."""

    def read_range(self, file: ShardFile, offset: int, size: int) -> bytes:
        """Read ``size`` bytes of a file from ``offset``; fewer where the file ends before.

        One request to a store, unless its files are to be kept on disk.
        """

    def read_many(self, paths: Sequence[str]) -> Iterator[bytes | None]:
        """Read whole files, in order; None for a missing one. Several requests may run at once."""

    def sizes(self, *, few: bool = False) -> Callable[[str], int | None]:
        """Return a look-up of current file sizes, None for a missing file. `few`: only a few will be looked up."""

    def of_shard(self, entry: ShardEntry) -> ShardFiles:
        """Return access to the files of a committed shard; each is opened on demand."""

    def digest(self, path: str, limit: int) -> tuple[int, str]:
        """Return size and SHA-256 of a file, read in pieces.

        For a file longer than `limit`: some size beyond it, and no hash.
        """

    def names(self, folder: str) -> list[str]:
        """List the names of the files in a folder, sorted; none if the folder is missing.

        Raises StorageError where files cannot be listed.
        """

    def files(self) -> list[str] | None:
        """List the paths of all files outside VOLATILE folders, sorted; None if files cannot be listed."""

    def prepare(self) -> list[str]:
        """Make room for a cache and remove what dead processes left; -> the names removed."""

    def tidy(self) -> None:
        """Remove what is only needed during a build, unless someone still uses it."""

    def write_documents(self, documents: Mapping[str, bytes]) -> None:
        """Write small files in order, each atomically; files that already hold these bytes are left alone."""

    def write_new(self, path: str, data: bytes) -> bytes:
        """Write a small file unless its path is taken; -> the bytes that are there afterwards.

        Where there are locks, the first of several writers wins.
        """

    def commit(
        self,
        shard: int,
        files: Iterable[tuple[str, list[bytes]]],
        note: str,
        receipt: Callable[[list[ShardFile]], bytes],
        settled: Callable[[], bool],
    ) -> bool:
        """Write the files of a shard, then its receipt at the path `note`; -> whether it was written.

        Nothing is written where `settled` reports that someone else committed the shard meanwhile.
        """

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files, durably and in this order; missing ones are ignored."""

    def append(self, path: str, line: bytes, *, flush: bool = False) -> None:
        """Append a line to a log. Lines may become visible later, unless `flush`."""

    def flush(self) -> None:
        """Make every appended line visible."""
