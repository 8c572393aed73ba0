"""A finished cache behind a plain web server: read and verified, never written."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import ManifestError, ShardDamaged, StorageError
from teacher_cache.format import paths
from teacher_cache.testing import SMALL_SCHEMA, assert_same_record, build, make_recipe, make_record
from teacher_cache.writer import create_cache
from tests.support.servers import http_server

COUNT = 10


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with http_server(tmp_path) as url:
        yield url


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_reads_and_verifies(tmp_path: Path, address: str, format: str) -> None:
    config = CacheConfig(format=format, shapes_per_shard=4)  # type: ignore[arg-type]
    build(tmp_path / "c", config, count=COUNT)
    cache = teacher_cache.open(f"{address}/c")
    assert cache.ids == [make_record(i).id for i in range(COUNT)]
    for i, record in enumerate(cache):
        assert_same_record(record, make_record(i), config)
    assert teacher_cache.verify(f"{address}/c") == []
    path = tmp_path / "c" / paths.shard_paths(config, 1)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))
    assert [problem.file for problem in teacher_cache.verify(f"{address}/c")] == [paths.shard_paths(config, 1)[0]]
    path.unlink()
    with pytest.raises(ShardDamaged, match="expected a file here, found none"):
        list(teacher_cache.open(f"{address}/c"))


def test_what_a_web_server_cannot_do(tmp_path: Path, address: str) -> None:
    config = CacheConfig(shapes_per_shard=4)
    with pytest.raises(ManifestError, match="expected a cache"):
        teacher_cache.open(f"{address}/nothing")
    with pytest.raises(StorageError, match="expected a writable store"):
        create_cache(f"{address}/new", make_recipe(config), SMALL_SCHEMA, config)
    build(tmp_path / "c", config, count=COUNT)
    (tmp_path / "c" / paths.MANIFEST).unlink()
    with pytest.raises(ManifestError, match="has not finished"):
        teacher_cache.open(f"{address}/c")
    with pytest.raises(StorageError, match="expected a store that lists its files"):
        teacher_cache.open(f"{address}/c", allow_incomplete=True)
    with pytest.raises(StorageError, match="expected a store that lists its files"):
        teacher_cache.list_caches(address)


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads http through curl")
def test_plain_webdataset_streams_the_shards(tmp_path: Path, address: str) -> None:
    config = CacheConfig(format="webdataset", shapes_per_shard=4, compression="none")
    build(tmp_path / "c", config, count=COUNT)
    urls = f"{address}/c/shards/{{000000..000002}}.tar"
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in samples] == [make_record(i).id for i in range(COUNT)]
    np.testing.assert_array_equal(samples[7]["points.npy"], make_record(7).points)
