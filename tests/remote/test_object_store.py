"""A cache in a bucket is the same cache: the same bytes, reads, errors and repairs as in a folder."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, ManifestError, RecipeMismatch, SchemaError, ShardDamaged, StorageError
from teacher_cache.format import paths
from teacher_cache.storage.remote import RemoteStorage
from teacher_cache.testing import SMALL_SCHEMA, assert_same_record, build, make_recipe, make_record, tree
from teacher_cache.writer import create_cache, write_shard
from tests.support.limits import HANG
from tests.support.servers import S3

COUNT = 14
FORMATS = ("zarr", "webdataset")


def config_of(format: str, **settings: object) -> CacheConfig:
    return CacheConfig(**({"format": format, "shapes_per_shard": 4} | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("features", ["float16", "int8"])
def test_the_same_bytes_as_in_a_folder(tmp_path: Path, s3: S3, format: str, features: str) -> None:
    config, url = config_of(format, features=features), s3.folder()
    build(tmp_path / "c", config, count=COUNT, bad=[5])
    build(url, config, count=COUNT, bad=[5], order=[3, 0, 2, 1])
    assert s3.tree(url) == tree(tmp_path / "c")
    assert teacher_cache.verify(url) == []


@pytest.mark.parametrize("format", FORMATS)
def test_reads_like_a_folder(s3: S3, format: str) -> None:
    config, url = config_of(format), s3.folder()
    build(url, config, count=COUNT)
    cache = teacher_cache.open(url + "/")
    assert (cache.path, len(cache), cache.info().path) == (url, COUNT, url)
    assert cache.ids == [make_record(i).id for i in range(COUNT)]
    batch = cache.read([13, 0, 6, 6], depth=True)
    for row, index in enumerate((13, 0, 6, 6)):
        assert_same_record(batch.record(row), make_record(index), config)
    for copy in (pickle.loads(pickle.dumps(cache)), cache):  # noqa: S301 - our own bytes
        assert_same_record(copy[7], make_record(7), config)


def test_a_forked_process_reads(s3: S3) -> None:
    url = s3.folder()
    build(url, config_of("zarr"), count=COUNT)
    cache = teacher_cache.open(url)
    expected = cache[3].saliency
    context = multiprocessing.get_context("fork")
    box = context.SimpleQueue()
    process = context.Process(target=lambda: box.put(cache[3].saliency))
    process.start()
    process.join(HANG)
    assert process.exitcode == 0
    np.testing.assert_array_equal(box.get(), expected)


def test_no_temporary_file_is_left(tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.folder()
    build(url, config_of("zarr"), count=COUNT)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert len(list(teacher_cache.open(url))) == COUNT
    s3.delete(f"{url}/{paths.shard_paths(config_of('zarr'), 1)[0]}")
    with pytest.raises(ShardDamaged, match="expected a file here, found none"):
        list(teacher_cache.open(url))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_growing_and_finishing_again_touch_nothing_old(s3: S3, format: str) -> None:
    config, url = config_of(format), s3.folder()
    build(url, config, count=8)
    before = s3.objects(url)
    build(url, config, count=8)
    assert s3.objects(url) == before, "a finished build sends nothing"
    time.sleep(1.1)  # the server's times have whole seconds
    build(url, config, count=COUNT)
    after = s3.objects(url)
    shards = [path for path in before if path.startswith(("receipts/", "shards/")) or "/c." in path]
    assert len(shards) >= 4
    assert {path: after[path] for path in shards} == {path: before[path] for path in shards}
    assert len(teacher_cache.open(url)) == COUNT


def test_another_recipe_and_other_files_are_refused(s3: S3) -> None:
    url = s3.folder()
    build(url, config_of("zarr"), count=4)
    other = config_of("zarr", features="float32")
    with pytest.raises(RecipeMismatch, match=r"storage\.features"):
        create_cache(url, make_recipe(other), SMALL_SCHEMA, other)
    strangers = s3.folder()
    s3.put(f"{strangers}/thesis.pdf", b"?")
    with pytest.raises(CacheError, match="expected an empty folder or a cache"):
        create_cache(strangers, make_recipe(other), SMALL_SCHEMA, other)


def build_slowly(url: str, format: str, environment: dict[str, str], said: Connection) -> None:
    """A build that says when each upload is done, and lingers there, to be killed."""
    os.environ.update(environment)  # the server that forks may be older than the fixture
    put = RemoteStorage._put

    def slow(self: RemoteStorage, path: str, data: bytes) -> None:
        put(self, path, data)
        said.send(path)
        time.sleep(0.01)

    RemoteStorage._put = slow  # type: ignore[method-assign]
    build(url, config_of(format), count=COUNT)


@pytest.mark.parametrize("format", FORMATS)
def test_killed_after_any_upload(tmp_path: Path, s3: S3, format: str) -> None:
    build(tmp_path / "c", config_of(format), count=COUNT)
    expected = tree(tmp_path / "c")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["teacher_cache.testing", "s3fs"])
    for uploads in (1, 2, 4, 7, len(expected) - 1):
        url = s3.folder()
        heard, said = context.Pipe(duplex=False)
        process = context.Process(target=build_slowly, args=(url, format, s3.environment, said))
        process.start()
        for _ in range(uploads):
            assert heard.poll(60), "the builder has stopped by itself"
            heard.recv()
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join(HANG)
        assert process.exitcode == -signal.SIGKILL
        assert paths.MANIFEST not in s3.objects(url)
        for record in teacher_cache.open(url, allow_incomplete=True):
            assert_same_record(record, make_record(int(record.id[-5:])), config_of(format))
        build(url, config_of(format), count=COUNT)
        assert s3.tree(url) == expected, f"killed after {uploads} uploads"


def test_two_builders_of_the_same_bytes(tmp_path: Path, s3: S3) -> None:
    url = s3.folder()
    faults: list[BaseException] = []

    def run() -> None:
        try:
            build(url, config_of("zarr"), count=COUNT)
        except BaseException as error:
            faults.append(error)

    pair = [threading.Thread(target=run) for _ in range(2)]
    for thread in pair:
        thread.start()
    for thread in pair:
        thread.join()
    assert faults == []
    build(tmp_path / "c", config_of("zarr"), count=COUNT)
    assert s3.tree(url) == tree(tmp_path / "c")


@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_found_withdrawn_and_built_again(s3: S3, format: str) -> None:
    config, url = config_of(format), s3.folder()
    build(url, config, count=COUNT)
    sound = s3.tree(url)
    rng = np.random.default_rng(2)
    names = [paths.shard_paths(config, 0)[0], paths.shard_paths(config, 2)[-1], paths.receipt_path(1)]
    for name in names[:2]:
        data = bytearray(sound[name])
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        s3.put(f"{url}/{name}", bytes(data))
    s3.delete(f"{url}/{names[2]}")
    s3.put(f"{url}/stranger", b"?")
    problems = teacher_cache.verify(url)
    assert {problem.file for problem in problems} == {*names, "stranger"}
    with pytest.raises(ShardDamaged, match="i2p cache repair"):
        teacher_cache.open(url).ids  # noqa: B018
    assert teacher_cache.withdraw(url, problems) == [0, 1, 2]
    with pytest.raises(ManifestError, match="has not finished"):
        teacher_cache.open(url)
    s3.delete(f"{url}/stranger")
    build(url, config, count=COUNT)
    assert s3.tree(url) == sound
    assert teacher_cache.verify(url) == []


def test_a_failed_upload_commits_nothing(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    config, url = config_of("zarr"), s3.folder()
    writer = create_cache(url, make_recipe(config), SMALL_SCHEMA, config)
    put = RemoteStorage._put

    def refused(self: RemoteStorage, path: str, data: bytes) -> None:
        if path.startswith("saliency/"):
            raise StorageError(f"{path}: no")
        put(self, path, data)

    monkeypatch.setattr(RemoteStorage, "_put", refused)
    with pytest.raises(StorageError, match="saliency"):
        write_shard(writer.handle, 0, [make_record(0)])
    monkeypatch.undo()
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    assert writer.committed() == {}
    assert write_shard(writer.handle, 0, [make_record(0)]).records == 1


def test_logs_are_objects_of_their_own(s3: S3) -> None:
    config, url = config_of("zarr"), s3.folder()
    for event in ("one", "two"):
        writer = create_cache(url, make_recipe(config), SMALL_SCHEMA, config)
        write_shard(writer.handle, 0, [make_record(0)])
        writer.log({"event": event})
        writer.finish()
    logs = [path for path in s3.objects(url) if path.startswith("logs/")]
    assert len(logs) == 2
    assert {json.loads(s3.get(f"{url}/{path}"))["event"] for path in logs} == {"one", "two"}
    assert teacher_cache.verify(url) == []


def test_caches_of_a_bucket_are_listed(s3: S3) -> None:
    root = s3.folder()
    build(f"{root}/a", config_of("zarr"), count=3)
    build(f"{root}/b", config_of("webdataset"), count=5)
    s3.put(f"{root}/other/file", b"?")
    found, faults = teacher_cache.list_caches(root)
    assert [(info.path, info.records) for info in found] == [(f"{root}/a", 3), (f"{root}/b", 5)]
    assert faults == []


def test_what_a_store_refuses_is_said_in_words(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("zarr")
    with pytest.raises(ManifestError, match=r"s3://nowhere/c: expected a cache"):
        teacher_cache.open("s3://nowhere/c")
    with pytest.raises(StorageError, match="Create the bucket"):
        create_cache("s3://nowhere/c", make_recipe(config), SMALL_SCHEMA, config)
    with pytest.raises(StorageError, match="no installed package supports this protocol"):
        teacher_cache.open("gopher://hole/c")
    url = s3.folder()
    build(url, config_of("zarr", depth="none"), count=2)
    cache = teacher_cache.open(url)
    with pytest.raises(SchemaError, match="stores none"):
        cache.read([0], depth=True)


def test_a_store_that_is_gone(s3: S3) -> None:
    """In a process of its own: clients remember an endpoint for as long as they live."""
    program = "import teacher_cache; teacher_cache.open('s3://shapes/c')"
    quick = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | quick, capture_output=True, text=True, timeout=HANG
    )
    assert "StorageError: s3://shapes/c/manifest.json: the request to the store failed" in done.stderr
    assert "docs/object-stores.md" in done.stderr


@pytest.mark.parametrize("format", FORMATS)
def test_what_comes_next_is_fetched_ahead(s3: S3, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """Prepared shards are not fetched a second time, and the next window is under way before it begins."""
    url = s3.folder()
    build(url, config_of(format), count=40)
    fetched: list[tuple[str, str]] = []
    real = RemoteStorage.fetch

    def counted(self: RemoteStorage, path: str, *more: Any) -> Any:
        fetched.append((threading.current_thread().name.rpartition("_")[0], path))
        return real(self, path, *more)

    monkeypatch.setattr(RemoteStorage, "fetch", counted)
    cache = teacher_cache.open(url)
    with teacher_cache.stream(cache, batch_size=4, window=2, readers=2) as batches:
        ids = [id for batch in batches for id in batch.content.ids]
    assert sorted(ids) == [make_record(i).id for i in range(40)]
    files = [path for _, path in fetched]
    assert len(files) == len(set(files)), "nothing is fetched twice"
    ahead = [path for thread, path in fetched if thread == "teacher-cache-fetch"]
    assert len(ahead) > len(files) // 2


def test_a_shard_that_cannot_be_prepared_raises_where_it_is_read(s3: S3) -> None:
    config, url = config_of("zarr"), s3.folder()
    build(url, config, count=12)
    s3.delete(f"{url}/{paths.shard_paths(config, 1)[1]}")
    cache = teacher_cache.open(url)
    cache.prepare(range(12))
    assert cache.read(range(4)).ids == [make_record(i).id for i in range(4)]
    with pytest.raises(ShardDamaged, match="expected a file here, found none"):
        cache.read([4])
    assert cache[11].id == make_record(11).id


def test_memory_and_file_urls(tmp_path: Path) -> None:
    build("memory://caches/c", config_of("zarr"), count=6)
    build(tmp_path / "c", config_of("zarr"), count=6)
    assert teacher_cache.verify("memory://caches/c") == []
    remote, local = teacher_cache.open("memory://caches/c"), teacher_cache.open(f"file://{tmp_path}/c")
    assert local.path == tmp_path / "c"
    for a, b in zip(remote, local, strict=True):
        np.testing.assert_array_equal(a.features, b.features)
