"""Conversion: write the same records in another storage (format, shard size, or fewer bytes at a stated loss)."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError
from teacher_cache.maintenance.rewrite import Rewritten, new_location, refilled, rewrite
from teacher_cache.maintenance.sources import FindUntouched, open_source, parts_of
from teacher_cache.writer import create_cache

__all__ = ["convert"]

# Permitted conversions. Any other would claim an exactness in its recipe that its bytes do not have.
_FEATURES = {"float32": ("float32", "float16", "int8"), "float16": ("float16", "int8"), "int8": ("int8",)}
_DEPTH = {"float16": ("float16", "none"), "uint8": ("uint8", "none"), "none": ("none",)}
_UNTOUCHED = {"keep": ("keep", "zero"), "zero": ("zero",)}
_CLASS = {"float16": ("float16", "none"), "none": ("none",)}
_SETTINGS = (
    "format",
    "shapes_per_shard",
    "features",
    "steps",
    "untouched",
    "class_token",
    "depth",
    "compression",
    "level",
)


def convert(
    source: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    find_untouched: FindUntouched | None = None,
    threads: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
    **storage: Any,
) -> Rewritten:
    """Rewrite a finished cache under `root` with another storage; the source stays as it is.

    source          path or URL.
    root            folder, or URL, that holds caches: the new one is ``<root>/<name of the source>-<its own hash>``.
    storage         settings of `CacheConfig` that are to change; the others are the source's. Nothing is lost by
                    `format`, `shapes_per_shard`, `compression` and `level`. `features` may become coarser (float32,
                    float16, int8 with `steps`), `depth` and `class_token` may become "none" and
                    `untouched` "zero". Int8 made of float16 says so in its recipe (`half_first`).
    find_untouched  for that: which tokens [B, V, T] of a batch no lookup reads.
    threads         shards in work at once; each holds the decoded records of one shard.
    on_progress     called with (shards done, shards in all), first before any work, in the calling thread.

    The new cache is what a build with its storage would have written, to the byte, where shards keep their shapes (the
    same `shapes_per_shard`, or any over full shards). Elsewhere it holds the same shapes in the
    same order.
    Labels, quarantine and planned shapes are carried along. An interrupted conversion resumes when called again.

    Raises CacheError for a conversion that is not possible, nothing to convert or a damaged source, ManifestError for a
    source that is not finished, RecipeMismatch when the target holds other shapes, ValueError and TypeError for
    arguments.
    """
    unknown = sorted(set(storage) - set(_SETTINGS))
    if unknown:
        raise TypeError(f"convert: {unknown[0]!r} is not one of {', '.join(_SETTINGS)}")
    cache = open_source(source)
    old = CacheConfig.from_storage(dict(cache.recipe.storage))
    new = replace(old, **storage)
    if (old.features, new.features) == ("float16", "int8"):
        new = replace(new, half_first=True)  # or the recipe would be that of a build from float32, whose bytes differ
    faults = [*new.problems(), *_refusals(old, new)]
    if new.untouched != old.untouched and find_untouched is None and not faults:
        raise ValueError(
            "convert: untouched = 'zero' needs find_untouched, which marks the tokens that no lookup reads"
        )
    if new.storage() == old.storage():
        faults.append("it already has these settings; copy it with any tool")
    if faults:
        raise CacheError(f"{cache.path}: cannot be converted:\n  " + "\n  ".join(faults))
    recipe = replace(cache.recipe, storage=new.storage())
    parts = parts_of(cache)
    if new.shapes_per_shard == old.shapes_per_shard:
        shards = {part.shard: [part] for part in parts}
    else:
        shards = refilled(parts, shapes_per_shard=new.shapes_per_shard, poses=cache.poses)
    target = new_location(root, cache, recipe, new)
    writer = create_cache(str(target), recipe, cache.schema, new, label_names=cache.label_names, basis=cache.basis)
    return rewrite(
        [cache],
        shards,
        writer,
        planned=cache.info().planned,
        threads=threads,
        on_progress=on_progress,
        untouched=None if new.untouched == old.untouched else find_untouched,
        event="convert",
    )


def _refusals(old: CacheConfig, new: CacheConfig) -> Iterator[str]:
    """Yield the reasons why records stored as `old` cannot be stored as `new`; none if they can."""
    for name, allowed in (
        ("features", _FEATURES),
        ("depth", _DEPTH),
        ("untouched", _UNTOUCHED),
        ("class_token", _CLASS),
    ):
        before, after = getattr(old, name), getattr(new, name)
        if after not in allowed.get(before, ()):
            # Depth of both kinds is off by a rounding of its own; after two a recipe would promise the error of one.
            why = (
                "its values are already rounded"
                if name == "depth" and after == "uint8"
                else "what was discarded is gone"
            )
            yield f'{name} = "{before}" cannot become "{after}": {why}; build the cache with cache.{name} = "{after}"'
    if old.features == new.features == "int8" and old.steps != new.steps:
        yield (
            f"steps = {old.steps} cannot become {new.steps}: rounded twice, features would be off by more than half a "
            f"step; build the cache with cache.steps = {new.steps}, or convert one with float features"
        )
