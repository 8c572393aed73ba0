"""The contract that every cache keeps, as tests, and made-up records to write caches of; for tests and benchmarks."""

from teacher_cache.testing.contract import CacheContract
from teacher_cache.testing.made_up import (
    SMALL_SCHEMA,
    assert_same_record,
    build,
    make_recipe,
    make_record,
    tree,
)

__all__ = ["SMALL_SCHEMA", "CacheContract", "assert_same_record", "build", "make_recipe", "make_record", "tree"]
