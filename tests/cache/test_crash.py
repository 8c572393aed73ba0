"""Killed anywhere, refused by the disk, raced by another builder: a rerun gives the bytes of an undisturbed build."""

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.format import paths
from teacher_cache.storage import atomic
from teacher_cache.testing import (
    SMALL_SCHEMA,
    assert_same_record,
    build,
    make_recipe,
    make_record,
    tree,
)
from teacher_cache.writer import create_cache, write_shard
from tests.support.limits import HANG

COUNT = 5
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "fcntl.flock", "shutil.rmtree"}


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes forked from a small server that has imported the package: milliseconds each, and no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["teacher_cache.testing"])
    return context


def config_of(format: str) -> CacheConfig:
    return CacheConfig(format=format, shapes_per_shard=3)  # type: ignore[arg-type]


def build_counting_steps(path: str, format: str, die_at: int, counted: Any) -> None:
    """Build, and SIGKILL this process just before step ``die_at`` of what it does to files (never, when negative)."""
    steps = 0

    def step() -> None:
        nonlocal steps
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS and (event == "fcntl.flock" or path in str(arguments[0])):
            step()

    os.fsync = lambda descriptor: step()  # type: ignore[assignment]
    sys.addaudithook(hook)
    build(path, config_of(format), count=COUNT)
    counted.value = steps


def run(process: BaseProcess) -> int:
    process.start()
    process.join(HANG)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize(("format", "stride"), [("webdataset", 2), ("zarr", 7)])
def test_killed_before_any_step_of_the_build(
    tmp_path: Path, processes: ForkServerContext, format: str, stride: int
) -> None:
    counted = processes.Value("i", 0)
    arguments = (str(tmp_path / "whole"), format, -1, counted)
    assert run(processes.Process(target=build_counting_steps, args=arguments)) == 0
    expected = tree(tmp_path / "whole")
    total = counted.value
    assert total > 60, "the steps are being counted"
    unfinished = 0
    for die_at in range(0, total, stride):
        path = tmp_path / f"killed-{die_at}"
        assert run(processes.Process(target=build_counting_steps, args=(str(path), format, die_at, counted))) == -9
        unfinished += not (path / "manifest.json").exists()
        if (path / "recipe.json").exists():  # what is committed before the rerun reads back right
            for record in teacher_cache.open(path, allow_incomplete=True):
                assert_same_record(record, make_record(int(record.id[-5:])), config_of(format))
        build(path, config_of(format), count=COUNT)
        assert tree(path) == expected, f"killed before step {die_at}"
        assert not (path / "tmp").exists()
    assert unfinished > total // stride // 2


def build_slowly(path: str, format: str, started: Any) -> None:
    """A build whose every fsync takes a while, to be killed or raced in."""
    os.fsync = lambda descriptor: time.sleep(0.002)  # type: ignore[assignment]
    started.wait(HANG)
    build(path, config_of(format), count=COUNT)


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_two_builders_killed_and_run_again(tmp_path: Path, processes: ForkServerContext, format: str) -> None:
    """Two builders at once, one of them killed at a random moment, three times over; then left alone."""
    build(tmp_path / "whole", config_of(format), count=COUNT)
    rng = np.random.default_rng(5)
    for round in range(3):
        path = tmp_path / f"raced-{round}"
        started = processes.Event()
        pair = [processes.Process(target=build_slowly, args=(str(path), format, started)) for _ in range(2)]
        for process in pair:
            process.start()
        started.set()
        if round:
            time.sleep(rng.uniform(0.005, 0.08))
            pair[0].kill()
        for process in pair:
            process.join(HANG)
        assert pair[1].exitcode == 0
        build(path, config_of(format), count=COUNT)
        assert tree(path) == tree(tmp_path / "whole")
        assert teacher_cache.verify(path) == []


def write_differing(path: str, seed: int, started: Any) -> None:
    """A builder whose teacher does not repeat itself to the bit, as on a GPU."""
    config = config_of("zarr")
    writer = create_cache(path, make_recipe(config), SMALL_SCHEMA, config)
    started.wait(HANG)
    for shard in range(6):
        record = dataclasses.replace(make_record(shard, seed=seed), id=str(shard))
        write_shard(writer.handle, shard, [record])
    writer.finish()


