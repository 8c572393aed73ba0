"""``simplecache::`` and its kin in front of a URL: shard files are fetched once, and nothing stale is ever read."""

from collections import Counter
from pathlib import Path

import fsspec
import pytest
from fsspec.config import conf
from fsspec.implementations.memory import MemoryFileSystem

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.testing import assert_same_record, build, make_record

KEEPING = ["simplecache", "filecache", "blockcache"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Files of shards that are opened in the store, whichever way."""
    counts: Counter[str] = Counter()

    def count(name: str) -> None:
        real = getattr(MemoryFileSystem, name)

        def counted(self, path, *args, **more):
            if ".json" not in str(path):
                counts[str(path)] += 1
            return real(self, path, *args, **more)

        monkeypatch.setattr(MemoryFileSystem, name, counted)

    for name in ("_open", "cat_file", "get_file"):
        count(name)
    return counts


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in KEEPING:
        monkeypatch.setitem(conf, name, {"cache_storage": str(tmp_path / "kept")})
    return tmp_path / "kept"


def read_all(url: str, count: int) -> None:
    cache = teacher_cache.open(url)
    assert len(cache) == count
    for i, record in enumerate(cache):
        assert_same_record(record, make_record(i), cache._manifest.description.storage)


@pytest.mark.parametrize("keeping", [*KEEPING, "simplecache::filecache"])
@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_second_pass_fetches_no_shard(
    tmp_path: Path, opened: Counter[str], place: Path, format: str, keeping: str
) -> None:
    url = f"memory://{tmp_path.name}-{format}/c"
    config = CacheConfig(format=format, shapes_per_shard=4, depth="none")  # type: ignore[arg-type]
    build(url, config, count=6)
    opened.clear()
    read_all(f"{keeping}::{url}", 6)
    assert set(opened.values()) == {1}
    first = dict(opened)
    read_all(f"{keeping}::{url}", 6)
    assert dict(opened) == first
    assert not [path for path in place.iterdir() if len(path.name) != 64]


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_cache_that_grew_or_was_rebuilt_is_seen(tmp_path: Path, place: Path, format: str) -> None:
    url = f"memory://{tmp_path.name}-{format}/c"
    config = CacheConfig(format=format, shapes_per_shard=4)  # type: ignore[arg-type]
    build(url, config, count=8)
    read_all(f"simplecache::{url}", 8)
    build(url, config, count=12)
    read_all(f"simplecache::{url}", 12)
    assert teacher_cache.verify(f"simplecache::{url}") == []
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}-{format}", recursive=True)
    other = CacheConfig(format=format, shapes_per_shard=4, compression="none")  # type: ignore[arg-type]
    build(url, other, count=8)  # other bytes at the same addresses
    read_all(f"simplecache::{url}", 8)
    assert teacher_cache.verify(f"simplecache::{url}") == []


def test_a_damaged_copy_is_fetched_again_and_damage_in_the_store_is_not_kept(
    tmp_path: Path, opened: Counter[str], place: Path
) -> None:
    url = f"memory://{tmp_path.name}/c"
    build(url, CacheConfig(format="webdataset", shapes_per_shard=4), count=4)
    read_all(f"simplecache::{url}", 4)
    (copy,) = place.iterdir()
    whole = copy.read_bytes()
    for damaged in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], b""):
        copy.write_bytes(damaged)
        opened.clear()
        read_all(f"simplecache::{url}", 4)
        assert sum(opened.values()) == 1
        assert copy.read_bytes() == whole
    copy.unlink()
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/{tmp_path.name}/c/shards/000000.tar", whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    with pytest.raises(teacher_cache.ShardDamaged):
        list(teacher_cache.open(f"simplecache::{url}"))
    assert list(place.iterdir()) == []
    assert len(teacher_cache.verify(f"simplecache::{url}")) == 1


def test_a_cache_is_built_through_the_chain_in_the_store_itself(tmp_path: Path, place: Path) -> None:
    url = f"memory://{tmp_path.name}/c"
    build(f"simplecache::{url}", CacheConfig(shapes_per_shard=4), count=6)
    read_all(url, 6)


def test_without_a_configured_folder_copies_go_with_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Counter[str]
) -> None:
    monkeypatch.setitem(conf, "simplecache", {})
    url = f"memory://{tmp_path.name}/c"
    build(url, CacheConfig(format="webdataset", shapes_per_shard=4), count=6)
    opened.clear()
    for _ in range(2):
        read_all(f"simplecache::{url}", 6)
    assert set(opened.values()) == {1}
