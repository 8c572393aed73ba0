"""What dead builds left is found and, when asked for, removed; what lives or is finished is never touched."""

import multiprocessing
import os
import shutil
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, StorageError
from teacher_cache.format import paths
from teacher_cache.maintenance.gc import Abandoned, find_abandoned, gc
from teacher_cache.storage import atomic
from teacher_cache.testing import SMALL_SCHEMA, build, make_recipe, make_record, tree
from teacher_cache.writer import create_cache, write_shard
from tests.support.limits import HANG

FORMATS = pytest.mark.parametrize("format", ["zarr", "webdataset"])
DEAD = "host-12-0123456789abcdef"


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["teacher_cache.testing"])
    return context


def config_of(format: str) -> CacheConfig:
    return CacheConfig(format=format, shapes_per_shard=3)  # type: ignore[arg-type]


def leave_workspace(cache: Path, name: str = DEAD) -> None:
    """What a process that was killed leaves: a folder with half a shard, and its lock, which nobody holds."""
    (cache / "tmp" / name).mkdir(parents=True)
    (cache / "tmp" / name / "features-c.1.0.0.0").write_bytes(bytes(1000))
    (cache / "tmp" / f"{name}.lock").touch()


def collected(cache: Path, **options: Any) -> list[tuple[str, str]]:
    return [(piece.kind, piece.path) for piece in find_abandoned(cache, **options).abandoned]


@FORMATS
def test_a_finished_cache_and_its_logs_hold_nothing_abandoned(tmp_path: Path, format: str) -> None:
    build(tmp_path / "c", config_of(format), count=7).log({"event": "done"})
    findings = find_abandoned(tmp_path / "c", unknown=True)
    assert (findings.caches, findings.abandoned, findings.busy, findings.faults) == (1, (), 0, ())


@FORMATS
def test_workspaces_of_the_dead_and_files_without_a_receipt_go(tmp_path: Path, format: str) -> None:
    config = config_of(format)
    whole = build(tmp_path / "c", config, count=7)
    before = tree(tmp_path / "c")
    write_shard(whole.handle, 3, [make_record(7)])
    (tmp_path / "c" / paths.receipt_path(3)).unlink()  # as when a builder dies between its files and its receipt
    leave_workspace(tmp_path / "c")
    findings = find_abandoned(tmp_path)
    debris = sorted(paths.shard_paths(config, 3))
    assert [(piece.kind, piece.path, piece.shard) for piece in findings.abandoned] == [
        ("workspace", f"tmp/{DEAD}", None),
        *(("shard", path, 3) for path in debris),
    ]
    assert findings.abandoned[0].bytes == 1000
    sizes = [(tmp_path / "c" / path).stat().st_size for path in debris]
    assert [piece.bytes for piece in findings.abandoned[1:]] == sizes
    seen: list[int] = []
    removed, kept = gc(findings.abandoned, on_progress=seen.append)
    assert (removed, kept, seen[-1]) == (list(findings.abandoned), [], len(findings.abandoned))
    assert tree(tmp_path / "c") == before
    assert not (tmp_path / "c" / "tmp").exists()
    assert teacher_cache.verify(tmp_path / "c") == []
    assert find_abandoned(tmp_path).abandoned == ()


@FORMATS
def test_committed_shards_stay_in_an_unfinished_cache_and_while_one_grows(tmp_path: Path, format: str) -> None:
    config = config_of(format)
    writer = create_cache(tmp_path / "new", make_recipe(config), SMALL_SCHEMA, config)
    write_shard(writer.handle, 0, [make_record(0)])
    grown = build(tmp_path / "grown", config, count=3)
    write_shard(grown.handle, 1, [make_record(3)])  # committed; the manifest comes when the build ends
    assert find_abandoned(tmp_path, unknown=True).abandoned == ()
    assert find_abandoned(tmp_path).caches == 2


@FORMATS
def test_files_of_a_shard_the_manifest_lists_stay_without_a_receipt(tmp_path: Path, format: str) -> None:
    """A lost receipt is damage, for repair or a copy of it to mend; the files may be all that is left."""
    build(tmp_path / "c", config_of(format), count=7)
    (tmp_path / "c" / paths.receipt_path(1)).unlink()
    assert find_abandoned(tmp_path / "c", unknown=True).abandoned == ()


