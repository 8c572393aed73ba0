"""The storage interface: the files of one cache in a folder of this machine, or behind an fsspec URL.

Everything above works with paths relative to the cache and asks a `Storage` for bytes. What may be promised differs
in one point: a folder has locks, so builders that disagree never mix in a shard; an object store has none, so there the
promise holds for builders that compute the same bytes (docs/object-stores.md).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from teacher_cache.location import Location
from teacher_cache.storage.shard_files import ShardEntry, ShardFile, ShardFileReader

__all__ = ["VOLATILE", "ShardFiles", "Storage"]

VOLATILE = ("logs", "tmp")  # folders that no checksum covers


class ShardFiles(Protocol):
    """What opens the files of one shard."""

    def open(self, path: str, shard: int) -> ShardFileReader:
        """A file of a shard, for random access. Raises ShardDamaged when it is not there, or longer than it may be."""


class Storage(Protocol):
    """The files of one cache, by path relative to it. Picklable; safe from several threads and after a fork.

    location  of the cache, as its users name it.
    remote    whether a file is fetched whole when it is opened, over a network.

    What is not there raises FileNotFoundError. A failing disk raises OSError, a store that does not answer or refuses
    raises StorageError.
    """

    @property
    def location(self) -> Location: ...

    @property
    def remote(self) -> bool: ...

    def read(self, path: str) -> bytes:
        """A whole file."""

    def read_many(self, paths: Sequence[str]) -> Iterator[bytes | None]:
        """Whole files, in order; None for one that is not there. Several may be under way at once."""

    def sizes(self, *, few: bool = False) -> Callable[[str], int | None]:
        """A look-up of files' sizes as they are now, None for one that is not there. `few` of them, or most."""

    def of_shard(self, entry: ShardEntry) -> ShardFiles:
        """The files of a committed shard, to be opened one by one."""

    def digest(self, path: str, limit: int) -> tuple[int, str]:
        """Size and SHA-256 of a file, read in pieces. Of one longer than `limit`, some size beyond it, and no hash."""

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted; none where the folder is not there. Raises StorageError where files
        cannot be listed."""

    def files(self) -> list[str] | None:
        """Paths of all files but those in VOLATILE folders, sorted; None where files cannot be listed."""

    def prepare(self) -> list[str]:
        """Make room for a cache, and remove what dead processes left; -> what was removed."""

    def tidy(self) -> None:
        """Remove what is only of use while a build goes on, if no one uses it."""

    def write_documents(self, documents: Mapping[str, bytes]) -> None:
        """Put small files at their paths, in order, each atomically; those that hold these bytes are left alone."""

    def write_new(self, path: str, data: bytes) -> bytes:
        """Put a small file at its path unless there is one; -> the one that is there. The first of several wins, where
        there are locks."""

    def commit(
        self,
        shard: int,
        files: Iterable[tuple[str, list[bytes]]],
        note: str,
        receipt: Callable[[list[ShardFile]], bytes],
        settled: Callable[[], bool],
    ) -> bool:
        """Write the files of a shard and then its receipt, at the path `note`; -> False, nothing written, where
        `settled` says that someone else did meanwhile."""

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files, durably and in this order; absent ones are no matter."""

    def append(self, path: str, line: bytes, *, flush: bool = False) -> None:
        """Add a line to a log. Lines may become visible later, unless `flush`."""

    def flush(self) -> None:
        """Make every line that was appended visible."""
