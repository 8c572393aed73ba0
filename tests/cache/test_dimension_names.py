"""Zarr arrays name their dimensions; a cache from before that stays as it is, byte for byte, whatever is done to it."""

import json
from pathlib import Path

import pytest
import zarr

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.format import paths
from teacher_cache.testing import SMALL_SCHEMA, assert_same_record, build, make_record, tree

CONFIG = CacheConfig(shapes_per_shard=4, features="int8")


def unnamed(data: bytes) -> bytes:
    """A ``zarr.json`` as it was before dimensions had names."""
    value = json.loads(data)
    value.pop("dimension_names", None)
    for array in value.get("consolidated_metadata", {}).get("metadata", {}).values():
        array.pop("dimension_names")
    return (json.dumps(value, indent=1) + "\n").encode()


def old_cache(path: Path, count: int) -> dict[str, bytes]:
    """A cache of an earlier version of this program -> its files."""
    build(path, CONFIG, count=count)
    for file in path.rglob("zarr.json"):
        file.write_bytes(unnamed(file.read_bytes()))
    return tree(path)


def test_equal_names_have_equal_sizes_and_every_axis_has_one(tmp_path: Path) -> None:
    build(tmp_path, CONFIG, count=6)
    group = zarr.open(tmp_path, mode="r")
    sizes: dict[str, set[int]] = {}
    for name, array in group.arrays():
        names = array.metadata.dimension_names
        assert names is not None
        assert len(names) == len(set(names)) == array.ndim
        assert names[0] == "row"
        assert name not in names  # xarray would take it for a coordinate
        for dimension, size in zip(names, array.shape, strict=True):
            sizes.setdefault(dimension, set()).add(size)
    assert {name: size.pop() for name, size in sizes.items() if len(size) == 1} == {
        "row": 8, "point": SMALL_SCHEMA.points, "xyz": 3, "view": SMALL_SCHEMA.views, "token": SMALL_SCHEMA.tokens,
        "channel": SMALL_SCHEMA.channels, "image_row": SMALL_SCHEMA.image_side,
        "image_column": SMALL_SCHEMA.image_side, "uv": 2,
    }  # fmt: skip
    consolidated = json.loads((tmp_path / "zarr.json").read_bytes())["consolidated_metadata"]["metadata"]
    assert consolidated == {name: json.loads((tmp_path / name / "zarr.json").read_bytes()) for name in consolidated}


def test_an_old_cache_is_sound_and_finishing_it_again_touches_nothing(tmp_path: Path) -> None:
    before = old_cache(tmp_path, 6)
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in before}
    assert teacher_cache.verify(tmp_path) == []
    for i, record in enumerate(teacher_cache.open(tmp_path)):
        assert_same_record(record, make_record(i), CONFIG)
    build(tmp_path, CONFIG, count=6)
    assert tree(tmp_path) == before
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == times


def test_an_old_cache_that_grows_keeps_its_spelling(tmp_path: Path) -> None:
    old_cache(tmp_path / "old", 6)
    build(tmp_path / "old", CONFIG, count=14)
    build(tmp_path / "new", CONFIG, count=6)
    build(tmp_path / "new", CONFIG, count=14)
    new = tree(tmp_path / "new")
    assert tree(tmp_path / "old") == {
        name: unnamed(data) if name.endswith("zarr.json") else data for name, data in new.items()
    }
    assert teacher_cache.verify(tmp_path / "old") == []


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b"\xff", None])
@pytest.mark.parametrize("names", [["zarr.json"], ["points/zarr.json"], ["zarr.json", "id/zarr.json", "lo/zarr.json"]])
def test_damaged_metadata_of_an_old_cache_is_found_and_written_as_it_was(
    tmp_path: Path, names: list[str], damage: bytes | None
) -> None:
    before = old_cache(tmp_path, 6)
    for name in names:
        (tmp_path / name).unlink()
        if damage is not None:
            (tmp_path / name).write_bytes(damage)
    assert sorted(problem.file for problem in teacher_cache.verify(tmp_path)) == sorted(names)
    build(tmp_path, CONFIG, count=6)
    assert tree(tmp_path) == before


def test_a_name_that_was_changed_or_added_is_damage(tmp_path: Path) -> None:
    build(tmp_path / "new", CONFIG, count=6)
    file = tmp_path / "new" / "lo" / "zarr.json"
    file.write_bytes(file.read_bytes().replace(b'"uv"', b'"vu"'))
    assert [problem.file for problem in teacher_cache.verify(tmp_path / "new")] == ["lo/zarr.json"]
    named = (tmp_path / "new" / "points" / "zarr.json").read_bytes()
    old_cache(tmp_path / "old", 6)
    (tmp_path / "old" / "points" / "zarr.json").write_bytes(named)
    assert [problem.file for problem in teacher_cache.verify(tmp_path / "old")] == ["points/zarr.json"]


def test_an_old_cache_in_a_store_keeps_its_spelling(tmp_path: Path) -> None:
    import fsspec

    files = old_cache(tmp_path / "old", 6)
    url = f"memory://{tmp_path.name}/c"
    memory = fsspec.filesystem("memory")
    for name, data in files.items():
        memory.pipe_file(f"/{tmp_path.name}/c/{name}", data)
    assert teacher_cache.verify(url) == []
    build(url, CONFIG, count=9)
    assert teacher_cache.verify(url) == []
    assert b"dimension_names" not in memory.cat_file(f"/{tmp_path.name}/c/zarr.json")


def test_a_webdataset_has_no_metadata_to_spell(tmp_path: Path) -> None:
    config = CacheConfig(format="webdataset", shapes_per_shard=4)
    build(tmp_path, config, count=6)
    cache = teacher_cache.open(tmp_path)
    assert paths.metadata_files(cache._manifest.description, 2) == {}
    assert teacher_cache.verify(tmp_path) == []
