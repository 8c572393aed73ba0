"""Garbage collection: find what dead builds left in caches, and remove it when asked to.

Only what is known to belong to nobody is called abandoned: a workspace whose lock can be taken (docs/format.md,
"Commit": the kernel frees a lock when its holder dies), and files of a shard that has neither a receipt nor a line in
the manifest. Both are checked again, under the lock that builders take, before anything is removed.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from teacher_cache import system
from teacher_cache.errors import CacheError, ManifestError, StorageError
from teacher_cache.format import paths
from teacher_cache.format.manifest import Description, Manifest
from teacher_cache.location import localise
from teacher_cache.storage import atomic
from teacher_cache.storage.base import VOLATILE
from teacher_cache.storage.opening import storage_at

__all__ = ["Abandoned", "Findings", "find_abandoned", "gc"]

Document = TypeVar("Document")


@dataclass(frozen=True, kw_only=True)
class Abandoned:
    """A piece that no build and no cache needs.

    cache  folder of the cache.
    path   in it, with /.
    kind   "workspace": of a dead process, with its lock; "shard": a file of a shard that was never committed;
           "unknown": a file that is no part of a cache.
    bytes  its size, a folder's with all that is in it.
    shard  of a shard's file.
    """

    cache: Path
    path: str
    kind: Literal["workspace", "shard", "unknown"]
    bytes: int
    shard: int | None = None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Results of a search in one cache, or in all caches of a folder.

    caches     looked into.
    abandoned  by cache and path.
    busy       workspaces and locks of living processes, which stay.
    faults     caches whose documents cannot be read; of these only workspaces are known.
    """

    caches: int
    abandoned: tuple[Abandoned, ...]
    busy: int
    faults: tuple[CacheError, ...]


def find_abandoned(path: str | os.PathLike[str], *, unknown: bool = False) -> Findings:
    """Search for abandoned pieces without changing anything.

    path     folder of a cache, or of caches.
    unknown  also list files that do not belong to a cache.

    Raises StorageError for a URL: an object store has no locks, so abandoned files cannot be recognised there;
    FileNotFoundError, NotADirectoryError for a path that is no folder; CacheError where flock does not work.
    """
    root = localise(path)
    if not isinstance(root, Path):
        raise StorageError(
            f"{root}: expected a folder; an object store has no locks that tell abandoned work from a running build.\n"
            "  A build leaves only files of shards without a receipt there, which the next build overwrites."
        )
    caches = [root] if _is_cache(root) else sorted(folder for folder in root.iterdir() if _is_cache(folder))
    found: list[Abandoned] = []
    faults: list[CacheError] = []
    busy = 0
    for cache in caches:
        pieces, held = _workspaces(cache, unknown=unknown)
        found += pieces
        busy += held
        try:
            found += _debris(cache, unknown=unknown)
        except CacheError as error:
            faults.append(error)
    return Findings(caches=len(caches), abandoned=tuple(found), busy=busy, faults=tuple(faults))


def gc(
    pieces: Iterable[Abandoned], *, on_progress: Callable[[int], None] | None = None
) -> tuple[list[Abandoned], list[Abandoned]]:
    """Remove what `find_abandoned` found; -> what was removed, and what stays because it is in use by now.

    on_progress  called with the number of pieces dealt with, after each.

    Raises OSError where a file cannot be removed; what was removed before stays removed.
    """
    removed: list[Abandoned] = []
    kept: list[Abandoned] = []
    caches = set()
    for done, piece in enumerate(pieces, start=1):
        caches.add(piece.cache)
        (removed if _remove(piece) else kept).append(piece)
        if on_progress is not None:
            on_progress(done)
    for cache in caches:
        atomic.remove_temporary(cache)
    return removed, kept


def _is_cache(folder: Path) -> bool:
    """Check whether a folder is a cache, or one whose build died before it wrote the recipe."""
    if not folder.is_dir():
        return False
    names = {entry.name for entry in folder.iterdir()}
    return bool(names & {paths.RECIPE, paths.MANIFEST}) or ("tmp" in names and names <= set(VOLATILE))


def _workspaces(cache: Path, *, unknown: bool) -> tuple[list[Abandoned], int]:
    folder = cache / atomic.TEMPORARY
    if not folder.is_dir() or folder.is_symlink():
        return [], 0
    found: list[Abandoned] = []
    busy = 0
    for stem in sorted({path.name.removesuffix(".lock") for path in folder.iterdir()}):
        path, lock = folder / stem, folder / f"{stem}.lock"
        if not atomic.OWN_NAME.fullmatch(stem) or path.is_symlink() or lock.is_symlink() or lock.is_dir():
            if unknown:
                kept = [each for each in (path, lock) if os.path.lexists(each)]
                found += [_piece(cache, f"tmp/{each.name}", "unknown") for each in kept]
            continue
        with _held(lock) as state:
            # A lock is there before its folder and stays longer: a folder without one lost its owner.
            if state == "held" or (state == "absent" and path.is_dir()):
                found.append(
                    Abandoned(
                        cache=cache, path=f"tmp/{stem}", kind="workspace", bytes=_size(path) + _size(lock), shard=None
                    )
                )
            busy += state == "busy"
    return found, busy


