"""A cache of a 2D teacher's features for 3D shapes: written once, read by every training run.

A cache is a folder: shards in Zarr v3 or WebDataset form, a receipt for each, and a manifest; docs/format.md is the
specification.

Reading:

    import teacher_cache

    cache = teacher_cache.open("caches/synthetic-0f3a9c21d7be")
    record = cache[0]                           # TeacherRecord: points, features, saliency, geometry of one shape
    batch = cache.read([3, 1, 4])               # RecordBatch: the same arrays with 3 rows
    for batch in teacher_cache.stream(cache, batch_size=64, seed=0, epoch=3):
        batch.content                           # RecordBatch; batch.state resumes with the next one
    some = teacher_cache.select(cache, ["a", "b"])    # these shapes alone; reads and streams like the cache
    assert not teacher_cache.verify(cache.path)

Writing, in the driver and in its workers:

    writer = teacher_cache.create_cache(directory, recipe, schema, config, label_names=names)
    receipt = teacher_cache.write_shard(writer.handle, 0, records, quarantined)     # any process, any order
    writer.finish(planned=len(corpus))
"""

from teacher_cache.config import CacheConfig
from teacher_cache.errors import (
    CacheError,
    ManifestError,
    RecipeMismatch,
    SchemaError,
    ShardDamaged,
    StorageError,
    UnsupportedVersion,
)
from teacher_cache.format.basis import Basis
from teacher_cache.format.manifest import Receipt
from teacher_cache.format.records import CacheSchema, Quarantined, RecordBatch, TeacherRecord
from teacher_cache.maintenance.compact import compact
from teacher_cache.maintenance.convert import convert
from teacher_cache.maintenance.gc import Abandoned, Findings, find_abandoned, gc
from teacher_cache.maintenance.merge import merge
from teacher_cache.maintenance.repair import withdraw
from teacher_cache.maintenance.rewrite import Rewritten
from teacher_cache.maintenance.verify import Problem, verify
from teacher_cache.reading.cache import Cache, CacheInfo
from teacher_cache.reading.cache import open_cache as open
from teacher_cache.reading.listing import list_caches
from teacher_cache.reading.order import ShuffleQuality, epoch_order, shuffle_quality
from teacher_cache.reading.selection import Selection, first, select
from teacher_cache.reading.stream import NothingSound, Stream, StreamBatch, stream
from teacher_cache.recipe import FORMAT_VERSION, Recipe, cache_directory
from teacher_cache.storage.shard_files import ShardFile
from teacher_cache.writer import CacheHandle, CacheWriter, create_cache, stored_basis, write_shard

__all__ = [
    "FORMAT_VERSION",
    "Abandoned",
    "Basis",
    "Cache",
    "CacheConfig",
    "CacheError",
    "CacheHandle",
    "CacheInfo",
    "CacheSchema",
    "CacheWriter",
    "Findings",
    "ManifestError",
    "NothingSound",
    "Problem",
    "Quarantined",
    "Receipt",
    "Recipe",
    "RecipeMismatch",
    "RecordBatch",
    "Rewritten",
    "SchemaError",
    "Selection",
    "ShardDamaged",
    "ShardFile",
    "ShuffleQuality",
    "StorageError",
    "Stream",
    "StreamBatch",
    "TeacherRecord",
    "UnsupportedVersion",
    "cache_directory",
    "compact",
    "convert",
    "create_cache",
    "epoch_order",
    "find_abandoned",
    "first",
    "gc",
    "list_caches",
    "merge",
    "open",
    "select",
    "shuffle_quality",
    "stored_basis",
    "stream",
    "verify",
    "withdraw",
    "write_shard",
]
