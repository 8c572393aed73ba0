"""Refused shapes come back when their files are mended; a share of them above the limit is a failed build."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import teacher_cache
from pipeline.build.changes import STAMPS
from pipeline.config import BuildConfig
from pipeline.corpora import MachineFault
from pipeline.errors import TooManyRefused
from tests.support.builds import small_build, tree
from tests.support.commands import run
from tests.support.corpora import ball


@pytest.fixture(autouse=True)
def times_are_trusted(monkeypatch):
    """Files of a test are a moment old; let none of them count as written during the build."""
    monkeypatch.setattr("pipeline.build.changes._SETTLED", -(10**15))


def clouds(folder: Path, bad: int = 2, count: int = 23, points: int = 80) -> str:
    """Clouds, `bad` of them cut."""
    (folder / "box").mkdir(parents=True)
    for k in range(count):
        path = folder / "box" / f"{k:02d}.npy"
        np.save(path, ball(points, k))
        if k % 7 == 3 and k // 7 < bad:
            path.write_bytes(path.read_bytes()[:100])
    return f"folder:{folder}"


def mend(folder: Path, k: int, points: int = 80) -> None:
    np.save(folder / "box" / f"{k:02d}.npy", ball(points, k))


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Reads of files, by name."""
    reads: Counter[str] = Counter()
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.suffix == ".npy":
            reads[path.name] += 1
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    return reads


def test_a_mended_file_leaves_quarantine_at_the_next_build(tmp_path):
    uri = clouds(tmp_path / "a")
    report = small_build(tmp_path / "built", corpus=uri)
    assert {item.id for item in report.quarantined} == {"box/03.npy", "box/10.npy"}
    before = tree(report.path)
    mend(tmp_path / "a", 3)
    report = small_build(tmp_path / "built", corpus=uri)
    assert not report.already_complete
    assert {item.id for item in report.quarantined} == {"box/10.npy"}
    after = tree(report.path)
    touched = {name for name in after if after[name] != before.get(name)}
    assert all(name == "manifest.json" or name == "receipts/000000.json" or "/c.0" in name for name in touched)
    mend(tmp_path / "a", 10)
    report = small_build(tmp_path / "built", corpus=uri)
    assert report.quarantined == ()
    assert tree(report.path) == tree(small_build(tmp_path / "whole", corpus=uri).path)
    assert teacher_cache.verify(report.path) == []
    assert small_build(tmp_path / "built", corpus=uri).already_complete


def test_refused_files_that_nobody_touched_are_not_read_again_unless_asked(tmp_path, monkeypatch):
    uri = clouds(tmp_path / "a")
    small_build(tmp_path / "built", corpus=uri)
    reads = counted(monkeypatch)
    assert small_build(tmp_path / "built", corpus=uri).already_complete
    assert not {"03.npy", "10.npy"} & set(reads)
    os.utime(tmp_path / "a" / "box" / "03.npy")
    assert small_build(tmp_path / "built", corpus=uri).already_complete
    assert reads["03.npy"] >= 1
    assert reads["10.npy"] == 0
    assert small_build(tmp_path / "built", corpus=uri, retry_refused=True).already_complete
    assert reads["10.npy"] >= 1


def test_times_within_the_build_are_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.build.changes._SETTLED", 3600 * 10**9)
    uri = clouds(tmp_path / "a")
    small_build(tmp_path / "built", corpus=uri)
    reads = counted(monkeypatch)
    assert small_build(tmp_path / "built", corpus=uri).already_complete
    assert reads["03.npy"] >= 1


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"box/03.npy": 7}', b"\xff"])
def test_a_damaged_note_only_means_that_files_are_tried_again(tmp_path, monkeypatch, content):
    uri = clouds(tmp_path / "a")
    path = small_build(tmp_path / "built", corpus=uri).path
    (path / STAMPS).write_bytes(content)
    reads = counted(monkeypatch)
    assert small_build(tmp_path / "built", corpus=uri).already_complete
    assert reads["03.npy"] >= 1