def test_builders_that_disagree_never_mix_in_a_shard(tmp_path: Path, processes: ForkServerContext) -> None:
    path = tmp_path / "c"
    started = processes.Event()
    pair = [processes.Process(target=write_differing, args=(str(path), seed, started)) for seed in (1, 2)]
    for process in pair:
        process.start()
    started.set()
    for process in pair:
        process.join(HANG)
    assert [process.exitcode for process in pair] == [0, 0]
    assert teacher_cache.verify(path) == []
    for shard, record in enumerate(teacher_cache.open(path)):
        sources = [seed for seed in (1, 2) if np.array_equal(record.points, make_record(shard, seed=seed).points)]
        assert len(sources) == 1
        expected = dataclasses.replace(make_record(shard, seed=sources[0]), id=str(shard))
        assert_same_record(record, expected, config_of("zarr"))


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_full_disk_commits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    config = config_of(format)
    writer = create_cache(tmp_path / "c", make_recipe(config), SMALL_SCHEMA, config)
    real = Path.open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    def full(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        file = real(self, mode, *rest, **named)
        return Full(file) if mode == "xb" else file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(writer.handle, 0, [make_record(0)])
    monkeypatch.undo()
    assert writer.committed() == {}
    assert set(tree(tmp_path / "c")) == {"recipe.json"}
    build(tmp_path / "c", config, count=COUNT)
    build(tmp_path / "whole", config, count=COUNT)
    assert tree(tmp_path / "c") == tree(tmp_path / "whole")


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_everything_is_synced_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """A file is synced before its rename, its folder after it, and all of a shard before its receipt's rename."""
    events: list[tuple[str, str]] = []
    rename = os.replace

    def fsync(descriptor: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def replace(source: Path, target: Path) -> None:
        assert ("sync", str(source)) in events, f"{source} was renamed before it was synced"
        events.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    path = tmp_path / "c"
    build(path, config_of(format), count=COUNT)
    order = [target for what, target in events if what == "rename"]
    for shard in (0, 1):
        receipt = events.index(("rename", str(path / paths.receipt_path(shard))))
        for name in paths.shard_paths(config_of(format), shard):
            renamed = events.index(("rename", str(path / name)))
            assert ("sync", str((path / name).parent)) in events[renamed:receipt], name
        assert events[receipt + 1] == ("sync", str(path / "receipts"))
    assert order[0].endswith("recipe.json")
    assert order[-1].endswith("manifest.json")
    assert events[-1] == ("sync", str(path))


def hold_workspace(path: str, ready: Any, leave: Any) -> None:
    with atomic.workspace(Path(path)) as folder:
        (folder / "half").write_bytes(b"half a shard")
        ready.set()
        leave.wait(HANG)


def test_only_the_dead_are_cleaned_up_after(tmp_path: Path, processes: ForkServerContext) -> None:
    ready, leave = processes.Event(), processes.Event()
    process = processes.Process(target=hold_workspace, args=(str(tmp_path), ready, leave))
    process.start()
    assert ready.wait(HANG)
    assert atomic.remove_abandoned(tmp_path) == [], "its owner lives"
    assert len(list((tmp_path / "tmp").rglob("half"))) == 1
    process.kill()
    process.join(HANG)
    assert len(list((tmp_path / "tmp").rglob("half"))) == 1
    assert len(atomic.remove_abandoned(tmp_path)) == 1
    assert not (tmp_path / "tmp").exists()


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(teacher_cache.CacheError, match="expected a file system with flock"):
        atomic.write_documents(tmp_path, {"note.json": b"{}"})


def test_interrupted_replacement_leaves_a_shard_to_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its old and its new files a shard has no receipt, so no one takes the mixture for whole."""
    config = config_of("zarr")
    writer = build(tmp_path / "c", config, count=3)
    rename = os.replace
    renamed = []

    def replace(source: Path, target: Path) -> None:
        if len(renamed) == 2:
            raise OSError(5, "Input/output error")
        renamed.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    changed = [dataclasses.replace(make_record(i, seed=1), id=make_record(i).id) for i in range(3)]
    with pytest.raises(OSError, match="Input/output error"):
        write_shard(writer.handle, 0, changed, replace=True)
    monkeypatch.undo()
    assert len(renamed) == 2
    assert writer.committed() == {}


def test_log_is_no_part_of_the_cache(tmp_path: Path) -> None:
    writer = build(tmp_path / "c", config_of("zarr"), count=3)
    before = tree(tmp_path / "c")
    writer.log({"event": "shard", "shard": 0})
    writer.log({"event": "done"})
    lines = [json.loads(line) for line in (tmp_path / "c" / paths.LOG).read_text().splitlines()]
    assert [line["event"] for line in lines] == ["shard", "done"]
    assert abs(lines[0]["time"] - time.time()) < 60
    assert tree(tmp_path / "c") == before
    assert teacher_cache.verify(tmp_path / "c") == []


def test_repair_of_a_shard_restores_its_bytes(tmp_path: Path) -> None:
    config = config_of("zarr")
    writer = build(tmp_path / "c", config, count=COUNT)
    before = tree(tmp_path / "c")
    path = tmp_path / "c" / paths.shard_paths(config, 1)[1]
    damaged = bytearray(path.read_bytes())
    damaged[3] ^= 4
    path.write_bytes(damaged)
    assert [problem.shard for problem in teacher_cache.verify(tmp_path / "c")] == [1]
    write_shard(writer.handle, 1, [make_record(3), make_record(4)], replace=True)
    assert tree(tmp_path / "c") == before
