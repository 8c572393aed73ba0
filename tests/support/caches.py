"""Small caches for tests of whoever reads them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.format.records import CacheSchema, TeacherRecord
from teacher_cache.testing import make_recipe, make_record
from teacher_cache.writer import create_cache, write_shard

__all__ = ["small_cache", "write_cache"]


def small_cache(
    directory: Path, count: int, schema: CacheSchema, *, seed: int = 0, **settings: object
) -> teacher_cache.Cache:
    """A finished cache of ``count`` made-up records of any schema; ``settings`` are CacheConfig's."""
    return write_cache(directory, [make_record(i, schema, seed=seed) for i in range(count)], schema, **settings)


def write_cache(
    directory: Path,
    records: Sequence[TeacherRecord],
    schema: CacheSchema,
    *,
    label_names: Sequence[str] = (),
    teacher: str = "",
    **settings: object,
) -> teacher_cache.Cache:
    """A finished cache of the given records, opened; of the made-up teacher, or one of another name."""
    config = CacheConfig(**({"shapes_per_shard": 4} | settings))  # type: ignore[arg-type]
    recipe = make_recipe(config)
    if teacher:
        recipe = replace(recipe, teacher={"architecture": teacher})
    writer = create_cache(directory, recipe, schema, config, label_names=label_names)
    size = config.shapes_per_shard
    for shard, start in enumerate(range(0, len(records), size)):
        write_shard(writer.handle, shard, records[start : start + size])
    writer.finish(planned=len(records))
    return teacher_cache.open(directory)
