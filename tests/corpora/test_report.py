"""The report on a corpus: every number against one worked out by hand, by one process and by several."""

import errno
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora import CorpusError, MachineFault, open_corpus
from pipeline.corpora.files import READERS
from pipeline.corpora.formats.geometry import Format
from pipeline.corpora.inspection import standing
from pipeline.corpora.report import Group, Spread
from pipeline.corpora.survey import survey
from tests.support.corpora import ball, cube_ply, cube_stl, cube_text


def box_obj(x: float, y: float, z: float, *, extra: str = "") -> str:
    """A closed box of these sides, one corner at 0, twelve triangles."""
    corners = [(a, b, c) for a in (0, x) for b in (0, y) for c in (0, z)]
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    lines = [f"v {a} {b} {c}" for a, b, c in corners]
    return "\n".join([*lines, *("f " + " ".join(str(k + 1) for k in quad) for quad in quads), extra]) + "\n"


def write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes in two splits; boxes, clouds, twins, notes, and four that are refused for three reasons."""
    root = tmp_path / "set"
    write(root / "train" / "chair" / "a.obj", box_obj(1, 2, 5))
    write(root / "train" / "chair" / "b.obj", box_obj(3, 1, 2, extra="l 1 2\nl 2 3\nl 3 4"))
    write(root / "train" / "lamp" / "a.obj", box_obj(1, 2, 5))
    write(root / "test" / "lamp" / "again.obj", box_obj(1, 2, 5, extra="# other bytes"))
    write(root / "test" / "lamp" / "c.obj", box_obj(4, 4, 4, extra="l 1 2"))
    np.save(root / "test" / "lamp" / "d.npy", ball(70))
    np.save(root / "test" / "lamp" / "e.npy", ball(90, seed=1))
    np.save(root / "train" / "chair" / "few.npy", ball(33))
    np.save(root / "train" / "lamp" / "less.npy", ball(41))
    write(root / "train" / "chair" / "bad.obj", "v 0 0\n")
    write(root / "train" / "stool" / "empty.obj", "")
    write(root / "train" / "chair" / "read me.md", "x")
    return root


@pytest.mark.parametrize("processes", [1, 3])
def test_all_numbers_of_a_folder(folder, processes):
    heard = []
    corpus = open_corpus(f"folder:{folder}", points=64)
    report = survey(corpus, processes=processes, progress=lambda *told: heard.append(told))
    assert heard[-1] == (11, 4)
    assert (report.shapes, report.refused, report.ignored, report.points) == (11, 4, 1, 64)
    assert report.formats == {"npy": 4, "obj": 7}
    assert report.groups == (
        Group("test", "lamp", 4, 0),
        Group("train", "chair", 4, 2),
        Group("train", "lamp", 2, 1),
        Group("train", "stool", 1, 1),
    )
    usable = ["train/chair/a.obj", "train/chair/b.obj", "train/lamp/a.obj", "test/lamp/again.obj", "test/lamp/c.obj"]
    usable += ["test/lamp/d.npy", "test/lamp/e.npy"]
    assert report.size == sum((folder / name).stat().st_size for name in usable)
    assert (report.meshes, report.clouds) == (5, 2)
    assert report.faces == Spread(12, 12, 12)
    assert report.vertices == Spread(8, 8, 8)
    assert report.area == Spread(22, 34, 96)  # 3 x 1 x 2; three of 1 x 2 x 5; 4 x 4 x 4
    assert report.stored == Spread(70, 80, 90)
    sides = [np.array(side, float) for side in ((1, 2, 5), (3, 1, 2), (1, 2, 5), (1, 2, 5), (4, 4, 4))]
    sides += [np.ptp(cloud.astype(float), axis=0) for cloud in (ball(70), ball(90, seed=1))]
    for axis, name in enumerate("xyz"):
        along = [float(side[axis]) for side in sides]
        assert report.extent[name] == Spread(min(along), float(np.median(along)), max(along))
    assert report.extent["longest"] == Spread(3, 5, float(max(side.max() for side in sides)))
    assert report.smallest == "train/chair/b.obj"
    low = np.min([ball(70).min(axis=0), ball(90, seed=1).min(axis=0), np.zeros(3)], axis=0)
    np.testing.assert_array_equal(report.low, low.astype(float))

    assert report.same_bytes is not None
    assert (report.same_bytes.groups, report.same_bytes.surplus) == (1, 1)
    assert (report.same_bytes.across_splits, report.same_bytes.across_classes) == (0, 1)
    assert report.same_bytes.examples[0].ids == ("train/chair/a.obj", "train/lamp/a.obj")
    content = report.same_content
    assert (content.groups, content.surplus, content.across_splits, content.across_classes) == (1, 2, 1, 1)
    assert content.examples[0].ids == ("test/lamp/again.obj", "train/chair/a.obj", "train/lamp/a.obj")

    few, *others = report.refusals
    assert few.shapes == 2
    assert few.reason.startswith("has N points, N were requested")
    assert [(Path(source).name, said.split(",")[0]) for source, said in few.examples] == [
        ("few.npy", "has 33 points"),
        ("less.npy", "has 41 points"),
    ]
    assert sorted(reason.shapes for reason in others) == [1, 1]
    assert any(reason.reason == "the file is empty" for reason in others)
    [note] = report.notes
    assert (note.shapes, note.count) == (2, 4)
    assert "line" in note.what
    assert note.examples == ("test/lamp/c.obj", "train/chair/b.obj")


def test_many_shapes_of_one_reason_have_three_examples_whoever_reads_first(tmp_path):
    for number in range(83):
        write(tmp_path / f"{number:02d}.xyz", f"1 2 nonsense{number}\n" if number % 2 else "")
    write(tmp_path / "good.obj", box_obj(1, 2, 3))
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    one, three = (survey(corpus, processes=processes) for processes in (1, 3))
    assert one == three
    assert [reason.shapes for reason in one.refusals] == [42, 41]
    assert [Path(source).name for source, _ in one.refusals[1].examples] == ["01.xyz", "03.xyz", "05.xyz"]


def test_the_same_shape_in_other_formats_is_the_same_content(tmp_path):
    for name, data in (
        ("a.off", cube_text("off")),
        ("b.obj", cube_text("obj")),
        ("c.ply", cube_ply()),
        ("d.ply", cube_text("ply-ascii")),
        ("e.stl", cube_stl()),
        ("f.off", cube_text("modelnet-off")),
    ):
        write(tmp_path / name, data)
    report = survey(open_corpus(f"folder:{tmp_path}", points=64))
    assert report.same_bytes is not None
    assert report.same_bytes.groups == 0
    [same] = report.same_content.examples
    assert same.shapes >= 5  # an STL may cut its squares by the other diagonal
    assert report.formats == {"obj": 1, "off": 2, "ply": 2, "stl": 1}


def test_a_file_beside_a_shape_belongs_to_its_bytes(tmp_path):
    from tests.corpora.test_gltf_beside import write_glb

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_glb(tmp_path / name / "x.glb", beside="there.bin")
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    report = survey(corpus)
    assert report.same_bytes is not None
    assert report.same_bytes.groups == 1
    assert report.size == sum(path.stat().st_size for path in tmp_path.rglob("*.*"))
    other = np.frombuffer((tmp_path / "b" / "there.bin").read_bytes(), "<f4") * 2
    (tmp_path / "b" / "there.bin").write_bytes(other.astype("<f4").tobytes())
    changed = survey(corpus)
    assert changed.same_bytes is not None
    assert (changed.same_bytes.groups, changed.same_content.groups) == (0, 0)


def test_rows_have_no_files_and_no_faces(tmp_path):
    clouds = np.stack([ball(80, seed=k) for k in (0, 1, 0, 2, 3)])
    clouds[4, 3] = np.nan
    path = tmp_path / "a.npz"
    np.savez(
        path,
        points=clouds,
        label=np.array([0, 1, 1, -1, 0]),
        label_names=np.array(["bed", "car"]),
        split=np.array(["train", "train", "test", "test", "test"]),
    )
    report = survey(open_corpus(f"npz:{path}", points=48))
    assert (report.shapes, report.refused, report.meshes, report.clouds) == (5, 1, 0, 4)
    assert (report.faces, report.area, report.vertices, report.same_bytes, report.size) == (None,) * 5
    assert report.formats == {"npz": 5}
    assert report.stored == Spread(80, 80, 80)
    assert report.same_content.examples[0].ids == ("a/000000", "a/000002")
    assert (report.same_content.across_splits, report.same_content.across_classes) == (1, 1)
    assert report.groups == (
        Group("test", None, 1), Group("test", "bed", 1, 1), Group("test", "car", 1),
        Group("train", "bed", 1), Group("train", "car", 1),
    )  # fmt: skip


def test_synthetic_shapes_are_meshes_by_one_process_or_several():
    corpus = open_corpus("synthetic:?count=70&seed=5&split=all&rotate=so3", points=40)
    one, several = survey(corpus, processes=1), survey(corpus, processes=2)
    assert one == several
    assert one.meshes == 70
    low, high = np.array(one.low), np.array(one.high)
    for index in range(70):
        points = corpus[index].points
        assert (points >= low - 1e-5).all()
        assert (points <= high + 1e-5).all()
    assert one.up.axis is None, "any rotation"


def test_which_way_is_up_is_guessed_from_what_stands():
    corpus = open_corpus("synthetic:?count=360&seed=11", points=32)
    up = survey(corpus, processes=1).up
    assert (up.axis, up.sign, up.sure) == ("z", 1, "clear")
    assert sum(up.votes.values()) + up.silent == 360


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_cone_stands_on_its_base(axis, sign):
    turn = np.linspace(0, 2 * np.pi, 37)
    cone = np.concatenate([np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1), [[0, 0, 2.5]]])
    cone[:, 2] *= sign
    turned = np.roll(cone, axis - 2, axis=1) * 7 + 3
    assert standing(turned) == sign * (axis + 1)
    assert standing(np.concatenate([turned, 6 - turned])) == 0, "with its mirror image below it nothing tells"


def test_flat_shapes_say_nothing():
    flat = np.random.default_rng(0).normal(size=(50, 3)) * (1, 2, 0)
    assert standing(flat) == 0


def test_a_corpus_of_which_nothing_can_be_used(tmp_path):
    write(tmp_path / "a.xyz", "")
    report = survey(open_corpus(f"folder:{tmp_path}", points=64))
    assert (report.refused, report.extent, report.low, report.smallest, report.same_bytes) == (1, {}, None, None, None)
    assert report.up.axis is None


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_went_stops_the_report(tmp_path, processes, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for number in range(40):
        np.save(tmp_path / f"{number}.npy", ball(64, seed=number))
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    (tmp_path / "23.npy").unlink()
    with pytest.raises(MachineFault, match=r"(?s)23\.npy.*ENOENT.*nothing is quarantined"):
        survey(corpus, processes=processes)


def test_memory_that_is_used_up_is_the_machine(tmp_path, monkeypatch):
    def read(data, path, options):
        raise MemoryError

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    np.save(tmp_path / "a.npy", ball(64))
    monkeypatch.setitem(READERS, ".npy", replace(READERS[".npy"], read=read))
    with pytest.raises(MachineFault, match=errno.errorcode[errno.ENOMEM]):
        survey(open_corpus(f"folder:{tmp_path}", points=64))


def test_a_bug_of_a_reader_names_the_shape(tmp_path, monkeypatch):
    def read(data, path, options):
        raise KeyError("gone")

    np.save(tmp_path / "a.npy", ball(64))
    monkeypatch.setitem(READERS, ".npy", Format(read, "npy"))
    with pytest.raises(CorpusError, match=r"(?s)'a\.npy'.*KeyError.*bug of the reader"):
        survey(open_corpus(f"folder:{tmp_path}", points=64))