def build_until_told(path: str, ready: Any, leave: Any) -> None:
    """A living builder in the middle of a shard: a file is in place, the receipt is not, a workspace is in use."""
    config = config_of("zarr")
    writer = create_cache(path, make_recipe(config), SMALL_SCHEMA, config)
    rename = os.replace

    def slow(source: Any, target: Any) -> None:
        rename(source, target)
        if "saliency" in str(target):
            ready.set()
            leave.wait(HANG)

    os.replace = slow  # type: ignore[assignment]
    write_shard(writer.handle, 0, [make_record(0)])
    writer.finish()


def test_a_living_builder_keeps_everything(tmp_path: Path, processes: ForkServerContext) -> None:
    """It is killed afterwards: then, and only then, the same files are abandoned."""
    ready, leave = processes.Event(), processes.Event()
    process = processes.Process(target=build_until_told, args=(str(tmp_path / "c"), ready, leave))
    process.start()
    assert ready.wait(HANG)
    files = {path for path in (tmp_path / "c").rglob("*") if path.is_file()}
    assert tmp_path / "c" / "saliency/c.0.0.0" in files
    findings = find_abandoned(tmp_path / "c")
    assert findings.abandoned == ()
    assert findings.busy == 2, "the workspace and the shard"
    forced = [
        Abandoned(cache=tmp_path / "c", path="saliency/c.0.0.0", kind="shard", bytes=0, shard=0),
        *(
            Abandoned(cache=tmp_path / "c", path=f"tmp/{path.stem}", kind="workspace", bytes=0)
            for path in (tmp_path / "c" / "tmp").glob("*.lock")
        ),
    ]
    assert gc(forced) == ([], forced), "not even when it is asked to"
    assert {path for path in (tmp_path / "c").rglob("*") if path.is_file()} == files
    process.kill()
    process.join(HANG)
    dead = find_abandoned(tmp_path / "c")
    assert {piece.kind for piece in dead.abandoned} == {"workspace", "shard"}
    assert dead.busy == 0
    removed, kept = gc(dead.abandoned)
    assert (len(removed), kept) == (len(dead.abandoned), [])
    assert set(tree(tmp_path / "c")) == {"recipe.json"}
    build(tmp_path / "c", config_of("zarr"), count=1, label_names=())
    build(tmp_path / "whole", config_of("zarr"), count=1, label_names=())
    assert tree(tmp_path / "c") == tree(tmp_path / "whole")


def test_a_builder_that_goes_on_after_the_look_keeps_its_shard(tmp_path: Path, processes: ForkServerContext) -> None:
    """Found while abandoned, committed before it is removed: the second look, under the lock, sees the receipt."""
    config = config_of("zarr")
    writer = create_cache(tmp_path / "c", make_recipe(config), SMALL_SCHEMA, config)
    write_shard(writer.handle, 0, [make_record(0)])
    (tmp_path / "c" / paths.receipt_path(0)).unlink()
    found = find_abandoned(tmp_path / "c").abandoned
    assert len(found) == len(paths.shard_paths(config, 0))
    write_shard(writer.handle, 0, [make_record(0)])
    assert gc(found) == ([], list(found))
    writer.finish()
    assert teacher_cache.verify(tmp_path / "c") == []


def build_slowly(path: str, started: Any) -> None:
    os.fsync = lambda descriptor: time.sleep(0.002)  # type: ignore[assignment]
    started.set()
    build(path, config_of("zarr"), count=9)


def test_collecting_all_the_while_a_build_runs_changes_nothing(tmp_path: Path, processes: ForkServerContext) -> None:
    started = processes.Event()
    process = processes.Process(target=build_slowly, args=(str(tmp_path / "c"), started))
    process.start()
    assert started.wait(HANG)
    rounds = 0
    while process.is_alive():
        if (tmp_path / "c").is_dir():
            gc(find_abandoned(tmp_path / "c").abandoned)
            rounds += 1
    process.join()
    assert process.exitcode == 0
    assert rounds > 3
    assert teacher_cache.verify(tmp_path / "c") == []
    build(tmp_path / "whole", config_of("zarr"), count=9)
    assert tree(tmp_path / "c") == tree(tmp_path / "whole")


def test_unknown_files_only_when_asked_for(tmp_path: Path) -> None:
    build(tmp_path / "c", config_of("zarr"), count=3)
    before = tree(tmp_path / "c")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    (tmp_path / "c" / "notes.txt").write_text("mine")
    (tmp_path / "c" / "features" / "c.9.0").write_text("no name of a chunk")
    (tmp_path / "c" / "receipts" / "7.json").write_text("no name of a receipt")
    (tmp_path / "c" / "link").symlink_to(elsewhere / "mine")
    (tmp_path / "c" / "folder").symlink_to(elsewhere)
    (tmp_path / "c" / "tmp" / "kept").mkdir(parents=True)
    (tmp_path / "c" / "tmp" / "x.lock").write_text("no name of ours")
    assert collected(tmp_path / "c") == []
    found = find_abandoned(tmp_path / "c", unknown=True).abandoned
    names = ["tmp/kept", "tmp/x.lock", "link", "notes.txt", "features/c.9.0", "receipts/7.json"]
    assert sorted(piece.path for piece in found) == sorted(names)
    assert {piece.kind for piece in found} == {"unknown"}
    gc(found)
    (tmp_path / "c" / "folder").unlink()
    assert tree(tmp_path / "c") == before
    assert (elsewhere / "mine").read_text() == "mine"


