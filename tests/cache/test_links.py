"""Links inside a cache: nothing behind them is ever written, emptied or removed. And what a cache holds at rest."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError
from teacher_cache.format import paths
from teacher_cache.maintenance.gc import find_abandoned, gc
from teacher_cache.storage import atomic
from teacher_cache.storage.opening import storage_at
from teacher_cache.testing import SMALL_SCHEMA, build, make_recipe, make_record, tree
from teacher_cache.writer import create_cache, write_shard

CONFIG = CacheConfig(shapes_per_shard=3)
OURS = "host-12-0123456789abcdef"  # as a workspace is named


def victim_of(folder: Path) -> Path:
    """A folder of somebody else, with names that builders and gc would take for theirs."""
    victim = folder / "victim"
    for name in ("uv", OURS, "shard-000000"):
        (victim / name).mkdir(parents=True)
        (victim / name / "data").write_text("precious")
        (victim / f"{name}.lock").write_text("precious")
    (victim / "build.jsonl").write_text("precious")
    (victim / "000000.json").write_text("precious")
    (victim / "c.0.0.0.0").write_text("precious")
    return victim


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def go_on(cache: Path) -> None:
    writer = create_cache(cache, make_recipe(CONFIG), SMALL_SCHEMA, CONFIG)
    write_shard(writer.handle, 3, [make_record(7)])
    writer.log({"event": "shard"})
    writer.finish()


def repair(cache: Path) -> None:
    (cache / "label" / "c.0").write_bytes(b"x") if not (cache / "label").is_symlink() else None
    teacher_cache.withdraw(cache, teacher_cache.verify(cache))
    go_on(cache)


def collect(cache: Path) -> None:
    gc(find_abandoned(cache, unknown=True).abandoned)


@pytest.mark.parametrize("command", [go_on, repair, collect])
@pytest.mark.parametrize("folder", ["tmp", "logs", "features", paths.RECEIPTS])
def test_nothing_behind_a_linked_folder_is_touched(tmp_path: Path, folder: str, command: Callable[[Path], Any]) -> None:
    build(tmp_path / "c", CONFIG, count=7)
    victim = victim_of(tmp_path)
    shutil.rmtree(tmp_path / "c" / folder, ignore_errors=True)
    (tmp_path / "c" / folder).symlink_to(victim)
    before = content(victim)
    with suppress(CacheError):
        command(tmp_path / "c")
    assert content(victim) == before


@pytest.mark.parametrize(
    "name", ["manifest.json", "recipe.json", f"tmp/{OURS}.lock", "tmp/shard-000003.lock", "logs/build.jsonl"]
)
def test_a_linked_file_is_replaced_or_refused_never_written_through(tmp_path: Path, name: str) -> None:
    build(tmp_path / "c", CONFIG, count=7)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = tmp_path / "c" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    with suppress(CacheError):
        go_on(tmp_path / "c")
    assert victim.read_bytes() == b"precious"


def test_the_refusal_names_the_link_and_where_it_points(tmp_path: Path) -> None:
    build(tmp_path / "c", CONFIG, count=7)
    (tmp_path / "c" / "tmp").symlink_to(tmp_path)
    with pytest.raises(
        CacheError, match=rf"c/tmp: expected a folder, found a link to '{tmp_path}'.*\n  Remove the link"
    ):
        go_on(tmp_path / "c")


def test_the_caches_own_folder_may_be_a_link(tmp_path: Path) -> None:
    build(tmp_path / "real", CONFIG, count=7)
    (tmp_path / "c").symlink_to(tmp_path / "real")
    go_on(tmp_path / "c")
    assert teacher_cache.verify(tmp_path / "c") == []
    assert len(teacher_cache.open(tmp_path / "c")) == 8


def test_locks_with_names_that_are_not_ours_stay(tmp_path: Path) -> None:
    build(tmp_path / "c", CONFIG, count=7)
    for name in ("uv", OURS):
        (tmp_path / "c" / "tmp" / name).mkdir(parents=True)
        (tmp_path / "c" / "tmp" / f"{name}.lock").touch()
    assert atomic.remove_abandoned(tmp_path / "c") == [OURS]
    assert sorted(os.listdir(tmp_path / "c" / "tmp")) == ["uv", "uv.lock"]


def test_a_log_that_is_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    writer = build(tmp_path / "c", CONFIG, count=7)
    (tmp_path / "c" / "logs").mkdir(exist_ok=True)
    (tmp_path / "c" / "logs" / "build.jsonl").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "c" / "logs" / "build.jsonl")
    with pytest.raises(CacheError, match="expected a file of lines, found a link, a pipe or a device"):
        writer.log({"event": "done"})


def test_a_manifest_that_is_a_device_is_replaced_and_not_read(tmp_path: Path) -> None:
    build(tmp_path / "c", CONFIG, count=7)
    before = tree(tmp_path / "c")
    (tmp_path / "c" / "manifest.json").unlink()
    (tmp_path / "c" / "manifest.json").symlink_to("/dev/zero")
    create_cache(tmp_path / "c", make_recipe(CONFIG), SMALL_SCHEMA, CONFIG).finish()
    assert tree(tmp_path / "c") == before


def test_a_log_with_a_second_name_is_copied_before_it_grows(tmp_path: Path) -> None:
    writer = build(tmp_path / "c", CONFIG, count=7)
    (tmp_path / "victim").write_bytes(b"precious\n")
    log = tmp_path / "c" / "logs" / "build.jsonl"
    log.parent.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    os.link(tmp_path / "victim", log)
    writer.log({"event": "done"})
    writer.log({"event": "again"})
    assert (tmp_path / "victim").read_bytes() == b"precious\n"
    assert [line[:8] for line in log.read_bytes().splitlines()] == [b"precious", b'{"time":', b'{"time":']


@pytest.mark.parametrize("name", ["manifest.json", "receipts/000001.json"])
def test_a_folder_in_a_files_place_is_named(tmp_path: Path, name: str) -> None:
    build(tmp_path / "c", CONFIG, count=7)
    path = tmp_path / "c" / name
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    with pytest.raises(CacheError, match=f"{name}: expected a file"):
        atomic.write_documents(tmp_path / "c", {name: b"x"})
    assert not (tmp_path / "c" / "tmp").exists() or not os.listdir(tmp_path / "c" / "tmp")


def test_a_lock_that_is_a_folder_is_named_by_builds_and_left_by_gc(tmp_path: Path) -> None:
    build(tmp_path / "c", CONFIG, count=7)
    lock = tmp_path / "c" / "tmp" / "shard-000003.lock"
    lock.mkdir(parents=True)
    with pytest.raises(CacheError, match=r"shard-000003\.lock: expected a lock file, found a link or a folder"):
        go_on(tmp_path / "c")
    assert [piece.kind for piece in find_abandoned(tmp_path / "c").abandoned if piece.path.startswith("tmp/")] == []
    collect(tmp_path / "c")  # --unknown: asked for by name
    assert not lock.exists()


@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir])
def test_gc_neither_waits_for_a_manifest_that_is_no_file_nor_reads_it(
    tmp_path: Path, plant: Callable[[Path], Any]
) -> None:
    build(tmp_path / "c", CONFIG, count=7)
    (tmp_path / "c" / "manifest.json").unlink()
    plant(tmp_path / "c" / "manifest.json")
    assert find_abandoned(tmp_path / "c").abandoned == ()


def test_a_file_is_replaced_whole_and_its_link_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "a.json").symlink_to(tmp_path / "other")
    atomic.replace_file(tmp_path / "a.json", b"new")
    assert not (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "other").read_bytes() == b"precious"

    def fails(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        atomic.replace_file(tmp_path / "a.json", b"newer")
    assert sorted(os.listdir(tmp_path)) == ["a.json", "other"]
    assert (tmp_path / "a.json").read_bytes() == b"new"


# -- at rest -----------------------------------------------------------------------------------------------------------


def test_documents_written_after_a_build_leave_no_workspace(tmp_path: Path) -> None:
    build(tmp_path / "c", CONFIG, count=7)
    storage_at(tmp_path / "c").write_documents({"logs/config.toml": b"x"})
    assert not (tmp_path / "c" / "tmp").exists()


@pytest.mark.parametrize("left", ["nothing", "an empty tmp", "a dead lock"])
def test_a_finished_cache_that_cannot_be_written_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """As on a read-only file system: whatever would change a file fails with EROFS."""
    build(tmp_path / "c", CONFIG, count=7)
    if left != "nothing":
        (tmp_path / "c" / "tmp").mkdir()
    if left == "a dead lock":
        (tmp_path / "c" / "tmp" / f"{OURS}.lock").touch()

    def refused(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system", str(arguments[0]))

    def opened(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refused(path)
        return real_open(path, flags, *arguments, **options)

    real_open = os.open
    monkeypatch.setattr(os, "open", opened)
    for name in ("mkdir", "rmdir", "unlink", "replace", "rename"):
        monkeypatch.setattr(os, name, refused)
    writer = create_cache(tmp_path / "c", make_recipe(CONFIG), SMALL_SCHEMA, CONFIG)
    assert len(writer.committed()) == 3
    writer.finish()
    assert teacher_cache.verify(tmp_path / "c") == []
    assert len(list(teacher_cache.open(tmp_path / "c"))) == 7
