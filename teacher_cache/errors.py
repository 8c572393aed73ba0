"""Errors of caches, one class for each thing a caller would handle differently.

A message has four parts: what was expected, what came, where, and what to do next. Reading a cache whose files are
damaged, cut short or made up raises one of these and nothing else; wrong arguments raise TypeError, ValueError or
IndexError, a failing disk raises OSError, and a store behind a URL that does not answer raises StorageError.
"""

from collections.abc import Iterator

__all__ = [
    "CacheError",
    "ManifestError",
    "RecipeMismatch",
    "SchemaError",
    "ShardDamaged",
    "StorageError",
    "UnsupportedVersion",
    "causes",
]


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, the one it was raised from, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


class CacheError(Exception):
    """Base of every error of this package."""


class ManifestError(CacheError):
    """A cache that is missing, unfinished or whose documents are damaged.

    There is no cache here, its build has not finished, or its manifest or receipts do not parse or check.
    """


class UnsupportedVersion(ManifestError):
    """The cache was written in a format version this program does not read."""


class RecipeMismatch(CacheError):
    """The directory holds a cache of another recipe; the message names each setting that differs."""


class SchemaError(CacheError):
    """A record does not fit the cache: wrong shape or dtype, values that are not finite, or an array not stored."""


class StorageError(CacheError):
    """A store or web server did not answer, refused, or cannot do what was asked; or no package handles a URL."""


class ShardDamaged(CacheError):
    """A shard's bytes are not what was committed.

    shard   index of the shard.
    file    the damaged file, relative to the cache.
    record  position within the shard, or None where the damage is not one record's.
    """

    def __init__(self, what: str, *, shard: int, file: str, record: int | None = None) -> None:
        where = f"shard {shard}, {file}" + ("" if record is None else f", record {record} of the shard")
        super().__init__(
            f"{where}: {what}.\n"
            "  Copy this file again from where the cache came from, or run `i2p cache repair` on the cache, which "
            "rebuilds this shard and no other."
        )
        self.what = what
        self.shard = shard
        self.file = file
        self.record = record

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders (loader workers), so rebuild from the parts."""
        return _rebuild_shard_damaged, (self.what, self.shard, self.file, self.record)


def _rebuild_shard_damaged(what: str, shard: int, file: str, record: int | None) -> ShardDamaged:
    return ShardDamaged(what, shard=shard, file=file, record=record)
