"""Converting and merging into, out of and within a bucket gives the bytes that folders give."""

from pathlib import Path

import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import StorageError
from teacher_cache.testing import build, tree
from tests.support.commands import run
from tests.support.servers import S3, http_server

COUNT = 10


def config_of(format: str) -> CacheConfig:
    return CacheConfig(format=format, shapes_per_shard=4, features="int8", steps=24)  # type: ignore[arg-type]


def test_from_a_folder_to_a_bucket_and_back(tmp_path: Path, s3: S3) -> None:
    build(tmp_path / "zarr", config_of("zarr"), count=COUNT, bad=[2])
    build(tmp_path / "tar", config_of("webdataset"), count=COUNT, bad=[2])
    root = s3.folder()
    there = teacher_cache.convert(tmp_path / "zarr", root, format="webdataset")
    assert str(there.path).startswith(f"{root}/made-up-")
    assert s3.tree(str(there.path)) == tree(tmp_path / "tar")
    s3.delete(f"{there.path}/shards/000001.tar")
    s3.delete(f"{there.path}/manifest.json")
    again = teacher_cache.convert(tmp_path / "zarr", root, format="webdataset")
    assert (again.written, s3.tree(str(there.path))) == (1, tree(tmp_path / "tar"))
    back = teacher_cache.convert(there.path, tmp_path / "back", format="zarr")
    assert tree(back.path) == tree(tmp_path / "zarr")


def test_merged_in_a_bucket(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "whole"
    build(whole, config_of("zarr"), count=COUNT)
    a, b = s3.folder(), s3.folder()
    build(a, config_of("zarr"), count=6)
    build(b, config_of("zarr"), count=COUNT)
    outcome = run(
        capsys, "cache", "merge", a, b, "--duplicates", "skip", "--refill", "--root", s3.folder(), "--threads", 3
    )
    assert outcome.code == 0, outcome.err
    assert s3.tree(outcome.out.strip()) == tree(whole)


def test_a_web_server_is_a_source_and_no_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "served" / "zarr", config_of("zarr"), count=COUNT)
    build(tmp_path / "tar", config_of("webdataset"), count=COUNT)
    with http_server(tmp_path / "served") as address:
        source = f"{address}/zarr"
        outcome = run(capsys, "cache", "convert", source, "--format", "webdataset", "--root", tmp_path / "found")
        assert outcome.code == 0, outcome.err
        assert tree(Path(outcome.out.strip())) == tree(tmp_path / "tar")
        with pytest.raises(StorageError, match="a web server does not"):
            teacher_cache.convert(source, address, format="webdataset")
