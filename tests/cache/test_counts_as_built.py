"""A shard counts as built where its receipt and all files are there in full size; verify knows of every other file."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError
from teacher_cache.format import paths
from teacher_cache.format.receipts import iter_receipts, read_receipt
from teacher_cache.storage.opening import storage_at
from teacher_cache.testing import SMALL_SCHEMA, build, make_recipe, tree
from teacher_cache.writer import create_cache

COUNT = 8
DAMAGES = {
    "a byte short": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "a byte long": lambda data: data + b"\0",
    "gone": None,
}


def config_of(format: str) -> CacheConfig:
    return CacheConfig(format=format, shapes_per_shard=4)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CacheConfig]:
    path = tmp_path_factory.mktemp("whole") / "c"
    config = config_of(request.param)
    build(path, config, count=COUNT)
    return path, config


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_with_any_file_of_another_size_is_built_again(
    whole: tuple[Path, CacheConfig], tmp_path: Path, damage: str
) -> None:
    """As a power cut leaves it where the disk does not honour fsync, or a copy that was cut short."""
    source, config = whole
    for number, name in enumerate(paths.shard_paths(config, 1)):
        path = tmp_path / f"{number}"
        shutil.copytree(source, path)
        (path / paths.MANIFEST).unlink()  # of a build that had not ended
        change = DAMAGES[damage]
        if change is None:
            (path / name).unlink()
        else:
            (path / name).write_bytes(change((path / name).read_bytes()))
        writer = create_cache(path, make_recipe(config), SMALL_SCHEMA, config)
        description = writer.handle.description
        assert [receipt.shard for receipt in iter_receipts(storage_at(path), description)] == [0], name
        with pytest.raises(CacheError, match=r"expected .* bytes, found"):
            read_receipt(storage_at(path), 1, description)
        build(path, config, count=COUNT)
        assert tree(path) == tree(source), name


@pytest.mark.parametrize("folder", ["", "receipts", "shards", "saliency", "new/deep"])
@pytest.mark.parametrize("name", ["notes.json", "zarr.json.bak", "000099.json", "x.json.new", ".hidden", "x.bin"])
def test_verify_names_every_additional_file(
    whole: tuple[Path, CacheConfig], tmp_path: Path, folder: str, name: str
) -> None:
    source, _ = whole
    shutil.copytree(source, tmp_path / "c")
    stranger = tmp_path / "c" / folder / name
    stranger.parent.mkdir(parents=True, exist_ok=True)
    stranger.write_text("{}")
    found: list[Any] = teacher_cache.verify(tmp_path / "c")
    assert [problem.file for problem in found] == [stranger.relative_to(tmp_path / "c").as_posix()]
    assert found[0].foreign


def test_verify_compares_contents_and_not_sizes_alone(whole: tuple[Path, CacheConfig], tmp_path: Path) -> None:
    source, config = whole
    for number, name in enumerate([*paths.shard_paths(config, 0), paths.receipt_path(1), paths.RECIPE]):
        path = tmp_path / f"{number}"
        shutil.copytree(source, path)
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (path / name).write_bytes(data)
        assert name in {problem.file for problem in teacher_cache.verify(path)}
