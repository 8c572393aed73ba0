"""Several builders of one cache, and workers that die under a running scheduler."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.storage import atomic
from tests.support.faults import Scenario, builders, cache_of, check_finished, stages_of, start_builder
from tests.support.limits import HANG

FORMATS = ("zarr", "webdataset")


@pytest.fixture(scope="module")
def context() -> Any:
    return builders()


@pytest.fixture(scope="module")
def undisturbed(context: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, str], list[str]]]:
    """Files by SHA-256, and ids, of a cache of each format that one thread built in peace."""
    import teacher_cache
    from tests.support.builds import tree

    found = {}
    for format in FORMATS:
        folder = tmp_path_factory.mktemp("undisturbed") / "whole"
        process = start_builder(context, folder, Scenario(workers=1, format=format))
        process.join(HANG)
        assert process.exitcode == 0
        path = cache_of(folder)
        assert path is not None
        found[format] = tree(path), teacher_cache.open(path, threads=1).ids
    return found


@pytest.fixture
def start(context: Any) -> Iterator[Callable[..., Any]]:
    """Starts builders; none outlives its test, whatever becomes of the test."""
    started = []

    def start(*arguments: Any) -> Any:
        started.append(start_builder(context, *arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def wait_until(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + HANG
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_two_builders_at_once_both_finish(tmp_path: Path, start: Any, undisturbed: Any, format: str) -> None:
    """They meet in every shard: both are slowed down where they commit."""
    pair = [
        start(tmp_path / "raced", Scenario(workers=workers, format=format), tmp_path / f"marks-{workers}", 0.01)
        for workers in (1, 2)
    ]
    for process in pair:
        process.join(HANG)
    assert [process.exitcode for process in pair] == [0, 0], (tmp_path / "raced" / "builder.log").read_text()
    check_finished(tmp_path / "raced", *undisturbed[format])


@pytest.mark.parametrize("format", FORMATS)
def test_a_builder_killed_while_another_waits_for_it(tmp_path: Path, start: Any, undisturbed: Any, format: str) -> None:
    """The first dies between the renames of a shard, holding its lock; the one that waits for the lock takes over."""
    folder, marks = tmp_path / "cache", tmp_path / "marks"
    first = start(folder, Scenario(workers=1, format=format), marks, 0.5)
    wait_until(lambda: "commit" in stages_of(marks).get(first.pid, ()))
    os.kill(first.pid, signal.SIGSTOP)
    path = cache_of(folder)
    assert path is not None
    held = {str(lock) for lock in path.glob("tmp/shard-*.lock")}
    assert held
    second = start(folder, Scenario(workers=1, format=format))
    wait_until(lambda: waits_for(second.pid, held))
    time.sleep(0.1)
    assert second.is_alive()
    assert not (path / "manifest.json").exists()
    first.kill()
    second.join(HANG)
    assert second.exitcode == 0
    check_finished(folder, *undisturbed[format])


def waits_for(pid: int, locks: set[str]) -> bool:
    """Whether a thread of a process sleeps in flock and the process has one of these files open."""
    waiting = any("lock" in _text(task / "wchan") for task in Path(f"/proc/{pid}/task").glob("*"))
    descriptors = Path(f"/proc/{pid}/fd").glob("*")
    return waiting and any(_target(descriptor) in locks for descriptor in descriptors)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def test_two_that_clean_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builders that end together both look for what the dead left; the folder may vanish under either's eyes."""
    listdir = os.listdir

    def vanishing(path: Any) -> list[str]:
        os.rmdir(path)
        return listdir(path)

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(os, "listdir", vanishing)
    assert atomic.remove_abandoned(tmp_path) == []
    assert not (tmp_path / "tmp").exists()


def test_a_folder_that_vanishes_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mkdir finds tmp/, and another builder removes it before mkdir sees that it is a folder: the lock tries again."""
    mkdir, calls = os.mkdir, []

    def vanishing(path: Any, *mode: Any) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(17, "File exists", str(path))
        mkdir(path, *mode)

    monkeypatch.setattr(os, "mkdir", vanishing)
    with atomic.lock(tmp_path, "x"):
        assert (tmp_path / "tmp" / "x.lock").exists()
    (tmp_path / "tmp").rmdir()
    (tmp_path / "tmp").write_text("no folder")
    with pytest.raises(FileExistsError), atomic.lock(tmp_path, "x"):
        pass


def test_workers_killed_one_after_the_other_under_a_running_scheduler(
    tmp_path: Path, start: Any, undisturbed: Any
) -> None:
    """Each worker is replaced, its shard given to another; the build itself goes on and succeeds."""
    folder, marks = tmp_path / "cache", tmp_path / "marks"
    driver = start(folder, Scenario(scheduler="processes", workers=2), marks, 0.2)
    killed: set[int] = set()

    def at_work() -> int | None:
        assert driver.is_alive(), (folder / "builder.log").read_text()[-3000:]
        busy = {"project", "teach", "write", "commit", "read"}
        return next(
            (pid for pid, stages in stages_of(marks).items() if stages & busy and pid not in {driver.pid, *killed}),
            None,
        )

    for _ in range(2):
        pid = wait_until(at_work)
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    driver.join(HANG)
    assert driver.exitcode == 0, (folder / "builder.log").read_text()[-3000:]
    assert len(stages_of(marks)) >= 4, "the driver, two workers and one at least in place of those that died"
    check_finished(folder, *undisturbed["zarr"])
