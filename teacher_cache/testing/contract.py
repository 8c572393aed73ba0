"""The contract that every format keeps, as a test suite; and made-up records to test with.

A format's test module subclasses ``CacheContract`` and sets ``format``; pytest finds the inherited tests. The contract
plants and reads bytes past the code under test, so it needs no knowledge of a format beyond the paths of its shards.
"""

import dataclasses
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, ManifestError, RecipeMismatch, SchemaError, ShardDamaged
from teacher_cache.format import paths
from teacher_cache.testing.made_up import SMALL_SCHEMA, assert_same_record, build, make_recipe, make_record, tree
from teacher_cache.writer import create_cache, write_shard

__all__ = [
    "SMALL_SCHEMA",
    "CacheContract",
    "assert_same_record",
    "build",
    "make_recipe",
    "make_record",
    "tree",
]


class CacheContract:
    """The contract of a cache in any format. Subclass it, set ``format``, name the class Test...."""

    format: str

    def config(self, **settings: Any) -> CacheConfig:
        defaults: dict[str, Any] = {"format": self.format, "shapes_per_shard": 4}
        return CacheConfig(**(defaults | settings))

    def test_records_come_back_for_every_storage(self, tmp_path: Path) -> None:
        for features in ("float16", "float32", "int8"):
            for depth in ("uint8", "float16", "none"):
                for compression in ("zstd", "none"):
                    config = self.config(features=features, depth=depth, compression=compression)
                    path = tmp_path / f"{features}-{depth}-{compression}"
                    build(path, config, count=6)
                    cache = teacher_cache.open(path)
                    assert len(cache) == 6
                    for i, record in enumerate(cache):
                        assert_same_record(record, make_record(i), config)

    def test_batches_keep_order_and_repeats(self, tmp_path: Path) -> None:
        build(tmp_path / "c", self.config(), count=23)
        cache = teacher_cache.open(tmp_path / "c", threads=3)
        wanted = [22, 0, 5, 5, -1, 13, 7, 1, 2, 3, 17, 20, 4]
        batch = cache.read(wanted, depth=True)
        assert len(batch) == len(wanted)
        for row, index in enumerate(wanted):
            assert_same_record(batch.record(row), make_record(index % 23), self.config())
        assert cache.read([]).features.shape == (0, 3, 4, 6)
        assert cache.read([1]).depth is None

    def test_labels_ids_and_info(self, tmp_path: Path) -> None:
        build(tmp_path / "c", self.config(), count=11, bad=[2, 9])
        cache = teacher_cache.open(tmp_path / "c")
        good = [i for i in range(11) if i not in {2, 9}]
        assert cache.labels.tolist() == [i % 5 for i in good]
        assert cache.ids == [make_record(i).id for i in good]
        assert cache.counts.tolist() == [3, 4, 2]
        info = cache.info()
        assert (info.records, info.planned, info.shards, info.complete) == (9, 11, 3, True)
        assert [(item.id, item.source) for item in info.quarantined] == [
            ("made-up/00002", "2.obj"),
            ("made-up/00009", "9.obj"),
        ]
        assert info.format == self.format
        assert info.label_names == ("a", "b", "c", "d", "e")
        assert [record.id for record in cache] == cache.ids

    def test_a_shard_may_be_all_quarantine(self, tmp_path: Path) -> None:
        build(tmp_path / "c", self.config(), count=9, bad=[4, 5, 6, 7])
        cache = teacher_cache.open(tmp_path / "c")
        assert cache.counts.tolist() == [4, 0, 1]
        assert cache[4].id == make_record(8).id
        assert teacher_cache.verify(tmp_path / "c") == []

    def test_order_of_shards_changes_no_byte(self, tmp_path: Path) -> None:
        build(tmp_path / "a", self.config(), count=14)
        build(tmp_path / "b", self.config(), count=14, order=[3, 1, 0, 2])
        assert tree(tmp_path / "a") == tree(tmp_path / "b")

    def test_finishing_again_touches_nothing(self, tmp_path: Path) -> None:
        build(tmp_path / "c", self.config(), count=6)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*")}
        build(tmp_path / "c", self.config(), count=6)
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*") if path.is_file()} == {
            path: time for path, time in before.items() if path.is_file()
        }

    def test_growing_adds_shards_and_changes_none(self, tmp_path: Path) -> None:
        build(tmp_path / "c", self.config(), count=6)
        before = tree(tmp_path / "c")
        first = [record.id for record in teacher_cache.open(tmp_path / "c")]
        build(tmp_path / "c", self.config(), count=17)
        after = tree(tmp_path / "c")
        changed = {path for path, data in before.items() if after[path] != data}
        assert {path for path in changed if not path.endswith("zarr.json")} == {"manifest.json"}
        cache = teacher_cache.open(tmp_path / "c")
        assert cache.counts.tolist() == [4, 2, 4, 4, 3]
        assert cache.ids[:6] == first
        assert cache.ids == [make_record(i).id for i in range(17)]
        for i in range(17):
            assert_same_record(cache[i], make_record(i), self.config())
        assert teacher_cache.verify(tmp_path / "c") == []

    def test_unfinished_cache_says_so(self, tmp_path: Path) -> None:
        config = self.config()
        writer = create_cache(tmp_path / "c", make_recipe(config), SMALL_SCHEMA, config)
        write_shard(writer.handle, 1, [make_record(i) for i in range(3)])
        with _raises(ManifestError, "has not finished", "allow_incomplete"):
            teacher_cache.open(tmp_path / "c")
        cache = teacher_cache.open(tmp_path / "c", allow_incomplete=True)
        assert not cache.complete
        assert cache.ids == [make_record(i).id for i in range(3)]
        assert_same_record(cache[2], make_record(2), config)
        writer.finish(planned=9)
        assert not teacher_cache.open(tmp_path / "c").complete

    def test_another_recipe_is_refused_with_the_differences(self, tmp_path: Path) -> None:
        build(tmp_path / "c", self.config(), count=2)
        other = self.config(features="float32")
        with _raises(
            RecipeMismatch, "corpus.seed: not set here, 1 there", 'storage.features: "float16" here, "float32" there'
        ):
            create_cache(tmp_path / "c", make_recipe(other, seed=1), SMALL_SCHEMA, other)

    def test_records_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        config = self.config()
        writer = create_cache(tmp_path / "c", make_recipe(config), SMALL_SCHEMA, config)
        good = make_record(0)
        bad_values = good.saliency.copy()
        bad_values[0, 1] = np.nan
        cases: list[tuple[dict[str, Any], str]] = [
            ({"points": good.points[:-1]}, "points is [39, 3] float32; expected [40, 3] float32"),
            ({"offset": good.offset.astype(np.int64)}, "offset is [3, 2] int64; expected [3, 2] int32"),
            ({"saliency": bad_values}, "saliency has 1 values that are not finite"),
            ({"features": good.features * 1e6}, "beyond the range of float16"),
            ({"depth": None}, "depth is NoneType"),
            ({"label": -2}, "label is -2"),
            ({"id": ""}, "id has 0 bytes"),
        ]
        for change, said in cases:
            with _raises(SchemaError, "shard 0, record 0", said):
                write_shard(writer.handle, 0, [dataclasses.replace(good, **change)])
        with _raises(SchemaError, "twice"):
            write_shard(writer.handle, 0, [good, good])
        with _raises(SchemaError, "at most 4"):
            write_shard(writer.handle, 0, [make_record(i) for i in range(5)])
        assert writer.committed() == {}

    def test_depth_that_is_not_stored(self, tmp_path: Path) -> None:
        build(tmp_path / "c", self.config(depth="none"), count=2)
        with _raises(SchemaError, "this cache stores none", "cache.depth"):
            teacher_cache.open(tmp_path / "c").read([0], depth=True)

    def test_committed_shard_is_kept_and_other_shapes_refused(self, tmp_path: Path) -> None:
        config = self.config()
        writer = create_cache(tmp_path / "c", make_recipe(config), SMALL_SCHEMA, config)
        first = write_shard(writer.handle, 0, [make_record(0)])
        changed = dataclasses.replace(make_record(0), label=4)
        assert write_shard(writer.handle, 0, [changed]) == first
        assert write_shard(writer.handle, 0, [changed], replace=True).labels == (4,)
        with _raises(RecipeMismatch, "committed with other shapes"):
            write_shard(writer.handle, 0, [make_record(1)])

    def test_an_id_in_two_shards_is_refused(self, tmp_path: Path) -> None:
        config = self.config()
        writer = create_cache(tmp_path / "c", make_recipe(config), SMALL_SCHEMA, config)
        write_shard(writer.handle, 0, [make_record(0)])
        write_shard(writer.handle, 1, [make_record(0)])
        with _raises(CacheError, "in shards 0 and 1"):
            writer.finish(planned=2)

    def test_every_damaged_shard_file_is_found(self, tmp_path: Path) -> None:
        """Check that verify names a damaged file, and reading raises ShardDamaged or is unharmed.

        Damage is one flipped bit, a cut, an absence.
        """
        config = self.config()
        build(tmp_path / "c", config, count=3)
        rng = np.random.default_rng(1)
        for name in paths.shard_paths(config, 0):
            path = tmp_path / "c" / name
            sound = path.read_bytes()
            flipped = bytearray(sound)
            flipped[int(rng.integers(len(sound)))] ^= 1 << int(rng.integers(8))
            for data in (bytes(flipped), sound[: len(sound) // 2], sound[:-1], b"", None):
                path.unlink()
                if data is not None:
                    path.write_bytes(data)
                assert [problem.file for problem in teacher_cache.verify(tmp_path / "c")] == [name]
                error = self._read_all(tmp_path / "c", config)
                if error is not None:
                    assert (error.shard, error.file) == (0, name)
                    assert f"shard 0, {name}" in str(error)
                    assert "i2p cache repair" in str(error)
                path.write_bytes(sound)
        assert teacher_cache.verify(tmp_path / "c") == []

    def _read_all(self, path: Path, config: CacheConfig) -> ShardDamaged | None:
        """Read every record and check what is read; -> the error met, if any."""
        try:
            for i, record in enumerate(teacher_cache.open(path)):
                assert_same_record(record, make_record(i), config)
        except ShardDamaged as error:
            return error
        return None

    def test_lost_shard_files_are_built_again(self, tmp_path: Path) -> None:
        build(tmp_path / "c", self.config(), count=9)
        before = tree(tmp_path / "c")
        (tmp_path / "c" / paths.shard_paths(self.config(), 1)[0]).unlink()
        (tmp_path / "c" / paths.receipt_path(2)).write_bytes(b"{}")
        build(tmp_path / "c", self.config(), count=9)
        assert tree(tmp_path / "c") == before

    def test_strangers_and_swaps_are_found(self, tmp_path: Path) -> None:
        config = self.config()
        build(tmp_path / "c", config, count=8)
        a, b = (tmp_path / "c" / paths.shard_paths(config, shard)[0] for shard in (0, 1))
        (tmp_path / "c" / "stranger").write_text("?")
        first, second = a.read_bytes(), b.read_bytes()
        a.write_bytes(second)
        b.write_bytes(first)
        names = {problem.file for problem in teacher_cache.verify(tmp_path / "c")}
        assert names == {"stranger", *(paths.shard_paths(config, shard)[0] for shard in (0, 1))}

    def test_threads_share_a_cache(self, tmp_path: Path) -> None:
        build(tmp_path / "c", self.config(), count=20)
        cache = teacher_cache.open(tmp_path / "c")
        barrier = threading.Barrier(4)

        def read(seed: int) -> None:
            barrier.wait()
            for index in np.random.default_rng(seed).permutation(20).tolist():
                assert_same_record(cache[index], make_record(index), self.config())

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(4)))

    def test_forked_and_spawned_processes_read(self, tmp_path: Path) -> None:
        build(tmp_path / "c", self.config(), count=9)
        cache = teacher_cache.open(tmp_path / "c")
        expected = feature_sum(cache)  # starts the threads and opens the shards that a fork must not rely on
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(1, initializer=_inherit, initargs=(cache,)) as pool:
                assert pool.apply_async(feature_sum, ()).get(60) == expected
                assert pool.apply_async(feature_sum, (cache,)).get(60) == expected
        assert len(pickle.dumps(cache)) < 100_000


_inherited: list[teacher_cache.Cache] = []


def _inherit(cache: teacher_cache.Cache) -> None:
    _inherited.append(cache)


def feature_sum(cache: teacher_cache.Cache | None = None) -> float:
    """Read all of a cache and sum its features.

    Without an argument: the cache a forked worker inherited. A spawned process finds this function by its name.
    """
    cache = _inherited[0] if cache is None else cache
    return float(cache.read(range(len(cache))).features.sum(dtype=np.float64))


class _raises:
    """``pytest.raises`` for several pieces of one message, without importing pytest."""

    def __init__(self, error: type[Exception], *pieces: str) -> None:
        self.error = error
        self.pieces = pieces

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: object) -> bool:
        assert kind is not None, f"expected {self.error.__name__}"
        if not issubclass(kind, self.error):
            return False
        for piece in self.pieces:
            assert piece in str(value), f"expected {piece!r} in: {value}"
        return True
