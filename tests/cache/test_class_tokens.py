"""Class tokens: stored where they were requested, in either format, and nowhere else."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, SchemaError, ShardDamaged
from teacher_cache.testing.made_up import SMALL_SCHEMA, assert_same_record, build, make_recipe, make_record, tree
from teacher_cache.writer import create_cache, write_shard

FORMATS = pytest.mark.parametrize("format", ["zarr", "webdataset"])


def config_of(format: str, **settings: Any) -> CacheConfig:
    return CacheConfig(**({"format": format, "shapes_per_shard": 4} | settings))


@FORMATS
def test_class_tokens_come_back_alone_and_with_their_records(tmp_path: Path, format: str) -> None:
    for storage in ({}, {"features": "int8", "depth": "none"}, {"compression": "none", "channels": 6}):
        config = config_of(format, class_token="float16", **storage)
        path = tmp_path / f"c{len(storage)}-{config.channels}"
        build(path, config, count=7, bad=[2])
        cache = teacher_cache.open(path)
        good = [i for i in range(7) if i != 2]
        for index, record in zip(good, cache, strict=True):
            assert_same_record(record, make_record(index), config)
        wanted = [5, 0, -1, 3, 3]
        expected = np.stack([make_record(good[i]).class_token for i in wanted]).astype(np.float16)
        np.testing.assert_array_equal(cache.class_tokens(wanted), expected)
        np.testing.assert_array_equal(cache.read(wanted).class_token, expected)
        assert cache.class_tokens([]).shape == (0, 3, 6)
        with pytest.raises(IndexError):
            cache.class_tokens([6])
        assert teacher_cache.verify(path) == []


@FORMATS
def test_a_damaged_class_token_is_found(tmp_path: Path, format: str) -> None:
    config = config_of(format, class_token="float16", compression="none")
    build(tmp_path / "c", config, count=6)
    needle = make_record(5).class_token.astype("<f2").tobytes()
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file() and needle in path.read_bytes()]
    data = file.read_bytes()
    file.write_bytes(data.replace(needle, bytes([needle[0] ^ 4]) + needle[1:]))
    cache = teacher_cache.open(tmp_path / "c")
    assert cache.class_tokens([4]).shape == (1, 3, 6)
    for call in (lambda: cache.class_tokens([5]), lambda: cache.read([5])):
        with pytest.raises(ShardDamaged) as caught:
            call()
        assert (caught.value.shard, caught.value.record) == (1, 1)
    assert [problem.file for problem in teacher_cache.verify(tmp_path / "c")] == [str(file.relative_to(tmp_path / "c"))]


@FORMATS
def test_without_class_tokens_none_are_had_and_not_a_byte_is_another(tmp_path: Path, format: str) -> None:
    build(tmp_path / "with", config_of(format, class_token="float16"), count=6)
    build(tmp_path / "without", config_of(format), count=6)
    cache = teacher_cache.open(tmp_path / "without")
    assert cache[0].class_token is None
    with pytest.raises(SchemaError, match=r"expected class tokens, this cache stores none .*\n  Build it with cache"):
        cache.class_tokens([0])
    made = teacher_cache.convert(tmp_path / "with", tmp_path, class_token="none")
    assert tree(made.path) == tree(tmp_path / "without")
    with pytest.raises(CacheError, match='class_token = "none" cannot become "float16"'):
        teacher_cache.convert(tmp_path / "without", tmp_path, class_token="float16")


@FORMATS
def test_class_tokens_that_cannot_be_stored_are_refused(tmp_path: Path, format: str) -> None:
    config = config_of(format, class_token="float16")
    writer = create_cache(tmp_path / "c", make_recipe(config), SMALL_SCHEMA, config)
    good = make_record(0)
    assert good.class_token is not None
    huge, endless = good.class_token.copy(), good.class_token.copy()
    huge[1, 2], endless[0, 3] = -70000, np.nan
    for value, text in (
        (None, "class_token is NoneType; expected an array \\[3, 6\\] float16 or float32"),
        (good.class_token[:2], "class_token is \\[2, 6\\] float32; expected \\[3, 6\\]"),
        (huge, "class_token reaches 70000, beyond the range of float16"),
        (endless, "class_token has 1 values that are not finite"),
    ):
        with pytest.raises(SchemaError, match=text):
            write_shard(writer.handle, 0, [dataclasses.replace(good, class_token=value)], [])


@FORMATS
def test_plain_readers_see_them(tmp_path: Path, format: str) -> None:
    build(tmp_path / "c", config_of(format, class_token="float16"), count=6)
    expected = make_record(5).class_token
    assert expected is not None
    if format == "zarr":
        import zarr

        group = zarr.open(str(tmp_path / "c"), mode="r")
        found = group["class"][5]
        assert group["class"].metadata.dimension_names == ("row", "view", "channel")
    else:
        import io

        import webdataset
        from numcodecs.zstd import decompress

        urls = [str(path) for path in sorted((tmp_path / "c").glob("shards/*.tar"))]
        sample = list(webdataset.WebDataset(urls, shardshuffle=False))[5]
        found = np.load(io.BytesIO(decompress(sample["class.npy.zst"])), allow_pickle=False)
    np.testing.assert_array_equal(found, expected.astype(np.float16))


def test_formats_convert_both_ways_and_shards_are_joined(tmp_path: Path) -> None:
    for format in ("zarr", "webdataset"):
        build(tmp_path / format, config_of(format, class_token="float16"), count=9, bad=[1])
        build(tmp_path / "grown" / format, config_of(format, class_token="float16"), count=2)
        build(tmp_path / "grown" / format, config_of(format, class_token="float16"), count=9)
    there = teacher_cache.convert(tmp_path / "zarr", tmp_path / "there", format="webdataset").path
    assert tree(there) == tree(tmp_path / "webdataset")
    assert tree(teacher_cache.convert(there, tmp_path / "back", format="zarr").path) == tree(tmp_path / "zarr")
    for format in ("zarr", "webdataset"):
        build(tmp_path / "whole" / format, config_of(format, class_token="float16"), count=9)
        teacher_cache.compact(tmp_path / "grown" / format)
        assert tree(tmp_path / "grown" / format) == tree(tmp_path / "whole" / format)
