"""The disk, memory or open files fail in the middle of a build: it stops, nothing is quarantined, a rerun is whole."""

import errno
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import teacher_cache
from pipeline.errors import BuildError
from pipeline.teacher.tower import Teacher
from tests.support.builds import small_build, tree
from tests.support.commands import run
from tests.support.corpora import ball


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("pipeline.corpora.faults.PAUSES", (0.0, 0.0))


def clouds(folder: Path, count: int = 23) -> str:
    (folder / "box").mkdir(parents=True)
    for k in range(count):
        np.save(folder / "box" / f"{k:02d}.npy", ball(80, k))
    return f"folder:{folder}"


def is_whole(folder: Path, uri: str, like: Path) -> None:
    """A rerun completes the cache: the bytes of a build that nothing disturbed."""
    report = small_build(folder, corpus=uri)
    assert report.quarantined == ()
    assert tree(report.path) == tree(like)
    assert teacher_cache.open(report.path).complete


def unfinished(folder: Path) -> Path:
    (path,) = (folder / "caches").iterdir()
    assert not (path / "manifest.json").exists()
    assert all(b'"quarantined": []' in receipt.read_bytes() for receipt in path.glob("receipts/*"))
    return path


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_a_disk_that_goes_away_stops_the_build_and_a_rerun_is_whole(tmp_path, scheduler):
    uri = clouds(tmp_path / "net")
    whole = small_build(tmp_path / "a", corpus=uri).path

    def vanish(progress):
        if progress.shards_done == 1 and (tmp_path / "net").exists():
            shutil.move(tmp_path / "net", tmp_path / "gone")

    with pytest.raises(BuildError, match=r"(?s)No such file or directory \(ENOENT\).*still mounted.*are kept"):
        small_build(tmp_path / "b", corpus=uri, scheduler=scheduler, workers=1, on_progress=vanish)
    unfinished(tmp_path / "b")
    shutil.move(tmp_path / "gone", tmp_path / "net")
    is_whole(tmp_path / "b", uri, whole)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "x"), OSError(errno.EMFILE, "x"), PermissionError(errno.EACCES, "x"), MemoryError()]
)
def test_a_fault_of_one_file_that_stays_stops_the_build(tmp_path, monkeypatch, error):
    uri = clouds(tmp_path / "net")
    whole = small_build(tmp_path / "a", corpus=uri).path
    real = Path.read_bytes

    def read(path):
        if path.name == "11.npy":
            raise error
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read)
        with pytest.raises(BuildError, match=r"(?s)11\.npy: cannot be read.*This is a fault of the machine"):
            small_build(tmp_path / "b", corpus=uri)
    unfinished(tmp_path / "b")
    is_whole(tmp_path / "b", uri, whole)


def test_no_memory_for_the_teacher_stops_the_build_with_the_remedy(tmp_path, monkeypatch):
    uri = clouds(tmp_path / "net", 6)

    def encode(self, images):
        raise MemoryError

    monkeypatch.setattr(Teacher, "encode", encode)
    with pytest.raises(BuildError, match=r"(?s)out of memory.*Lower build\.workers.*are kept"):
        small_build(tmp_path / "b", corpus=uri)
    unfinished(tmp_path / "b")


def test_a_fault_of_the_machine_stops_an_evaluation_and_a_check(tmp_path, monkeypatch, capsys):
    from pipeline.corpora import MachineFault
    from trainer.downstream.clouds import read_clouds

    uri = clouds(tmp_path / "net", 6)
    assert len(read_clouds(uri, points=64).points) == 6

    def read(path):
        raise OSError(errno.EIO, "x")

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(MachineFault, match="EIO"):
        read_clouds(uri, points=64)
    outcome = run(capsys, "corpus", "info", uri, "--check", "--points", 64)
    assert outcome.code == 1
    said = outcome.err
    assert "(EIO)" in said
    assert "Traceback" not in said
