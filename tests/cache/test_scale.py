"""What a cache of many shapes costs to open and to verify: memory by number of shards, and time within wide bounds."""

import hashlib
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError
from teacher_cache.format import paths
from teacher_cache.format.manifest import Description, Manifest
from teacher_cache.storage.shard_files import ShardEntry
from teacher_cache.testing import SMALL_SCHEMA, build, make_recipe, make_record
from teacher_cache.writer import create_cache, write_shard


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that Python and NumPy hold at most while it works; the least of three times.

    Paths intern their names, and the interpreter's table of these takes a megabyte when it is made anew now and then.
    """
    peaks = []
    for _ in range(3):
        tracemalloc.start()
        try:
            work()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_memory_of_opening_and_verifying_by_number_of_shards(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard more costs a manifest's line and the names of its files, not the checks of these.

    Measured: 1.4 kB to open; to verify 2.7 kB of zarr's eleven files and 1.4 kB of webdataset's two. With all checks in
    hand at once it was 22 kB and 2.6 kB.
    """
    monkeypatch.setattr("teacher_cache.storage.local._BLOCK", 1 << 12)  # a megabyte more or less would hide it all
    config = CacheConfig(format=format, shapes_per_shard=1)  # type: ignore[arg-type]
    few, many = 40, 240
    peaks = []
    for count in (few, many):
        path = tmp_path / str(count)
        build(path, config, count=count)
        assert teacher_cache.verify(path) == []  # and what is imported on first use is there
        verifying = partial(teacher_cache.verify, path, threads=1)
        peaks.append((peak_of(partial(teacher_cache.open, path)), peak_of(verifying)))
    to_open, to_verify = ((b - a) / (many - few) for a, b in zip(*peaks, strict=True))
    print(format, to_open, to_verify)
    assert to_open < 2000
    assert to_verify < (4500 if format == "zarr" else 2200)


def test_finishing_needs_a_few_bytes_a_shape(tmp_path: Path) -> None:
    """10 bytes were measured; with a dictionary of all ids it was 104."""
    config, peaks = CacheConfig(shapes_per_shard=512, depth="none"), []
    for count in (1024, 6144):
        writer = build(tmp_path / str(count), config, count=count)
        peaks.append(peak_of(partial(writer.finish, planned=count)))
    per_shape = (peaks[1] - peaks[0]) / (6144 - 1024)
    print(per_shape)
    assert per_shape < 60


def test_ids_that_share_a_digest_are_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_cache.writer._digest", lambda id: bytes(8))
    config = CacheConfig(shapes_per_shard=2, depth="none")
    writer = build(tmp_path / "sound", config, count=7)
    assert teacher_cache.open(writer.directory).complete
    writer = create_cache(tmp_path / "doubled", make_recipe(config), SMALL_SCHEMA, config)
    for shard, numbers in enumerate(((0, 1), (2, 3), (4, 1))):
        write_shard(writer.handle, shard, [make_record(number) for number in numbers])
    with pytest.raises(CacheError, match=r"found 'made-up/00001' in shards 0 and 2"):
        writer.finish()


def test_progress_of_verify_counts_every_file_once(tmp_path: Path) -> None:
    """Of a shard whose receipt is lost, nothing can be checked: its files are done with."""
    config = CacheConfig(shapes_per_shard=2, depth="none")
    build(tmp_path, config, count=9)
    (tmp_path / paths.receipt_path(3)).unlink()
    seen: list[tuple[int, int]] = []
    problems = teacher_cache.verify(tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert [(problem.shard, problem.file) for problem in problems] == [(3, "receipts/000003.json")]
    files = len(paths.shard_paths(config, 0))
    assert seen[-1] == (5 * files, 5 * files)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) == 4 * files + 1


def test_a_cache_of_many_shapes_opens_at_once(tmp_path: Path) -> None:
    """100,000 shapes in shards of 64: 4 ms were measured, and 1.3 s for ten million. Nothing is done shape by shape.

    Counted in calls, of Python and of C: 36 a shard were measured. Time would be the machine's.
    """
    shards, size = 1563, 64
    description = Description(recipe=make_recipe(CacheConfig()), schema=SMALL_SCHEMA, label_names=())
    manifest = Manifest(
        description=description,
        planned=shards * size,
        shards=tuple(
            ShardEntry(shard=i, records=size, quarantined=0, bytes=1, receipt=hashlib.sha256(b"%d" % i).hexdigest())
            for i in range(shards)
        ),
        quarantined=(),
    )
    (tmp_path / paths.MANIFEST).write_bytes(manifest.encoded)
    assert 130 * shards < len(manifest.encoded) < 150 * shards  # docs/scaling.md: 142 bytes a shard
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        cache = teacher_cache.open(tmp_path)
        order = teacher_cache.epoch_order(cache.counts, seed=0, epoch=0)
    finally:
        sys.setprofile(None)
    assert calls < shards * size
    assert len(cache) == order.size == shards * size
    assert np.array_equal(np.unique(order), np.arange(order.size))


@pytest.mark.parametrize(("format", "files", "read"), [("zarr", 10, 9), ("webdataset", 1, 1)])
def test_requests_to_a_store_are_those_of_the_plan(
    format: str, files: int, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/scaling.md: put S (F + 1), get 3 S; verify S (1 + F); an epoch S G. Of two sizes, so constants cancel."""
    from fsspec.implementations.memory import MemoryFileSystem

    asked: Counter[str] = Counter()

    def counted(name: str, kind: str) -> None:
        call = getattr(MemoryFileSystem, name)

        def count(self: Any, *args: Any, **options: Any) -> Any:
            writes = "wb" in (*args[1:], options.get("mode"))  # `pipe_file` opens as well
            asked[kind] += not writes
            return call(self, *args, **options)

        monkeypatch.setattr(MemoryFileSystem, name, count)

    for name, kind in (
        ("_open", "get"),
        ("get_file", "get"),
        ("size", "get"),
        ("pipe_file", "put"),
        ("find", "list"),
    ):
        counted(name, kind)

    def requests(work: Callable[[], object]) -> Counter[str]:
        asked.clear()
        work()
        return Counter(asked)

    config = CacheConfig(format=format, shapes_per_shard=2, features="int8", depth="none")  # type: ignore[arg-type]
    found = []
    for shards in (5, 15):
        url = f"memory://requests-{format}-{shards}/cache"
        built = requests(partial(build, url, config, count=2 * shards))
        verified = requests(partial(teacher_cache.verify, url))
        cache = teacher_cache.open(url)
        epoch = requests(lambda cache=cache: list(teacher_cache.stream(cache, batch_size=2)))
        found.append((built["put"], built["get"], verified["get"], epoch["get"], built["list"], verified["list"]))
        MemoryFileSystem().rm(f"/requests-{format}-{shards}", recursive=True)
    more = [(b - a) / 10 for a, b in zip(*found, strict=True)]
    assert more == [files + 1, 3, 1 + files, read, 0, 0]
