"""Compaction: join the small shards that growth left into full ones; place, recipe and records stay the same.

A new cache is written beside the old one and then put in its place by two renames. If killed anywhere, the next call
resumes: the old cache is complete until the new one is, and the state between the renames is recognised.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, RecipeMismatch, StorageError
from teacher_cache.format import paths
from teacher_cache.location import localise
from teacher_cache.maintenance.gc import find_abandoned
from teacher_cache.maintenance.rewrite import Rewritten, refilled, rewrite
from teacher_cache.maintenance.sources import open_source, parts_of
from teacher_cache.storage import atomic
from teacher_cache.system import sync_directory
from teacher_cache.writer import create_cache

__all__ = ["compact"]

LOGS = "logs"


def compact(
    path: str | os.PathLike[str], *, threads: int = 2, on_progress: Callable[[int, int], None] | None = None
) -> Rewritten | None:
    """Refill the shards of a finished cache, in the order of its records; -> None if they are already full.

    threads      shards in work at once; each holds the decoded records of one shard.
    on_progress  called with (shards done, shards in all), first before any work, in the calling thread.

    The bytes are those of one build of the same shapes in the same order; for a cache that grew at its corpus' end,
    those of building the grown corpus at once. The call needs twice the cache's space while it runs. Close readers
    first, since the shards that they have not opened yet move. A build must not run meanwhile: if one does, or has
    committed anything by the end, the call stops and changes nothing.

    Raises StorageError for a URL, CacheError for a damaged cache or one that a build is working on, ManifestError for
    one that is not finished, FileNotFoundError where there is none.
    """
    place = localise(path)
    if not isinstance(place, Path):
        raise StorageError(
            f"{place}: an object store cannot rename, so a cache there cannot be replaced atomically.\n"
            "  Write it under another root with `i2p cache convert --shapes-per-shard`."
        )
    place = place.resolve()  # what a link names is compacted where it lies
    fresh, old = _beside(place)
    for folder in (fresh, old):
        if folder.is_symlink():
            raise CacheError(
                f"{folder}: expected nothing here, or a folder of this command; found a link.\n  Remove it."
            )
    _take_up(place, fresh, old)
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: no such cache")
    _check_idle(place)
    stands = _documents(place)
    cache = open_source(place)
    parts = parts_of(cache)
    config = CacheConfig.from_storage(dict(cache.recipe.storage))
    shards = refilled(parts, shapes_per_shard=config.shapes_per_shard, poses=cache.poses)
    if [[piece.ids for piece in pieces] for pieces in shards.values()] == [[part.ids] for part in parts]:
        shutil.rmtree(fresh, ignore_errors=True)  # of a call that was stopped, before the cache was made full otherwise
        return None
    while True:
        writer = create_cache(
            fresh, cache.recipe, cache.schema, config, label_names=cache.label_names, basis=cache.basis
        )
        try:
            made = rewrite(
                [cache],
                shards,
                writer,
                planned=cache.info().planned,
                threads=threads,
                on_progress=on_progress,
                event="compact",
            )
            break
        except RecipeMismatch:  # a call that was stopped worked on the cache before it grew again
            shutil.rmtree(fresh)
    _carry_logs(place, fresh)
    # Nothing locks a whole cache, so a build may have started or committed while this call read: checked just before
    # the renames.
    _check_idle(place)
    if _documents(place) != stands:
        raise CacheError(
            f"{place}: a build has changed this cache meanwhile, so it was left as it is.\n"
            "  Run the command again when no build is running."
        )
    # Synced before the second rename: after a crash the set-aside folder is there whenever the place is empty, and the
    # next call knows what to finish.
    os.rename(place, old)
    sync_directory(place.parent)
    _take_up(place, fresh, old)
    return Rewritten(path=place, records=made.records, shards=made.shards, written=made.written, bytes=made.bytes)


def _beside(place: Path) -> tuple[Path, Path]:
    """Return where the new cache is written, and where the old one is kept between the two renames."""
    return place.with_name(f".compacting-{place.name}"), paths.set_aside(place)


def _check_idle(place: Path) -> None:
    if find_abandoned(place).busy:
        raise CacheError(f"{place}: a build is running on this cache.\n  Wait until it has finished.")


def _documents(place: Path) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Return the manifest (b"" if missing), and size and time of each receipt: what every build changes."""
    manifest, receipts = place / paths.MANIFEST, place / paths.RECEIPTS
    data = manifest.read_bytes() if manifest.is_file() else b""
    found = {}
    for entry in os.scandir(receipts) if receipts.is_dir() else ():
        status = entry.stat()
        found[entry.name] = (status.st_size, status.st_mtime_ns)
    return data, found


def _take_up(place: Path, fresh: Path, old: Path) -> None:
    """Finish what an interrupted call began: the old cache is set aside only when the new one is complete."""
    if not old.is_dir() or old.is_symlink():
        return
    if not place.exists():
        os.rename(fresh, place)
        sync_directory(place.parent)  # the new cache is durably in place before the old one is removed
    shutil.rmtree(old)


def _carry_logs(place: Path, fresh: Path) -> None:
    """Copy those notes of the old cache that stay true, such as where its corpus lies.

    Stamps are those of its shards, and are left behind.
    """
    atomic.refuse_links(place, place / LOGS / "any")
    for source in sorted((place / LOGS).glob("*")) if (place / LOGS).is_dir() else ():
        if source.is_file() and not source.is_symlink() and source.name != "stamps.json":
            target = fresh / LOGS / (source.name if source.suffix == ".toml" else f"before-{source.name}")
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                atomic.replace_file(target, source.read_bytes())
