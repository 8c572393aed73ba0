"""The caches under one folder."""

import os
from pathlib import Path

from teacher_cache.errors import CacheError
from teacher_cache.format import paths
from teacher_cache.location import Location, localise
from teacher_cache.reading.cache import CacheInfo, open_cache
from teacher_cache.storage.opening import storage_at

__all__ = ["list_caches"]


def list_caches(root: str | os.PathLike[str]) -> tuple[list[CacheInfo], list[CacheError]]:
    """List all caches directly in `root`, unfinished ones included, by name; and the errors of unreadable ones.

    Raises FileNotFoundError, NotADirectoryError for a root that is no folder.
    """
    found: list[CacheInfo] = []
    faults: list[CacheError] = []
    for path in _folders(root):
        if not set(storage_at(path).names("")) & {paths.RECIPE, paths.MANIFEST}:
            continue
        try:
            cache = open_cache(path, allow_incomplete=True)
            _ = cache.poses  # refuses a number that does not fit the shards, so that others may divide by it
            found.append(cache.info())
        except CacheError as error:
            faults.append(error)
    return found, faults


def _folders(root: str | os.PathLike[str]) -> list[Location]:
    location = localise(root)
    if isinstance(location, Path):
        return sorted(path for path in location.iterdir() if path.is_dir() and path.name[0] != ".")
    from teacher_cache.storage.remote import folders

    return list(folders(location))
