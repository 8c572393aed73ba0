"""The stream: every record once however it is shared, exact resumption, damage by policy, errors in their place."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import ShardDamaged
from teacher_cache.format import paths
from teacher_cache.reading.order import epoch_order
from teacher_cache.reading.read_ahead import read_ahead
from teacher_cache.reading.stream import NothingSound, Stream, StreamBatch
from teacher_cache.testing import assert_same_record, build, make_record

FORMATS = ("zarr", "webdataset")


class Pretended:
    """A cache whose records are their own numbers; those in `bad` are damaged."""

    def __init__(self, counts: Any, bad: Any = ()) -> None:
        self.counts = np.array(counts, np.int64)
        self.bad = set(bad)
        self.asked: Counter[int] = Counter()

    def read(self, indices: Any, *, depth: bool = False) -> Any:
        self.asked.update(indices.tolist())
        for index in indices.tolist():
            if index in self.bad:
                raise ShardDamaged("pretended", shard=0, file="features/c.0.0.0.0", record=index)
        return indices.copy()


def shared(
    cache: Any, *, ranks: int = 1, workers: int = 1, readers: int = 0, start: int = 0, **options: Any
) -> list[np.ndarray]:
    """The batches as the ranks together see them, each rank reading through its workers in turns."""
    steps: dict[int, list[StreamBatch]] = {}
    for rank in range(ranks):
        turns = [
            list(
                teacher_cache.stream(
                    cache, rank=rank, ranks=ranks, worker=worker, workers=workers, readers=readers, start=start,
                    **options,
                )
            )
            for worker in range(workers)
        ]  # fmt: skip
        merged = [turns[i % workers][i // workers] for i in range(sum(len(turn) for turn in turns))]
        assert [batch.step for batch in merged] == list(range(start, start + len(merged)))
        for batch in merged:
            steps.setdefault(batch.step, []).append(batch)
    assert all(len(parts) == ranks for parts in steps.values())
    return [np.concatenate([part.records for part in steps[step]]) for step in sorted(steps)]


shapes_of_caches = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum)


@given(shapes_of_caches, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.sampled_from(["drop", "pad"]))
@settings(deadline=None, max_examples=150)
def test_no_record_is_lost_or_doubled_however_it_is_shared(
    counts: list[int], share: int, ranks: int, workers: int, remainder: str
) -> None:
    cache, size, batch = Pretended(counts), sum(counts), share * ranks
    if remainder == "drop" and size < batch:
        with pytest.raises(ValueError, match=f"expected at least {batch} records"):
            teacher_cache.stream(cache, batch_size=batch)
        return
    options: dict[str, Any] = {"batch_size": batch, "seed": 3, "epoch": 5, "window": 2, "remainder": remainder}
    batches = shared(cache, ranks=ranks, workers=workers, **options)
    order = epoch_order(counts, seed=3, epoch=5, window=2)
    seen = np.concatenate(batches)
    assert all(len(records) == batch for records in batches)
    np.testing.assert_array_equal(seen, order[np.arange(len(seen)) % size])
    if remainder == "drop":
        assert len(np.unique(seen)) == len(seen) == size - size % batch
        return
    assert len(seen) - size == -size % batch
    fresh = [
        record
        for rank in range(ranks)
        for part in teacher_cache.stream(cache, rank=rank, ranks=ranks, readers=0, **options)
        for record in part.records[~part.padded].tolist()
    ]
    assert sorted(fresh) == list(range(size))  # what is marked as padded is exactly what came before


@given(
    shapes_of_caches, st.integers(0, 30), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3),
    st.sampled_from(["drop", "pad"]),
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_a_state_goes_on_with_the_next_batch_under_any_sharing(
    counts: list[int], at: int, ranks: int, workers: int, readers: int, remainder: str
) -> None:
    cache, batch = Pretended(counts), 6
    if remainder == "drop" and sum(counts) < batch:
        return
    whole = list(
        teacher_cache.stream(cache, batch_size=batch, seed=1, epoch=2, window=3, readers=0, remainder=remainder)
    )
    stopped = whole[at % len(whole)]
    state = json.loads(json.dumps(stopped.state))
    rest = shared(cache, ranks=ranks, workers=workers, readers=readers, **state)
    expected = [later.records for later in whole[stopped.step + 1 :]]
    assert [records.tolist() for records in rest] == [records.tolist() for records in expected]


def test_a_state_of_another_order_is_refused() -> None:
    batch = next(teacher_cache.stream(Pretended([5, 5]), batch_size=2, epoch=1, readers=0))
    assert batch.state == {
        "seed": 0, "epoch": 1, "window": 32, "batch_size": 2, "remainder": "drop", "damaged": "raise", "depth": False,
        "order_crc32c": batch.state["order_crc32c"], "start": 1,
    }  # fmt: skip
    teacher_cache.stream(Pretended([5, 5]), **batch.state)
    with pytest.raises(ValueError, match=r"(?s)in another order .* after a cache has grown, begin a new epoch"):
        teacher_cache.stream(Pretended([5, 5, 1]), **batch.state)
    with pytest.raises(ValueError, match="in another order"):
        teacher_cache.stream(Pretended([5, 5]), **(batch.state | {"epoch": 2}))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def seen(**options: Any) -> list[int]:
        return np.concatenate(shared(Pretended([20] * 5), batch_size=10, **options)).tolist()

    assert seen(epoch=1) == seen(epoch=1)
    assert len({tuple(order) for order in (seen(), seen(epoch=1), seen(seed=1), seen(window=1))}) == 4


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_an_order_of_ones_own(readers: int) -> None:
    order = np.array([4, 4, 0, 9, 2])
    batches = list(Stream(Pretended([10]), order, batch_size=2, readers=readers, remainder="pad"))
    assert [batch.records.tolist() for batch in batches] == [[4, 4], [0, 9], [2, 4]]
    assert [batch.padded.tolist() for batch in batches] == [[False, False], [False, False], [False, True]]


@pytest.mark.parametrize("readers", [0, 2])
def test_raise_comes_at_its_batch(readers: int) -> None:
    order = epoch_order([12], seed=0, epoch=0)
    batches = teacher_cache.stream(Pretended([12], bad=[order[7]]), batch_size=3, readers=readers)
    assert [next(batches).step for _ in range(2)] == [0, 1]
    with pytest.raises(ShardDamaged, match="pretended"):
        next(batches)
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


@given(st.sets(st.integers(0, 19), max_size=19), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(0, 2))
@settings(deadline=None, max_examples=60)
def test_skip_takes_the_next_sound_record_whoever_reads(bad: set[int], ranks: int, workers: int, readers: int) -> None:
    counts, order = [8, 8, 4], epoch_order([8, 8, 4], seed=0, epoch=0, window=32)
    expected = [next(int(r) for r in np.roll(order, -place) if int(r) not in bad) for place in range(20)]
    seen = shared(Pretended(counts, bad), batch_size=4, ranks=ranks, workers=workers, readers=readers, damaged="skip")
    assert np.concatenate(seen).tolist() == expected
    batches = teacher_cache.stream(Pretended(counts, bad), batch_size=4, readers=readers, damaged="skip")
    marked = np.concatenate([batch.stand_ins for batch in batches])
    assert batches.skipped == marked.sum() == len(bad)
    assert marked.tolist() == [int(record) in bad for record in order]


def test_damage_is_logged_once_and_not_tried_again_in_later_epochs(caplog: pytest.LogCaptureFixture) -> None:
    cache, known = Pretended([40], bad=[3, 30]), set[int]()
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            batches = teacher_cache.stream(
                cache, batch_size=4, epoch=epoch, readers=3, damaged="skip", known_damage=known
            )
            assert sum(int(batch.stand_ins.sum()) for batch in batches) == 2
            if epoch == 0:
                cache.asked.clear()
    assert known == {3, 30}
    assert sorted(record.args[0] for record in caplog.records) == [3, 30]  # type: ignore[index,misc]
    assert cache.asked[3] == cache.asked[30] == 0


def test_nothing_but_damage_is_an_error() -> None:
    batches = teacher_cache.stream(Pretended([6], bad=range(6)), batch_size=2, damaged="skip", readers=2)
    with pytest.raises(NothingSound, match="every record of the cache is damaged"):
        next(batches)


def test_apply_runs_in_the_readers_and_fails_in_its_place() -> None:
    names = set()

    def apply(batch: StreamBatch) -> int:
        names.add(threading.current_thread().name.rpartition("_")[0])
        if batch.step == 3:
            raise KeyError("step 3")
        return batch.step * 10

    batches = teacher_cache.stream(Pretended([20]), batch_size=2, readers=2, apply=apply)
    assert [next(batches) for _ in range(3)] == [0, 10, 20]
    with pytest.raises(KeyError, match="step 3"):
        next(batches)
    assert names == {"read-ahead"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size = 0 is not a multiple of ranks = 1"),
        ({"batch_size": 5, "ranks": 2}, "batch_size = 5 is not a multiple of ranks = 2"),
        ({"batch_size": 4, "rank": 2, "ranks": 2}, r"rank = 2 of ranks = 2; expected 0\.\.ranks - 1"),
        ({"batch_size": 4, "worker": -1}, "worker = -1 of workers = 1"),
        ({"batch_size": 4, "start": 6}, r"start = 6; this epoch has batches 0\.\.4"),
        ({"batch_size": 4, "remainder": "keep"}, "remainder = 'keep'.*expected drop or pad"),
        ({"batch_size": 4, "damaged": "ignore"}, "damaged = 'ignore'; expected .*raise or skip"),
        ({"batch_size": 4, "prefetch": 0}, "prefetch = 0; expected"),
        ({"batch_size": 4, "window": 0}, "window >= 1"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        teacher_cache.stream(Pretended([20]), **options)
    assert list(teacher_cache.stream(Pretended([20]), batch_size=4, start=5)) == []


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("readers", [0, 3])
def test_batches_hold_the_records_of_the_cache(tmp_path: Path, format: str, readers: int) -> None:
    config = CacheConfig(format=format, shapes_per_shard=4)  # type: ignore[arg-type]
    build(tmp_path / "c", config, count=26, bad=[7])
    cache = teacher_cache.open(tmp_path / "c")
    with teacher_cache.stream(cache, batch_size=6, readers=readers, depth=True) as batches:
        assert len(batches) == batches.steps == 4
        for batch in batches:
            assert len(batch) == 6
            for row, record in enumerate(batch.records.tolist()):
                assert_same_record(batch.content.record(row), make_record(record + (record >= 7)), config)
        assert len(batches) == 0
    assert next(teacher_cache.stream(cache, batch_size=6)).content.depth is None


@pytest.mark.parametrize("format", FORMATS)
def test_a_lost_shard_is_skipped_and_counted(tmp_path: Path, format: str) -> None:
    config = CacheConfig(format=format, shapes_per_shard=4)  # type: ignore[arg-type]
    build(tmp_path / "c", config, count=20)
    (tmp_path / "c" / paths.shard_paths(config, 2)[0]).unlink()
    cache = teacher_cache.open(tmp_path / "c")
    batches = teacher_cache.stream(cache, batch_size=5, damaged="skip", readers=2)
    seen = [record for batch in batches for record in batch.records.tolist()]
    assert batches.skipped == 4
    assert set(seen) == set(range(20)) - {8, 9, 10, 11}
    with pytest.raises(ShardDamaged, match="shard 2"):
        list(teacher_cache.stream(cache, batch_size=5))


EPOCH = """
import gc, os, sys, tracemalloc
import teacher_cache
path, leak = sys.argv[1], sys.argv[2] == "leak"
def descriptors(): return len(os.listdir("/proc/self/fd"))
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = descriptors()
cache, kept, memory, files, size = teacher_cache.open(path), [], [], [], []
tracemalloc.start()
with teacher_cache.stream(cache, batch_size=16, window=8, readers=2) as batches:
    for batch in batches:
        kept += [batch] if leak else []
        memory.append(tracemalloc.get_traced_memory()[0]); files.append(descriptors()); size.append(resident())
