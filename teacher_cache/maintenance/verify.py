"""Verification of every byte of a cache against its checksums."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from teacher_cache.errors import CacheError, StorageError
from teacher_cache.format import paths
from teacher_cache.format.manifest import Manifest
from teacher_cache.location import join
from teacher_cache.reading.cache import load_receipts
from teacher_cache.reading.read_ahead import read_ahead
from teacher_cache.storage.base import Storage
from teacher_cache.storage.opening import storage_at
from teacher_cache.storage.shard_files import ShardFile

__all__ = ["Problem", "verify"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One fault: the file (relative to the cache), the shard it belongs to or None, and what is wrong.

    foreign  the file does not belong to the cache: no build can repair that, and its owner may want it.
    """

    file: str
    shard: int | None
    what: str
    foreign: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify(
    path: str | os.PathLike[str], *, threads: int = 4, on_progress: Callable[[int, int], None] | None = None
) -> list[Problem]:
    """Compare every file of a finished cache with its checksum; -> every problem found, [] when it is sound.

    path         a folder, or a URL. On a web server, which does not list its files, additional ones are not found.
    threads      that read files at a time.
    on_progress  called with (files done, files in all) as files are checked.

    Finds flipped, cut, missing, swapped and additional files. The folders logs/ and tmp/ are no part of the cache.
    Raises OSError when a file cannot be read for reasons other than its absence.
    """
    storage = storage_at(path)
    try:
        manifest = Manifest.decode(storage.read(paths.MANIFEST), str(join(storage.location, paths.MANIFEST)))
    except FileNotFoundError:
        return [Problem(file=paths.MANIFEST, shard=None, what="expected a manifest, found none")]
    except StorageError:
        raise
    except CacheError as error:
        return [Problem(file=paths.MANIFEST, shard=None, what=str(error))]
    description = manifest.description
    used = manifest.shards[-1].shard + 1 if manifest.shards else 0
    problems: list[Problem] = []
    named = paths.names_dimensions(storage, description)
    fixed = paths.metadata_files(description, used, named=named) | {paths.RECIPE: description.encoded}
    problems += _check_fixed(storage, fixed | {paths.MANIFEST: manifest.encoded})
    known = {paths.MANIFEST, *fixed}
    for entry in manifest.shards:
        known |= {paths.receipt_path(entry.shard), *paths.shard_paths(description.storage, entry.shard)}
    each = len(paths.shard_paths(description.storage, 0))
    done, total = 0, len(manifest.shards) * each

    def check(item: tuple[int, ShardFile | CacheError]) -> tuple[Problem | None, int]:
        """Check one file; -> its problem or None, and how many files are done."""
        shard, file = item
        if isinstance(file, CacheError):
            return Problem(file=paths.receipt_path(shard), shard=shard, what=str(file)), each
        return _check_file(storage, shard, file), 1

    # Only a few files ahead: neither the pending checks nor the receipts of millions of files are held in memory.
    for problem, count in read_ahead(check, _files(storage, manifest), threads=threads, ahead=4 * threads):
        problems += [problem] if problem else []
        done += count
        if on_progress is not None:
            on_progress(done, total)
    problems += [
        Problem(file=name, shard=None, what="not a file of this cache", foreign=True)
        for name in storage.files() or []
        if name not in known
    ]
    return problems


def _files(storage: Storage, manifest: Manifest) -> Iterator[tuple[int, ShardFile | CacheError]]:
    """Yield every file that the receipts list, with its shard; for a receipt that is not the manifest's, the error."""
    for entry, receipt in zip(manifest.shards, load_receipts(storage, manifest), strict=True):
        if isinstance(receipt, CacheError):
            yield entry.shard, receipt
        else:
            yield from ((entry.shard, file) for file in receipt.files)


def _check_fixed(storage: Storage, expected: dict[str, bytes]) -> list[Problem]:
    problems = []
    for name, data in sorted(expected.items()):
        try:
            same = storage.read(name) == data
        except FileNotFoundError:
            problems.append(Problem(file=name, shard=None, what="expected a file here, found none"))
            continue
        if not same:
            what = "its contents differ from what the manifest implies; run the build again to rewrite it"
            problems.append(Problem(file=name, shard=None, what=what))
    return problems


def _check_file(storage: Storage, shard: int, expected: ShardFile) -> Problem | None:
    try:
        # Of a store, a size is one more request; of a folder, it spares reading a file that is wrong already.
        known = None if storage.remote else storage.sizes(few=True)(expected.path)
        if known is not None and known != expected.bytes:
            size, digest = known, ""
        else:
            size, digest = storage.digest(expected.path, expected.bytes)
    except FileNotFoundError:
        return Problem(file=expected.path, shard=shard, what="expected a file here, found none")
    if size != expected.bytes:
        found = "found more" if storage.remote and size > expected.bytes else f"found {size}"  # no more is read
        return Problem(file=expected.path, shard=shard, what=f"expected {expected.bytes} bytes, {found}")
    if digest != expected.sha256:
        return Problem(file=expected.path, shard=shard, what=f"expected SHA-256 {expected.sha256}, found {digest}")
    return None
