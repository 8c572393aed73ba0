"""Open the storage that a location names."""

import os
from pathlib import Path

from teacher_cache.location import localise
from teacher_cache.storage.base import Storage
from teacher_cache.storage.local import LocalStorage

__all__ = ["storage_at"]


def storage_at(location: str | os.PathLike[str]) -> Storage:
    """Return the storage of the cache at a path or URL. Raises StorageError if no installed package handles the URL."""
    local = localise(location)
    if isinstance(local, Path):
        return LocalStorage(local)
    from teacher_cache.storage.remote import RemoteStorage

    return RemoteStorage(local)
