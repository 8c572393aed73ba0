"""A cache notices that its corpus changed under it: what changed, came or went, and what is done about it."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teacher_cache
from pipeline.build import changes, provenance
from pipeline.build.changes import STAMPS
from pipeline.build.driver import BuildReport, build_cache
from pipeline.build.plan import CommittedShard, surplus_shards
from pipeline.build.worker import release, run_task
from pipeline.config import BuildConfig, CorpusConfig
from pipeline.corpora import MachineFault, open_corpus
from pipeline.errors import BuildError
from teacher_cache import CacheConfig
from tests.support.builds import POINTS, tree, warm_workers
from tests.support.corpora import cube_text, write_npz
from tests.support.teachers import TINY_PROJECTION, tiny_teacher

COUNT = 13  # shapes: shards of 5, 5 and 3


def cloud(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(80, 3)).astype("f4")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "shapes"
    for k in range(COUNT):
        place = folder / ("box" if k % 2 else "ball")
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{k:02d}.npy", cloud(k))
    return folder


def build(
    tmp_path: Path, corpus: Path, *, root: str = "caches", uri: str = "", on_progress: Any = None, **settings: Any
) -> BuildReport:
    return build_cache(
        CorpusConfig(uri=uri or f"folder:{corpus}", points=POINTS),
        TINY_PROJECTION,
        tiny_teacher(tmp_path),
        CacheConfig(root=str(tmp_path / root), shapes_per_shard=5),
        BuildConfig(workers=1, max_refused=1.0, **settings),
        on_progress=on_progress,
    )


def afresh(tmp_path: Path, corpus: Path) -> dict[str, str]:
    """The files that a first build of the corpus as it is makes."""
    return tree(Path(build(tmp_path, corpus, root="afresh").path))


def same_size_and_time(path: Path, content: np.ndarray) -> None:
    status = path.stat()
    np.save(path, content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


@pytest.fixture
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of this very second count as old enough for their times to be trusted."""
    monkeypatch.setattr("pipeline.build.changes._SETTLED", -(10**15))


def test_a_changed_file_is_refused_or_rebuilt(tmp_path: Path, corpus: Path) -> None:
    cache = Path(build(tmp_path, corpus).path)
    before = tree(cache)
    np.save(corpus / "box" / "03.npy", cloud(99))
    with pytest.raises(
        BuildError, match=r"1 shape changed since the cache was built: 'box/03.npy'\n  Rebuild 1 shard with"
    ):
        build(tmp_path, corpus)
    assert tree(cache) == before
    report = build(tmp_path, corpus, changed="rebuild")
    assert report.built == 1
    assert tree(cache) == afresh(tmp_path, corpus)
    assert build(tmp_path, corpus).already_complete


@pytest.mark.usefixtures("old_files")
def test_a_change_under_the_old_size_and_date_is_found(tmp_path: Path, corpus: Path) -> None:
    build(tmp_path, corpus)
    same_size_and_time(corpus / "box" / "03.npy", cloud(99))
    with pytest.raises(BuildError, match=r"1 shape changed since the cache was built: 'box/03.npy'"):
        build(tmp_path, corpus)