def _debris(cache: Path, *, unknown: bool) -> Iterator[Abandoned]:
    """Yield files of shards that were never committed and, where asked for, files that do not belong to a cache."""
    description, listed = _documents(cache)
    known = {paths.RECIPE, paths.MANIFEST}
    if description is not None:
        known |= set(paths.metadata_files(description, 0))
    free: dict[int, bool] = {}  # shard -> whether it is neither committed nor being committed
    for folder, folders, names in os.walk(cache):  # follows no links
        relative = Path(folder).relative_to(cache)
        if relative == Path("."):
            folders[:] = [name for name in folders if name not in VOLATILE]
        folders.sort()
        for name in sorted(names):
            path = (relative / name).as_posix()
            shard = _shard_of(path, description)
            if shard is not None:
                if shard not in free:
                    free[shard] = shard not in listed and _uncommitted(cache, shard)
                if free[shard]:
                    yield _piece(cache, path, "shard", shard)
            elif unknown and path not in known and not _is_receipt(path):
                yield _piece(cache, path, "unknown")


def _uncommitted(cache: Path, shard: int) -> bool:
    """Check that a shard has no receipt and that nobody is about to write one."""
    with _held(_shard_lock(cache, shard)) as state:
        return state != "busy" and not (cache / paths.receipt_path(shard)).exists()


def _shard_lock(cache: Path, shard: int) -> Path:
    return cache / atomic.TEMPORARY / f"shard-{shard:06d}.lock"


def _documents(cache: Path) -> tuple[Description | None, set[int]]:
    """Return the cache's description and the shards its manifest lists.

    The description is None if the recipe was never written. Raises CacheError.
    """
    try:
        manifest = _decoded(cache, paths.MANIFEST, Manifest.decode)
        if manifest is not None:
            return manifest.description, {entry.shard for entry in manifest.shards}
        return _decoded(cache, paths.RECIPE, Description.decode), set()
    except ManifestError as error:
        raise CacheError(
            f"{error}\n  Until it is repaired, only abandoned workspaces are searched for here."
        ) from error


def _decoded(cache: Path, name: str, decode: Callable[[bytes, str], Document]) -> Document | None:
    try:
        data = storage_at(cache).read(name)  # bounded, and of a regular file: a pipe would wait, a device never end
    except FileNotFoundError:
        return None
    return decode(data, str(cache / name))


def _shard_of(path: str, description: Description | None) -> int | None:
    """Return the shard whose file this path is, by the names that the format gives; None for other files."""
    digits = re.search(r"\d+", path.rpartition("/")[2])
    if description is None or digits is None or len(digits.group()) > 12:
        return None
    shard = int(digits.group())
    return shard if path in paths.shard_paths(description.storage, shard) else None


def _is_receipt(path: str) -> bool:
    digits = re.fullmatch(rf"{paths.RECEIPTS}/(\d{{6,12}})\.json", path)
    return digits is not None and path == paths.receipt_path(int(digits.group(1)))


def _piece(cache: Path, path: str, kind: Literal["shard", "unknown"], shard: int | None = None) -> Abandoned:
    return Abandoned(cache=cache, path=path, kind=kind, bytes=_size(cache / path), shard=shard)


def _remove(piece: Abandoned) -> bool:
    path = piece.cache / piece.path
    if piece.kind == "unknown":
        atomic.refuse_links(piece.cache, path)
        _delete(path)
        return True
    lock = path.with_name(f"{path.name}.lock") if piece.shard is None else _shard_lock(piece.cache, piece.shard)
    atomic.refuse_links(piece.cache, path)  # a folder may have become a link since the search
    atomic.refuse_links(piece.cache, lock)
    with _held(lock, create=True) as state:
        if state != "held":
            return False
        # Under the lock that a commit holds: with a receipt by now, the file is a committed shard's.
        ours = piece.shard is None or not (piece.cache / paths.receipt_path(piece.shard)).exists()
        if ours:
            _delete(path)
        system.remove_open(lock)  # while held, as atomic.lock does
    return ours


@contextmanager
def _held(path: Path, *, create: bool = False) -> Iterator[Literal["held", "busy", "absent"]]:
    """Hold a lock file unless someone else does; it may be removed inside."""
    if create:
        path.parent.mkdir(exist_ok=True)
    try:
        descriptor = system.open_file(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644, follow=False)
    except FileNotFoundError:
        yield "absent"
        return
    try:
        if atomic.try_lock(descriptor, wait=False):
            yield "held" if atomic.is_current(descriptor, path) else "absent"
        else:
            yield "busy"
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 where there is none. Links count themselves."""
    if path.is_dir() and not path.is_symlink():
        return sum(_size(inner) for inner in path.iterdir())
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