settled = len(files) * 2 // 5
del cache, batches, batch
gc.collect()
print(max(memory[settled:]) - max(memory[:settled]), max(files[settled:]) - max(files[:settled]),
      size[-1] - max(size[:settled]), descriptors() - before)
"""


@pytest.mark.parametrize(("format", "count"), [("zarr", 3200), ("webdataset", 1600)])
def test_an_epoch_needs_no_more_memory_or_files_towards_its_end(tmp_path: Path, format: str, count: int) -> None:
    """200 shards of records of 3 kB; what is open at a time is reached after a quarter of them.

    Whoever keeps the batches needs 0.9 MB (webdataset) and 1.8 MB (zarr) more; less than 40 kB was seen.
    """
    config = CacheConfig(format=format, shapes_per_shard=count // 200, depth="none")  # type: ignore[arg-type]
    build(tmp_path / "c", config, count=count)

    def measured(leak: str) -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", EPOCH, str(tmp_path / "c"), leak],
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(number) for number in done.stdout.split()]

    memory, files, resident, left = measured("none")
    print(format, memory, files, resident, left)
    assert memory < 300_000
    assert files <= 4
    assert resident < 4_000_000
    assert left == 0
    assert measured("leak")[0] > 600_000  # or the bounds above would say nothing


def test_streaming_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, teacher_cache; list(teacher_cache.stream(teacher_cache.open(sys.argv[1]), batch_size=2));"
        "sys.exit({'torch', 'zarr', 'webdataset', 'dask'} & set(sys.modules) or 0)"
    )
    build(tmp_path / "c", CacheConfig(shapes_per_shard=4), count=5)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], cwd=Path(__file__).parents[2], check=True)


def test_read_ahead_keeps_order_bounds_what_is_ahead_and_raises_in_its_place() -> None:
    running: list[int] = []

    def work(item: int) -> int:
        running.append(item)
        time.sleep(0.002 * (item % 3))
        if item == 7:
            raise OSError("record 7")
        return item * 2

    found = []

    def consume() -> None:
        for value in read_ahead(work, range(100), threads=3, ahead=4):
            found.append(value)
            time.sleep(0.005)
            assert len(running) <= len(found) + 4

    with pytest.raises(OSError, match="record 7"):
        consume()
    assert found == [0, 2, 4, 6, 8, 10, 12]
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_closing_ends_the_threads() -> None:
    with teacher_cache.stream(Pretended([1000]), batch_size=2, readers=2, prefetch=3) as batches:
        next(batches)
        assert [t for t in threading.enumerate() if t.name.startswith("read-ahead")]
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]
    assert list(batches) == []
