"""The caches under one folder."""

import os
from pathlib import Path

from teacher_cache import layout
from teacher_cache.errors import CacheError
from teacher_cache.reader import CacheInfo, open_cache

__all__ = ["list_caches"]


def list_caches(root: str | os.PathLike[str]) -> tuple[list[CacheInfo], list[CacheError]]:
    """What every cache that lies directly in `root` holds, unfinished ones included, by name; and what cannot be read.

    Raises FileNotFoundError, NotADirectoryError for a root that is no folder.
    """
    found: list[CacheInfo] = []
    faults: list[CacheError] = []
    for path in sorted(Path(root).iterdir()):
        if not (path / layout.RECIPE).is_file() and not (path / layout.MANIFEST).is_file():
            continue
        try:
            found.append(open_cache(path, allow_incomplete=True).info())
        except CacheError as error:
            faults.append(error)
    return found, faults
