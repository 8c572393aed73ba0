"""Withdrawal of damaged shards, so that the next build writes just those again."""

import os
from collections.abc import Iterable

from teacher_cache.errors import CacheError, ManifestError, SchemaError
from teacher_cache.format import paths
from teacher_cache.format.manifest import Description, Manifest
from teacher_cache.location import join
from teacher_cache.maintenance.verify import Problem
from teacher_cache.storage.base import Storage
from teacher_cache.storage.opening import storage_at

__all__ = ["sound_description", "withdraw"]


def withdraw(path: str | os.PathLike[str], problems: Iterable[Problem]) -> list[int]:
    """Make the damaged shards of a cache count as not built; -> their indices, ascending.

    problems  what `verify` found. Damaged documents that the manifest implies are rewritten from it; files that do
              not belong to the cache stay, since nobody knows whose they are.

    The next build of the same experiment rebuilds the withdrawn shards and then the manifest, with the same bytes if
    corpus and teacher are unchanged. A crash in between leaves an unfinished cache; that build finishes it.

    Raises CacheError, and changes nothing, where recipe and manifest are both damaged.
    """
    storage, found = storage_at(path), list(problems)
    shards = sorted({problem.shard for problem in found if problem.shard is not None})
    if not found:
        return []
    _restore_documents(storage, {problem.file for problem in found if problem.shard is None})
    storage.remove([paths.MANIFEST, *(paths.receipt_path(shard) for shard in shards)])  # the manifest first
    return shards


def sound_description(path: str | os.PathLike[str]) -> Description:
    """Read what a cache is from its recipe.json or, if that is damaged, from its manifest.

    Raises CacheError where both are.
    """
    storage = storage_at(path)
    for name in (paths.RECIPE, paths.MANIFEST):
        where = str(join(storage.location, name))
        try:
            data = storage.read(name)
            return Description.decode(data, where) if name == paths.RECIPE else Manifest.decode(data, where).description
        except (FileNotFoundError, ManifestError, SchemaError):
            continue
    raise _nothing_says(storage)


def _nothing_says(storage: Storage) -> CacheError:
    return CacheError(
        f"{storage.location}: expected an intact {paths.RECIPE} or {paths.MANIFEST}; both are damaged, so the recipe "
        "of this cache is unknown.\n"
        "  Copy one of them again from where the cache came from, or empty the folder and build again."
    )


def _restore_documents(storage: Storage, damaged: set[str]) -> None:
    """Write the recipe again where it is damaged and the manifest, which repeats it, is not."""
    where = join(storage.location, paths.MANIFEST)
    if paths.MANIFEST in damaged:
        try:
            Description.decode(storage.read(paths.RECIPE), str(join(storage.location, paths.RECIPE)))
        except (FileNotFoundError, ManifestError, SchemaError) as error:
            raise _nothing_says(storage) from error
        return
    if paths.RECIPE not in damaged:
        return
    try:
        manifest = Manifest.decode(storage.read(paths.MANIFEST), str(where))
    except FileNotFoundError as error:
        raise CacheError(f"{where}: expected a manifest to restore {paths.RECIPE} from, found none") from error
    storage.write_documents({paths.RECIPE: manifest.description.encoded})
