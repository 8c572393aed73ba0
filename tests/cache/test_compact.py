"""Small shards joined: the bytes of one build, whatever interrupted it."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, ManifestError, StorageError
from teacher_cache.format.records import Quarantined
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
    records = [make_record(9), make_record(10)]
    write_shard(writer.handle, 6, records, shapes=[(record.id, "0" * 64) for record in records])
    writer.finish()
    teacher_cache.compact(cache)
    assert [teacher_cache.open(cache)[i].id for i in range(11)] == [make_record(k).id for k in range(11)]
    assert teacher_cache.verify(cache) == []


def test_what_cannot_be_compacted_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="an object store cannot rename"):
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
    assert "already full" in run(capsys, "cache", "compact", cache).err
    assert run(capsys, "cache", "compact", tmp_path / "absent").code != 0


@FORMATS
def test_a_build_that_commits_meanwhile_is_not_lost(tmp_path: Path, format: str) -> None:
    cache = made(tmp_path / "c", format, GROWN)
    config = CacheConfig(format=format, shapes_per_shard=4)  # type: ignore[arg-type]

    def grow(done: int, total: int) -> None:
        if done == 1:
            writer = create_cache(cache, make_recipe(config), SMALL_SCHEMA, config)
            write_shard(writer.handle, len(GROWN), [make_record(9)])

    with pytest.raises(CacheError, match="a build has changed this cache meanwhile"):
        teacher_cache.compact(cache, threads=1, on_progress=grow)
    create_cache(cache, make_recipe(config), SMALL_SCHEMA, config).finish()
    assert len(teacher_cache.open(cache)) == 10
    teacher_cache.compact(cache)
    assert len(teacher_cache.open(cache)) == 10


def test_a_cache_between_the_renames_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = made(tmp_path / "c", "zarr", GROWN)
    real, calls = os.rename, []

    def second_fails(source: Any, target: Any) -> None:
        if Path(target) == cache:
            raise KeyboardInterrupt
        calls.append(real(source, target))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", second_fails)
        with pytest.raises(KeyboardInterrupt):
            teacher_cache.compact(cache)
    assert not cache.exists()
    with pytest.raises(CacheError, match="stands beside its path"):
        made(cache, "zarr", (4,))
    assert not cache.exists()
    teacher_cache.compact(cache)
    assert len(teacher_cache.open(cache)) == 9


@pytest.mark.parametrize("name", [".compacting-c", ".compacted-c"])
def test_links_in_its_way_are_refused(tmp_path: Path, name: str) -> None:
    cache = made(tmp_path / "c", "zarr", GROWN)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "data").write_text("x")
    (tmp_path / name).symlink_to(theirs)
    with pytest.raises(CacheError, match="found a link"):
        teacher_cache.compact(cache)
    assert [path.name for path in theirs.iterdir()] == ["data"]


@FORMATS
def test_refused_shapes_keep_their_place(tmp_path: Path, format: str) -> None:
    """So that shards end where those of one build end."""
    config = CacheConfig(format=format, shapes_per_shard=4)  # type: ignore[arg-type]
    refused = {0, 3, 7}

    def write(path: Path, sizes: tuple[int, ...]) -> Path:
        writer = create_cache(path, make_recipe(config), SMALL_SCHEMA, config)
        first = 0
        for shard, size in enumerate(sizes):
            numbers = range(first, first + size)
            write_shard(
                writer.handle,
                shard,
                [make_record(k) for k in numbers if k not in refused],
                [Quarantined(id=make_record(k).id, source="s", reason="r") for k in numbers if k in refused],
                shapes=[(make_record(k).id, f"{k:064x}") for k in numbers],
            )
            first += size
        writer.finish()
        return path

    grown = write(tmp_path / "grown", (3, 3, 4))
    teacher_cache.compact(grown)
    assert tree(grown) == tree(write(tmp_path / "once", (4, 4, 2)))


def test_what_a_stopped_call_wrote_of_files_that_changed_since_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = made(tmp_path / "c", "zarr", GROWN)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            teacher_cache.compact(cache)
    config = CacheConfig(shapes_per_shard=4)
    writer = create_cache(cache, make_recipe(config), SMALL_SCHEMA, config)
    changed = replace(make_record(0), label=2)
    write_shard(writer.handle, 0, [changed], shapes=[(changed.id, "f" * 64)], replace=True)
    writer.finish()
    teacher_cache.compact(cache)
    assert teacher_cache.open(cache)[0].label == 2
