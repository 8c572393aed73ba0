"""Small shards joined: the bytes of one build, whatever interrupted it."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, ManifestError, StorageError
from teacher_cache.testing import SMALL_SCHEMA, make_recipe, make_record, tree
from teacher_cache.writer import create_cache, write_shard
from tests.support.commands import run

FORMATS = pytest.mark.parametrize("format", ["zarr", "webdataset"])
GROWN = (1, 2, 1, 1, 3, 1)  # shapes that came one after the other


def made(path: Path, format: str, sizes: tuple[int, ...]) -> Path:
    """A cache of shards of these sizes, its shapes numbered through."""
    config = CacheConfig(format=format, shapes_per_shard=4)  # type: ignore[arg-type]
    writer = create_cache(path, make_recipe(config), SMALL_SCHEMA, config)
    first = 0
    for shard, size in enumerate(sizes):
        records = [make_record(first + k) for k in range(size)]
        shapes = [(record.id, f"{first + k:064x}") for k, record in enumerate(records)]
        write_shard(writer.handle, shard, records, shapes=shapes)
        first += size
    writer.log({"event": "built"})
    writer.finish()
    return path


@FORMATS
def test_the_bytes_of_one_build(tmp_path: Path, format: str) -> None:
    grown, at_once = made(tmp_path / "grown", format, GROWN), made(tmp_path / "once", format, (4, 4, 1))
    report = teacher_cache.compact(grown)
    assert report is not None
    assert (report.shards, report.records) == (3, 9)
    assert tree(grown) == tree(at_once)
    assert teacher_cache.verify(grown) == []
    assert sorted(os.listdir(tmp_path)) == ["grown", "once"]
    assert teacher_cache.compact(grown) is None


@FORMATS
def test_full_shards_are_left_alone(tmp_path: Path, format: str) -> None:
    cache = made(tmp_path / "c", format, (4, 4, 1))
    times = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert teacher_cache.compact(cache) is None
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == times


@FORMATS
@pytest.mark.parametrize("step", range(40))
def test_stopped_before_any_step_the_next_call_completes(
    tmp_path: Path, format: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the n-th change of a name; records are there, in the one place or the other, at any time."""
    cache = made(tmp_path / "c", format, GROWN)
    expected = tree(made(tmp_path / "once", format, (4, 4, 1)))
    left = step

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            teacher_cache.compact(cache, threads=1)
        except KeyboardInterrupt:
            whole = [path for path in tmp_path.iterdir() if path.name != "once" and (path / "manifest.json").exists()]
            assert any(len(teacher_cache.open(path)) == 9 for path in whole)
    teacher_cache.compact(cache, threads=1)
    assert tree(cache) == expected
    assert sorted(os.listdir(tmp_path)) == ["c", "once"]


def test_a_cache_that_grew_after_a_stop_is_compacted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = made(tmp_path / "c", "zarr", GROWN)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            teacher_cache.compact(cache)
    config = CacheConfig(shapes_per_shard=4)
    writer = create_cache(cache, make_recipe(config), SMALL_SCHEMA, config)
    write_shard(
        writer.handle, 6, [make_record(9), make_record(10)], shapes=[(f"shape-{k}", f"{k:064x}") for k in (9, 10)]
    )
    writer.finish()
    teacher_cache.compact(cache)
    assert [teacher_cache.open(cache)[i].id for i in range(11)] == [make_record(k).id for k in range(11)]
    assert teacher_cache.verify(cache) == []


def test_what_cannot_be_compacted_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="an object store renames nothing"):
        teacher_cache.compact("memory://bucket/c")
    with pytest.raises(FileNotFoundError, match="no such cache"):
        teacher_cache.compact(tmp_path / "absent")
    cache = made(tmp_path / "c", "zarr", GROWN)
    damaged = tmp_path / "damaged"
    shutil.copytree(cache, damaged)
    (damaged / "features" / "c.1.0.0.0").write_bytes(b"x")
    with pytest.raises(CacheError, match=r"features/c\.1"):
        teacher_cache.compact(damaged)
    (cache / "manifest.json").unlink()
    with pytest.raises(ManifestError):
        teacher_cache.compact(cache)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = made(tmp_path / "c", "zarr", GROWN)
    done = run(capsys, "cache", "compact", cache)
    assert done.code == 0, done.err
    assert "9 records" in done.err
    assert done.out.strip() == str(cache)
    assert "full already" in run(capsys, "cache", "compact", cache).err
    assert run(capsys, "cache", "compact", tmp_path / "absent").code != 0