def test_a_workspace_without_a_lock_and_a_lock_without_a_workspace(tmp_path: Path) -> None:
    build(tmp_path / "c", config_of("zarr"), count=3)
    (tmp_path / "c" / "tmp" / DEAD).mkdir(parents=True)
    (tmp_path / "c" / "tmp" / "shard-000004.lock").touch()
    found = find_abandoned(tmp_path / "c").abandoned
    assert [piece.path for piece in found] == [f"tmp/{DEAD}", "tmp/shard-000004"]
    gc(found)
    assert not (tmp_path / "c" / "tmp").exists()


def test_a_build_that_died_before_its_recipe(tmp_path: Path) -> None:
    leave_workspace(tmp_path / "c")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tmp").mkdir()
    (tmp_path / "other" / "data").touch()
    findings = find_abandoned(tmp_path)
    assert (findings.caches, [piece.path for piece in findings.abandoned]) == (1, [f"tmp/{DEAD}"])
    gc(findings.abandoned)
    assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.parametrize("document", ["manifest.json", "recipe.json"])
def test_documents_that_cannot_be_read_protect_every_shard(tmp_path: Path, document: str) -> None:
    build(tmp_path / "c", config_of("zarr"), count=3)
    build(tmp_path / "sound", config_of("zarr"), count=3)
    leave_workspace(tmp_path / "c")
    leave_workspace(tmp_path / "sound")
    (tmp_path / "c" / paths.receipt_path(0)).unlink()
    if document == "recipe.json":
        (tmp_path / "c" / "manifest.json").unlink()
    (tmp_path / "c" / document).write_text("{")
    findings = find_abandoned(tmp_path, unknown=True)
    assert [piece.path for piece in findings.abandoned] == [f"tmp/{DEAD}"] * 2
    [fault] = findings.faults
    assert document in str(fault)
    assert "only abandoned workspaces are searched for" in str(fault)


def test_where_there_is_nothing_to_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_abandoned(tmp_path).caches == 0
    with pytest.raises(FileNotFoundError):
        find_abandoned(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="an object store has no locks"):
        find_abandoned("s3://bucket/caches")
    leave_workspace(tmp_path / "c")

    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(CacheError, match="expected a file system with flock"):
        find_abandoned(tmp_path)


def test_what_cannot_be_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_workspace(tmp_path / "c")
    found = find_abandoned(tmp_path).abandoned

    def denied(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", denied)
    with pytest.raises(PermissionError):
        gc(found)
    monkeypatch.undo()
    assert find_abandoned(tmp_path).abandoned == found


def die_in_commit(path: str, at: int) -> None:
    """A real builder, killed before its rename number `at`."""
    rename, count = os.replace, 0

    def counting(source: Any, target: Any) -> None:
        nonlocal count
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        rename(source, target)

    os.replace = counting  # type: ignore[assignment]
    build(path, config_of("zarr"), count=4)


@pytest.mark.parametrize("at", [0, 5, 12, 16, 22, 30])
def test_what_a_killed_build_leaves_is_found_and_the_rest_completes(
    tmp_path: Path, processes: ForkServerContext, at: int
) -> None:
    process = processes.Process(target=die_in_commit, args=(str(tmp_path / "c"), at))
    process.start()
    process.join(HANG)
    assert process.exitcode == -signal.SIGKILL
    committed = set((tmp_path / "c").glob("receipts/*.json"))
    findings = find_abandoned(tmp_path)
    assert any(piece.kind == "workspace" for piece in findings.abandoned)
    gc(findings.abandoned)
    assert not (tmp_path / "c" / atomic.TEMPORARY).exists()
    assert set((tmp_path / "c").glob("receipts/*.json")) == committed
    assert find_abandoned(tmp_path, unknown=True).abandoned == ()
    build(tmp_path / "c", config_of("zarr"), count=4)
    build(tmp_path / "whole", config_of("zarr"), count=4)
    assert tree(tmp_path / "c") == tree(tmp_path / "whole")