def test_a_machine_fault_while_trying_again_takes_nothing_back(tmp_path, monkeypatch):
    uri = clouds(tmp_path / "a")
    path = small_build(tmp_path / "built", corpus=uri).path
    before = tree(path)
    monkeypatch.setattr("pipeline.corpora.faults.PAUSES", (0.0,))

    def fail(file: Path) -> bytes:
        if file.name != "03.npy":
            return file.open("rb").read()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(MachineFault, match="EIO"):
        small_build(tmp_path / "built", corpus=uri, retry_refused=True)
    assert tree(path) == before


def test_a_share_above_the_limit_fails_and_keeps_what_is_built(tmp_path):
    uri = clouds(tmp_path / "a")  # 2 of 23 are 8.7 %
    for _ in range(2):  # also a build that finds nothing to do
        with pytest.raises(
            TooManyRefused, match=r"(?s)2 of 23 shapes \(8\.7%\).*03\.npy: .*other 21 are in.*max_refused"
        ):
            small_build(tmp_path / "built", corpus=uri, max_refused=BuildConfig().max_refused)
    report = small_build(tmp_path / "built", corpus=uri, max_refused=0.1)
    assert report.already_complete
    assert len(teacher_cache.open(report.path)) == 21
    mend(tmp_path / "a", 3)  # 1 of 23 is 4.3 %
    assert len(small_build(tmp_path / "built", corpus=uri, max_refused=BuildConfig().max_refused).quarantined) == 1


def test_the_limit_is_a_share_and_checked(tmp_path):
    for value in (-0.1, 1.1, float("nan")):
        assert any("max_refused" in fault for fault in BuildConfig(max_refused=value).problems())
    assert not list(BuildConfig(max_refused=0).problems())
    with pytest.raises(TooManyRefused):
        small_build(tmp_path / "built", corpus=clouds(tmp_path / "a", bad=1), max_refused=0.0)


def test_the_command_exits_1_and_still_says_where_the_cache_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = clouds(tmp_path / "a", bad=1, count=5, points=300)
    build = ["cache", "build", "smoke", "--set", f"corpus.uri={uri}", "--set", "corpus.points=256"]
    build += [
        "--set",
        "evaluation.train=''",
        "--set",
        "evaluation.test=''",
        "--set",
        f"cache.root={tmp_path / 'caches'}",
        "--workers",
        "1",
    ]
    outcome = run(capsys, *build)
    assert outcome.code == 1
    assert "1 of 5 shapes (20.0%) cannot be used" in outcome.err
    assert "Traceback" not in outcome.err
    assert len(teacher_cache.open(outcome.out.strip())) == 4
    mend(tmp_path / "a", 3, 300)
    outcome = run(capsys, *build, "--retry-refused")
    assert outcome.code == 0
    assert len(teacher_cache.open(outcome.out.strip())) == 5


def test_a_shape_that_waited_for_a_library_leaves_quarantine_when_it_is_there(tmp_path, monkeypatch):
    from pipeline.corpora import files
    from pipeline.corpora.formats.geometry import Cloud, Format, ReaderMissing

    uri = clouds(tmp_path / "a", bad=1)
    for k in (5, 11):
        np.save(tmp_path / "late.npy", ball(80, 40 + k))
        (tmp_path / "late.npy").rename(tmp_path / "a" / "box" / f"{k:02d}.e57")

    def missing(data, path, options):
        raise ReaderMissing("is an E57 file, and nothing reads it")

    def found(data, path, options):
        return files.READERS[".npy"].read(data, path, options)

    monkeypatch.setitem(files.READERS, ".e57", Format(missing, "e57"))
    report = small_build(tmp_path / "built", corpus=uri)
    assert {item.id for item in report.quarantined} == {"box/03.npy", "box/05.e57", "box/11.e57"}
    reads = counted(monkeypatch)
    assert small_build(tmp_path / "built", corpus=uri).already_complete
    assert not reads["03.npy"]
    assert isinstance(found((tmp_path / "a/box/05.e57").read_bytes(), tmp_path / "x.npy", files.ReadOptions()), Cloud)
    monkeypatch.setitem(files.READERS, ".e57", Format(found, "e57"))
    report = small_build(tmp_path / "built", corpus=uri)
    assert {item.id for item in report.quarantined} == {"box/03.npy"}
    assert tree(report.path) == tree(small_build(tmp_path / "whole", corpus=uri).path)