@pytest.mark.usefixtures("old_files")
def test_a_change_that_no_stamp_shows_is_found_by_content(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems that keep no time of change."""
    monkeypatch.setattr(
        "pipeline.corpora.files.file_stamp", lambda path: f"{os.stat(path).st_mtime_ns}:{os.stat(path).st_size}"
    )
    cache = Path(build(tmp_path, corpus).path)
    same_size_and_time(corpus / "box" / "03.npy", cloud(99))
    assert build(tmp_path, corpus).already_complete  # what the fast path cannot see
    with pytest.raises(BuildError, match="1 shape changed"):
        build(tmp_path, corpus, check="content")
    shutil.rmtree(cache / "logs")  # a cache that was copied without them is compared by content too
    with pytest.raises(BuildError, match="1 shape changed"):
        build(tmp_path, corpus)


@pytest.mark.usefixtures("old_files")
def test_a_touch_changes_nothing(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path(build(tmp_path, corpus).path)
    before = tree(cache)
    for path in corpus.rglob("*.npy"):
        os.utime(path)
    assert build(tmp_path, corpus).already_complete
    assert tree(cache) == before

    def read(*arguments: Any) -> str:
        raise AssertionError("a file was read although its stamp is known by now")

    monkeypatch.setattr("pipeline.build.changes.made_of", read)
    assert build(tmp_path, corpus).already_complete


@pytest.mark.usefixtures("old_files")
@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"0": 7, "1": ["x"]}', b"\0" * 99])
def test_stamps_that_are_lost_cost_a_reading_and_no_more(tmp_path: Path, corpus: Path, damage: bytes) -> None:
    cache = Path(build(tmp_path, corpus).path)
    (cache / STAMPS).write_bytes(damage)
    assert build(tmp_path, corpus).already_complete
    assert len(json.loads((cache / STAMPS).read_bytes())) == 3


def test_a_long_comparison_is_announced_where_there_are_files(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.build.changes.MANY", 7)
    for uri, said in ((f"folder:{corpus}", 1), (f"synthetic:?count={COUNT}", 0)):
        cache = Path(build(tmp_path, corpus, uri=uri).path)
        (cache / STAMPS).unlink(missing_ok=True)
        caplog.clear()
        assert build(tmp_path, corpus, uri=uri).already_complete
        assert sum("comparing the content of many files" in line for line in caplog.messages) == said


@pytest.mark.parametrize(
    "gone",
    [["box/03.npy"], ["ball/00.npy", "box/11.npy"], [f"ball/{k:02d}.npy" for k in (0, 2, 4, 8, 10)], ["ball/12.npy"]],
)
def test_shapes_that_went_are_refused_or_taken_out(tmp_path: Path, corpus: Path, gone: list[str]) -> None:
    cache = Path(build(tmp_path, corpus).path)
    for id in gone:
        (corpus / id).unlink()
    with pytest.raises(BuildError, match=rf"{len(gone)} shapes? (is|are) no longer in the corpus"):
        build(tmp_path, corpus)
    build(tmp_path, corpus, changed="rebuild")
    assert teacher_cache.verify(cache) == []
    ids = [teacher_cache.open(cache)[i].id for i in range(COUNT - len(gone))]
    assert len(ids) == len(teacher_cache.open(cache))
    assert sorted(ids) == sorted(path.relative_to(corpus).as_posix() for path in corpus.rglob("*.npy"))
    assert build(tmp_path, corpus).already_complete


def test_shapes_that_came_are_added_as_ever(tmp_path: Path, corpus: Path) -> None:
    cache = Path(build(tmp_path, corpus).path)
    receipts = {path.name: path.read_bytes() for path in (cache / "receipts").iterdir()}
    np.save(corpus / "ball" / "01-new.npy", cloud(50))
    assert build(tmp_path, corpus).built == 1
    assert {name: (cache / "receipts" / name).read_bytes() for name in receipts} == receipts


def test_a_moved_shape_went_and_came_and_its_label_with_it(tmp_path: Path, corpus: Path) -> None:
    build(tmp_path, corpus)
    (corpus / "box" / "03.npy").rename(corpus / "ball" / "03.npy")
    with pytest.raises(BuildError, match=r"1 shape is no longer in .*: 'box/03.npy'\n  1 shape is new"):
        build(tmp_path, corpus)
    cache = Path(build(tmp_path, corpus, changed="rebuild").path)
    opened = teacher_cache.open(cache)
    labels = {opened[i].id: opened.label_names[opened[i].label] for i in range(COUNT)}
    assert labels["ball/03.npy"] == "ball"
    assert "box/03.npy" not in labels


def test_another_folder_of_the_same_name_is_another_corpus(tmp_path: Path, corpus: Path) -> None:
    build(tmp_path, corpus)
    other = tmp_path / "elsewhere" / corpus.name
    shutil.copytree(corpus, other)
    assert build(tmp_path, other).already_complete  # the same bytes are the same corpus
    np.save(other / "box" / "03.npy", cloud(7))
    with pytest.raises(BuildError, match="1 shape changed"):
        build(tmp_path, other)


def test_a_file_that_changes_while_a_build_is_interrupted(tmp_path: Path, corpus: Path) -> None:
    """Half of the shards are there; one of their files and one of the others' change; nothing is mixed."""
    cache = Path(build(tmp_path, corpus).path)
    (cache / "manifest.json").unlink()
    (cache / "receipts" / "000002.json").unlink()
    np.save(corpus / "ball" / "00.npy", cloud(99))
    np.save(corpus / "box" / "11.npy", cloud(98))
    with pytest.raises(BuildError, match=r"1 shape changed since the cache was built: 'ball/00.npy'"):
        build(tmp_path, corpus)
    build(tmp_path, corpus, changed="rebuild")
    assert tree(cache) == afresh(tmp_path, corpus)


def test_a_refused_shape_whose_file_is_mended_is_taken_in(tmp_path: Path, corpus: Path) -> None:
    (corpus / "box" / "03.npy").write_bytes(b"no cloud")
    first = build(tmp_path, corpus)
    assert [item.id for item in first.quarantined] == ["box/03.npy"]
    assert build(tmp_path, corpus).already_complete
    np.save(corpus / "box" / "03.npy", cloud(3))
    report = build(tmp_path, corpus)
    assert report.quarantined == ()
    assert tree(Path(report.path)) == afresh(tmp_path, corpus)


def test_rows_of_a_file_that_was_written_anew(tmp_path: Path) -> None:
    """The HDF5 release's identity holds names, sizes and labels; its points are compared by row."""
    import h5py

    folder = tmp_path / "modelnet40_ply_hdf5_2048"
    folder.mkdir()
    points = np.random.default_rng(0).normal(size=(7, 90, 3)).astype("f4")
    for split in ("train", "test"):
        (folder / f"{split}_files.txt").write_text("data.h5\n" if split == "train" else "")

    def write() -> None:
        with h5py.File(folder / "data.h5", "w") as file:
            file["data"], file["label"] = points, np.arange(7, dtype="u1").reshape(-1, 1) % 3

    write()
    uri = f"modelnet40:{folder}?split=train"
    cache = Path(build(tmp_path, folder, uri=uri).path)
    write()  # the same content at another time
    assert build(tmp_path, folder, uri=uri).already_complete
    points[4] += 1
    write()
    with pytest.raises(BuildError, match=r"1 shape changed .*: 'data/0004'"):
        build(tmp_path, folder, uri=uri)
    build(tmp_path, folder, uri=uri, changed="rebuild")
    assert teacher_cache.verify(cache) == []


def test_a_killed_rebuild_is_completed(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path(build(tmp_path, corpus).path)
    for name in ("ball/00", "ball/08", "ball/12"):
        np.save(corpus / f"{name}.npy", cloud(99))

    def dies(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.driver.on_threads", dies)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, corpus, changed="rebuild")
    build(tmp_path, corpus)  # what was withdrawn is missing, and nothing is stale any more
    assert tree(cache) == afresh(tmp_path, corpus)


def test_a_cache_without_fingerprints_is_left_alone(
    tmp_path: Path, corpus: Path, caplog: Any, monkeypatch: Any
) -> None:
    """As 0.1.0 wrote them: whether files changed is not known, and that is said."""
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.shard.write_shard", _without_shapes(teacher_cache.write_shard))
        build(tmp_path, corpus)
    caplog.set_level(logging.INFO, logger="pipeline")
    assert build(tmp_path, corpus).already_complete
    assert f"{COUNT} shapes were built before content hashes were recorded" in caplog.text


def _without_shapes(write: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, shapes, **settings: write(*arguments, **settings)


def test_fingerprints_cover_what_makes_a_shape(tmp_path: Path, corpus: Path) -> None:
    def fingerprint(uri: str, index: int = 0) -> str:
        return open_corpus(uri, points=64).fingerprint(index)

    base = fingerprint(f"folder:{corpus}")
    assert base == fingerprint(f"folder:{corpus}?seed=3")  # the seed is in the recipe
    relabelled = tmp_path / "shapes2" / "sphere"
    relabelled.mkdir(parents=True)
    shutil.copy(corpus / "ball" / "00.npy", relabelled / "00.npy")
    assert fingerprint(f"folder:{relabelled.parent}") != base  # another label
    in_split = tmp_path / "shapes3" / "train" / "ball"
    in_split.mkdir(parents=True)
    shutil.copy(corpus / "ball" / "00.npy", in_split / "00.npy")
    assert fingerprint(f"folder:{tmp_path / 'shapes3'}") != base  # another split
    a = write_npz(tmp_path / "a.npz", label=np.array([0, 1, 0, 1, 0, 1]))
    b = write_npz(tmp_path / "b.npz", label=np.array([1, 1, 0, 1, 0, 1]))
    assert fingerprint(f"npz:{a}") != fingerprint(f"npz:{b}")
    assert fingerprint(f"npz:{a}", 1) == fingerprint(f"npz:{b}", 1)


def test_a_readers_version_is_part_of_what_a_shape_is_made_from(tmp_path: Path, monkeypatch: Any) -> None:
    import dataclasses

    from pipeline.corpora import files

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cube.off").write_bytes(cube_text("off"))
    before = open_corpus(f"folder:{tmp_path}", points=64).fingerprint(0)
    newer = dataclasses.replace(files.READERS[".off"], version=files.READERS[".off"].version + 1)
    monkeypatch.setitem(files.READERS, ".off", newer)
    assert open_corpus(f"folder:{tmp_path}", points=64).fingerprint(0) != before


@pytest.mark.parametrize(
    ("sizes", "ids", "surplus"),
    [
        ({0: 5, 1: 5, 2: 3}, 13, []),
        ({1: 5, 2: 3}, 13, []),  # five shapes are left for the gap
        ({1: 5, 2: 3}, 8, [2]),  # none is: those of the last shard move up
        ({2: 3}, 3, [2]),
        ({2: 3}, 4, [2]),
        ({3: 2, 4: 2}, 4, [4, 3]),
        ({}, 0, []),
    ],
)
def test_shards_that_move_up_when_a_corpus_shrinks(sizes: dict[int, int], ids: int, surplus: list[int]) -> None:
    committed = {shard: CommittedShard([str(k) for k in range(size)]) for shard, size in sizes.items()}
    found = surplus_shards([str(k) for k in range(ids)], committed)
    assert found == surplus


# -- what stamps are worth ---------------------------------------------------------------------------------------------


def test_brand_new_files_are_not_vouched_for_by_their_times(tmp_path: Path, corpus: Path, monkeypatch: Any) -> None:
    """A second write within one tick of the clock leaves the same size and times."""
    monkeypatch.setattr("pipeline.build.changes._SETTLED", 3600 * 10**9)  # also where a build takes seconds
    cache = Path(build(tmp_path, corpus).path)
    assert not (cache / STAMPS).exists()
    monkeypatch.setattr("pipeline.corpora.files.file_stamp", lambda path: f"{time.time_ns()}:80:1")
    np.save(corpus / "box" / "03.npy", cloud(99))
    with pytest.raises(BuildError, match="1 shape changed"):
        build(tmp_path, corpus)


@pytest.mark.usefixtures("old_files")
def test_a_killed_build_need_not_read_again_what_is_committed(tmp_path: Path, corpus: Path, monkeypatch: Any) -> None:
    def stop(progress: Any) -> None:
        if progress.shards_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, corpus, on_progress=stop)
    read: list[str] = []
    real = changes.made_of
    monkeypatch.setattr(changes, "made_of", lambda source, index: read.append(source.id(index)) or real(source, index))
    build(tmp_path, corpus)
    assert len(read) <= 5  # of a shard that was in work and committed itself after the end


@pytest.mark.usefixtures("old_files")
def test_a_refused_build_keeps_what_it_has_compared(tmp_path: Path, corpus: Path, monkeypatch: Any) -> None:
    build(tmp_path, corpus)
    for path in corpus.rglob("*.npy"):
        os.utime(path)
    np.save(corpus / "ball" / "00.npy", cloud(99))
    read: list[str] = []
    real = changes.made_of
    monkeypatch.setattr(changes, "made_of", lambda source, index: read.append(source.id(index)) or real(source, index))
    for expected in (COUNT, 5):  # all of them, then those of the shard that differs
        read.clear()
        with pytest.raises(BuildError, match="1 shape changed"):
            build(tmp_path, corpus)
        assert len(read) == expected


def test_another_corpus_under_the_old_name_is_called_that(tmp_path: Path, corpus: Path) -> None:
    build(tmp_path, corpus)
    other = tmp_path / "elsewhere" / corpus.name
    for place in ("box", "ball"):
        (other / place).mkdir(parents=True)
        np.save(other / place / "new.npy", cloud(1))
    with pytest.raises(BuildError, match="another corpus under the same name"):
        build(tmp_path, other)


def test_rows_are_not_vouched_for_by_a_file_that_replaced_theirs(tmp_path: Path) -> None:
    """Clouds of an HDF5 file are read when the first is asked for, and stay in memory; its labels were read before."""
    import h5py

    (tmp_path / "train_files.txt").write_text("data.h5\n")
    (tmp_path / "test_files.txt").write_text("")

    def write(seed: int) -> None:
        with h5py.File(tmp_path / "new.h5", "w") as file:
            file["data"] = np.random.default_rng(seed).normal(size=(3, 90, 3)).astype("f4")
            file["label"] = np.zeros((3, 1), "u1")
        os.replace(tmp_path / "new.h5", tmp_path / "data.h5")

    write(0)
    read_already = open_corpus(f"modelnet40:{tmp_path}", points=64)
    opened_only = open_corpus(f"modelnet40:{tmp_path}", points=64)
    then = (read_already.fingerprint(0), read_already.stamp(0))
    write(1)
    assert (read_already.fingerprint(1) == then[0], read_already.stamp(0)) == (False, then[1])
    with pytest.raises(MachineFault, match="rewritten since it was opened"):
        opened_only.fingerprint(0)
    now = open_corpus(f"modelnet40:{tmp_path}", points=64)
    assert now.fingerprint(0) != then[0]
    assert now.stamp(0) != then[1]


# -- workers with files of their own ----------------------------------------------------------------------------------


def _elsewhere(monkeypatch: pytest.MonkeyPatch, corpus: Path) -> None:
    """Dask workers of another machine, where this folder is the corpus."""

    def on_cluster(job: Any, tasks: Any, build: Any, crew: Any, taken: Any) -> None:
        local = replace(job, corpus=replace(job.corpus, uri=f"folder:{corpus}"))
        for task in tasks:
            taken(run_task(local, task, lanes=1))
        release(job.token)

    monkeypatch.setattr("pipeline.build.driver.on_cluster", on_cluster)


def test_a_workers_own_copy_of_the_corpus_will_do(tmp_path: Path, corpus: Path, monkeypatch: Any) -> None:
    copy = tmp_path / "machine" / corpus.name
    shutil.copytree(corpus, copy)
    _elsewhere(monkeypatch, copy)
    report = build(tmp_path, corpus, scheduler="tcp://elsewhere:8786")
    assert tree(Path(report.path)) == afresh(tmp_path, corpus)


@pytest.mark.parametrize("id", ["ball/00.npy", "box/11.npy"])
@pytest.mark.usefixtures("old_files")
def test_a_worker_that_reads_another_file_is_found(tmp_path: Path, corpus: Path, id: str, monkeypatch: Any) -> None:
    """Wherever in a shard it stands, and under the size and date of the driver's."""
    copy = tmp_path / "machine" / corpus.name
    shutil.copytree(corpus, copy)
    same_size_and_time(copy / id, cloud(99))
    with monkeypatch.context() as patch:
        _elsewhere(patch, copy)
        with pytest.raises(BuildError, match=f"a worker read other files than the driver, 1 of [53], first '{id}'"):
            build(tmp_path, corpus, scheduler="tcp://elsewhere:8786")
    report = build(tmp_path, corpus)  # its shard was taken back
    assert tree(Path(report.path)) == afresh(tmp_path, corpus)


# -- software ----------------------------------------------------------------------------------------------------------


def test_a_worker_of_other_software_is_refused(tmp_path: Path, corpus: Path, monkeypatch: Any) -> None:
    other = dict(provenance.software()) | {"code": "0" * 64, "torch": "1.0"}
    monkeypatch.setattr(
        "pipeline.build.driver.software", lambda: other
    )  # the driver's; workers are processes of their own
    said = r"(?s)this worker runs other software.*code: .* 0+ there\n  torch: .* 1.0 there"
    with warm_workers(), pytest.raises(BuildError, match=said):
        build(tmp_path, corpus, scheduler="processes")


def test_the_digest_follows_the_sources(tmp_path: Path, monkeypatch: Any) -> None:
    for room in provenance.ROOMS:
        (tmp_path / room).mkdir()
    source = tmp_path / "pipeline" / "build" / "provenance.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    (tmp_path / "cuda" / "fps.cu").write_text("// 1\n")
    monkeypatch.setattr(provenance, "__file__", str(source))
    found = {provenance._digest()}
    (tmp_path / "cuda" / "fps.cu").write_text("// 2\n")
    found.add(provenance._digest())
    source.write_text("x = 2\n")
    found.add(provenance._digest())
    source.rename(tmp_path / "pipeline" / "other.py")
    found.add(provenance._digest())
    (tmp_path / "pipeline" / "notes.md").write_text("no code")
    found.add(provenance._digest())
    assert len(found) == 4


def test_the_log_names_the_software(tmp_path: Path, corpus: Path) -> None:
    cache = Path(build(tmp_path, corpus).path)
    events = [json.loads(line) for line in (cache / "logs" / "build.jsonl").read_text().splitlines()]
    assert events[0]["event"] == "build"
    assert events[0]["software"] == dict(provenance.software())
