"""What folders and names mean: splits at one level, one form of Unicode, links, patterns, parts, axes."""

import logging
import os
import stat
import unicodedata
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora import CorpusError, ShapeError, files, open_corpus
from pipeline.corpora.files import FileCorpus
from pipeline.corpora.formats.geometry import Format, Surface
from tests.support.corpora import ball


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, ball(128, seed=len(name)))


def meaning(root: Path, query: str = "") -> dict[str, tuple[str | None, str | None]]:
    """Label and split of every shape."""
    corpus = open_corpus(f"folder:{root}{query}", points=64)
    names = corpus.label_names
    labels = [None if (label := corpus.label(i)) is None else names[label] for i in range(len(corpus))]
    return {corpus.id(i): (labels[i], corpus[i].split) for i in range(len(corpus))}


def test_a_class_called_like_a_split_is_a_class(tmp_path):
    put(tmp_path, "car/0.npy", "train/0.npy", "plane/0.npy")
    assert meaning(tmp_path) == {
        "car/0.npy": ("car", None),
        "plane/0.npy": ("plane", None),
        "train/0.npy": ("train", None),
    }


@pytest.mark.parametrize("name", ["train", "test", "val", "Validation"])
def test_below_a_level_of_splits_such_a_name_is_a_class(tmp_path, name):
    put(tmp_path, "train/car/0.npy", f"train/{name}/0.npy", f"test/{name}/0.npy", "test/plane/0.npy")
    found = meaning(tmp_path)
    assert found[f"test/{name}/0.npy"] == (name, "test")
    assert found[f"train/{name}/0.npy"] == (name, "train")
    assert set(meaning(tmp_path, "?split=test")) == {f"test/{name}/0.npy", "test/plane/0.npy"}


def test_above_a_level_of_splits_such_a_name_is_a_class(tmp_path):
    put(tmp_path, "train/train/0.npy", "train/test/0.npy", "car/train/0.npy", "car/val/0.npy")
    assert meaning(tmp_path) == {
        "car/train/0.npy": ("car", "train"),
        "car/val/0.npy": ("car", "val"),
        "train/test/0.npy": ("train", "test"),
        "train/train/0.npy": ("train", "train"),
    }


def test_beside_a_level_of_splits_several_such_names_are_classes(tmp_path):
    put(tmp_path, "test/train/0.npy", "train/test/0.npy", "train/car/0.npy", "train/train/0.npy")
    assert meaning(tmp_path) == {
        "test/train/0.npy": ("train", "test"),
        "train/car/0.npy": ("car", "train"),
        "train/test/0.npy": ("test", "train"),
        "train/train/0.npy": ("train", "train"),
    }


def test_what_may_be_either_is_refused_with_how_to_say_it(tmp_path):
    put(tmp_path / "mixed", "train/0.npy", "test/0.npy", "car/0.npy")
    with pytest.raises(CorpusError, match=r"level 0 are test, train and others \(car\).*split_level=0 or"):
        meaning(tmp_path / "mixed")
    assert meaning(tmp_path / "mixed", "?split_level=none")["train/0.npy"] == ("train", None)
    assert meaning(tmp_path / "mixed", "?split_level=0")["train/0.npy"] == (None, "train")
    put(tmp_path / "both", "train/test/0.npy", "test/train/0.npy")
    with pytest.raises(CorpusError, match=r"levels 0 and 1 are named like splits.*split_level=0"):
        meaning(tmp_path / "both")
    assert meaning(tmp_path / "both", "?split_level=1")["train/test/0.npy"] == ("train", "test")


def test_one_class_in_two_forms_of_unicode(tmp_path):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("Stühle", "Möbel", "가구", "lampe"):
            put(tmp_path, f"{split}/{unicodedata.normalize(form, name)}/0.npy")
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    assert corpus.label_names == tuple(sorted(["Stühle", "Möbel", "가구", "lampe"]))
    assert len([corpus[i] for i in range(len(corpus))]) == 8


def test_two_spellings_are_two_files_of_one_class(tmp_path):
    names = [
        f"{unicodedata.normalize(one, 'Stühle')}/{unicodedata.normalize(other, 'é')}.npy"
        for one, other in product(("NFC", "NFD"), repeat=2)
    ]
    put(tmp_path, *names)
    corpus = open_corpus(f"folder:{tmp_path}?match=é.npy", points=64)
    assert sorted(corpus.id(i) for i in range(len(corpus))) == sorted(names)
    assert corpus.label_names == ("Stühle",)


def test_links_that_lead_nowhere_do_not_vanish(tmp_path, caplog):
    put(tmp_path, "set/box/0.npy", "real/1.npy")
    (tmp_path / "set" / "box" / "1.npy").symlink_to(tmp_path / "real" / "1.npy")
    (tmp_path / "set" / "box" / "2.npy").symlink_to(tmp_path / "gone" / "2.npy")
    (tmp_path / "set" / "lamp").symlink_to(tmp_path / "not mounted")
    corpus = open_corpus(f"folder:{tmp_path / 'set'}", points=64)
    assert [corpus.id(i) for i in range(len(corpus))] == ["box/0.npy", "box/1.npy", "box/2.npy"]
    with pytest.raises(ShapeError, match=r"is a link to .*gone/2.npy', which does not exist"):
        corpus[2]
    assert "1 links are broken, and their names are not those of shapes: lamp" in caplog.text
    assert corpus.ignored == 1
    put(tmp_path, "gone/2.npy")
    assert len(corpus[2].points) == 64  # the disk came back


def test_a_folder_that_cannot_be_listed_is_a_shape_that_cannot_be_read(tmp_path, monkeypatch):
    put(tmp_path, "box/0.npy", "lamp/0.npy")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "lamp":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    assert [corpus.id(i) for i in range(len(corpus))] == ["box/0.npy", "lamp/"]
    assert corpus.label_names == ("box", "lamp")
    with pytest.raises(ShapeError, match="is a folder that cannot be listed: Permission denied"):
        corpus[1]


def test_deep_and_tangled_trees_are_bounded(tmp_path):
    deep = tmp_path / "deep"
    put(deep, "/".join(["a"] * 70) + "/0.npy")
    with pytest.raises(CorpusError, match="more than 64 deep"):
        open_corpus(f"folder:{deep}", points=64)
    put(deep / "b", "0.npy")
    tangled = tmp_path / "tangled"
    for k in range(20):  # each folder has two links to the next: a million ways to the last
        (tangled / f"{k:02d}").mkdir(parents=True)
        for name in "ab":
            (tangled / f"{k:02d}" / name).symlink_to(tangled / f"{k + 1:02d}")
    put(tangled, "20/0.npy")
    with pytest.raises(CorpusError, match="on more than 1000 paths"):
        open_corpus(f"folder:{tangled}/00", points=64)


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("match=**/pointcloud.npy", ["a/pointcloud.npy", "b/c/pointcloud.npy"]),
        ("match=pointcloud.npy", ["a/pointcloud.npy", "b/c/pointcloud.npy"]),
        ("match=a/*", ["a/other.npy", "a/pointcloud.npy"]),
        ("match=b/**", ["b/c/pointcloud.npy", "b/x1.npy"]),
        ("match=?1.npy,other*", ["a/other.npy", "b/x1.npy"]),
        ("exclude=b/**", ["a/other.npy", "a/pointcloud.npy"]),
        ("match=b/**&exclude=x?.npy", ["b/c/pointcloud.npy"]),
        ("match=A/*", None),
        ("match=a.pointcloud.npy", None),
    ],
)
def test_files_are_chosen_by_patterns(tmp_path, query, kept):
    put(tmp_path, "a/pointcloud.npy", "a/other.npy", "b/c/pointcloud.npy", "b/x1.npy")
    if kept is None:
        with pytest.raises(CorpusError, match="no shapes in"):
            meaning(tmp_path, f"?{query}")
        return
    assert sorted(meaning(tmp_path, f"?{query}")) == kept
    corpus = open_corpus(f"folder:{tmp_path}?{query}", points=64)
    assert isinstance(corpus, FileCorpus)
    assert corpus.ignored == 4 - len(kept)
    assert corpus.identity != open_corpus(f"folder:{tmp_path}", points=64).identity


def test_query_points_beside_a_cloud_of_the_surface_are_passed_over(tmp_path):
    for name in ("0001", "0002"):
        folder = tmp_path / "02691156" / name
        folder.mkdir(parents=True)
        np.savez(folder / "pointcloud.npz", points=ball(128))
        np.savez(folder / "points.npz", points=ball(128), occupancies=np.zeros(16, np.uint8))
    corpus = open_corpus(f"folder:{tmp_path}?label=top", points=64)
    assert [corpus.id(i) for i in range(len(corpus))] == [f"02691156/{k}/pointcloud.npz" for k in ("0001", "0002")]
    assert corpus.ignored == 2


def test_y_up_is_turned_to_z_up(tmp_path):
    put(tmp_path, "a/0.npy")
    as_it_is = open_corpus(f"folder:{tmp_path}", points=64)[0].points
    turned = open_corpus(f"folder:{tmp_path}?up=y", points=64)[0].points
    np.testing.assert_array_equal(turned, np.stack([as_it_is[:, 0], -as_it_is[:, 2], as_it_is[:, 1]], axis=1))
    assert np.linalg.det(np.linalg.lstsq(as_it_is, turned, rcond=None)[0]) > 0.99  # a turn, no mirror
    identities = [open_corpus(f"folder:{tmp_path}{query}", points=64).identity for query in ("", "?up=y", "?up=z")]
    assert len({str(identity) for identity in identities}) == 3


def test_columns_and_parts_of_the_uri_reach_the_readers(tmp_path):
    (tmp_path / "a").mkdir()
    points = ball(100)
    rows = "".join(f"{k % 4},{z:.6f},{y:.6f},{x:.6f}\n" for k, (x, y, z) in enumerate(points))
    (tmp_path / "a" / "0.csv").write_text("part,up,north,east\n" + rows)
    corpus = open_corpus(f"folder:{tmp_path}?columns=east,north,up&parts=part", points=100)
    shape = corpus[0]
    order = [int(np.argmin(np.abs(points - point).sum(axis=1))) for point in shape.points]
    assert sorted(order) == list(range(100))
    assert shape.part_labels.tolist() == [k % 4 for k in order]  # points and parts stay together
    with pytest.raises(CorpusError, match="names 2 columns; expected x, y and z"):
        open_corpus(f"folder:{tmp_path}?columns=1,2", points=64)
    with pytest.raises(CorpusError, match="part_names= is given without parts="):
        open_corpus(f"folder:{tmp_path}?part_names=a,b", points=64)
    few = open_corpus(f"folder:{tmp_path}?columns=east,north,up&parts=part&part_names=a,b,c", points=64)
    with pytest.raises(ShapeError, match=r"part labels run from 0 to 3; expected 0\.\.2"):
        few[0]


def test_an_inspection_counts_what_a_file_holds(tmp_path):
    put(tmp_path, "a/0.npy")
    (tmp_path / "a" / "1.off").write_text("OFF\n4 1 0\n0 0 0\n3 0 0\n0 4 0\n9 9 9\n3 0 1 2\n")
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    cloud, mesh = corpus.inspect(0), corpus.inspect(1)
    assert (cloud.kind, cloud.stored, cloud.faces, cloud.area) == ("cloud", 128, 0, 0.0)
    assert (mesh.kind, mesh.stored, mesh.faces, mesh.area) == ("mesh", 3, 1, 6.0)
    assert mesh.high.tolist() == [3, 4, 0]  # the vertex that no face uses does not count


def test_a_link_that_leads_nowhere_is_no_fault_of_its_folder(tmp_path):
    put(tmp_path, "car/0.npy")
    for name, target in (("1.npy", "1.npy"), ("2.npy", "0.npy/x.npy"), ("3.npy", "k" * 300)):
        (tmp_path / "car" / name).symlink_to(target)
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    assert [corpus.id(i) for i in range(len(corpus))] == [f"car/{k}.npy" for k in range(4)]
    assert len(corpus[0].points) == 64
    for index, reason in (
        (1, "leads back to itself"),
        (2, "through something that is not a folder"),
        (3, "too long for this disk"),
    ):
        with pytest.raises(ShapeError, match=rf"is a link to .*{reason}"):
            corpus[index]
        with pytest.raises(ShapeError, match=reason):
            corpus.fingerprint(index)
        assert corpus.stamp(index)


def test_a_link_into_a_closed_folder_closes_no_other(tmp_path, monkeypatch):
    put(tmp_path, "set/car/0.npy", "closed/1.npy")
    link = tmp_path / "set" / "car" / "1.npy"
    link.symlink_to(tmp_path / "closed" / "1.npy")
    real, scandir = os.stat, os.scandir

    def closed(path, *arguments, **settings):
        if os.fspath(path) == str(link):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **settings)

    class Item:  # of a folder; the kernel would say the same to who is not root
        def __init__(self, entry):
            self.name, self.path, self.is_symlink = entry.name, entry.path, entry.is_symlink

        def is_dir(self):
            return stat.S_ISDIR(closed(self.path).st_mode)

    monkeypatch.setattr(os, "stat", closed)
    monkeypatch.setattr(os, "scandir", lambda path: nullcontext([Item(entry) for entry in scandir(path)]))
    corpus = open_corpus(f"folder:{tmp_path / 'set'}", points=64)
    assert [corpus.id(i) for i in range(len(corpus))] == ["car/0.npy", "car/1.npy"]
    assert len(corpus[0].points) == 64
    with pytest.raises(ShapeError, match="which this user may not enter"):
        corpus[1]


def test_a_folder_that_cannot_be_listed_has_a_stamp(tmp_path, monkeypatch):
    put(tmp_path, "box/0.npy", "lamp.v2/0.npy")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "lamp.v2":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    assert corpus.id(1) == "lamp.v2/"
    assert corpus.stamp(1)


def test_a_shape_whose_name_is_no_text_is_named(tmp_path, caplog):
    put(tmp_path, "car/0.npy", "car/two\nlines.npy")
    for name in (b"/\xff.npy", b"/\xfe.npy"):
        with open(os.fsencode(tmp_path / "car") + name, "wb") as file:
            file.write(b"x")
    with caplog.at_level(logging.WARNING):
        corpus = open_corpus(f"folder:{tmp_path}", points=64)
    assert [corpus.id(i) for i in range(len(corpus))] == ["car/0.npy", "car/two\nlines.npy"]
    assert corpus.ignored == 2
    assert r"2 files are skipped" in caplog.text
    assert r"car/\udcfe.npy, car/\udcff.npy" in caplog.text


@pytest.mark.parametrize(("level", "said"), [(0, "they are bus, car"), (1, "they do not exist")])
def test_a_split_level_that_names_no_split_is_refused(tmp_path, level, said):
    put(tmp_path, "car/0.npy", "bus/1.npy")
    with pytest.raises(CorpusError, match=rf"split_level={level} the folders .*{said}"):
        open_corpus(f"folder:{tmp_path}?split_level={level}", points=64)


@pytest.mark.parametrize("columns", ["1,1,2", "1,,2", "1,2,3,4", ","])
def test_columns_are_three_and_differ(tmp_path, columns):
    put(tmp_path, "a/0.npy")
    with pytest.raises(CorpusError, match=r"names \d columns; expected x, y and z"):
        open_corpus(f"folder:{tmp_path}?columns={columns}", points=64)


def test_columns_of_a_corpus_without_tables_are_refused(tmp_path):
    (tmp_path / "0.off").write_text("OFF\n3 1 0\n0 0 0\n3 0 0\n0 4 0\n3 0 1 2\n")
    with pytest.raises(CorpusError, match="none of the files is a table"):
        open_corpus(f"folder:{tmp_path}?columns=3,1,2", points=64)


# -- parts, by a reader that stands for those of meshes ---------------------------------------------------------------


@pytest.fixture
def named_parts(monkeypatch):
    """``.off`` files hold one triangle and a comment with the name of its part."""

    def read(data, path, options):
        name = data.decode("utf-8").partition("#")[2].strip()
        corners, faces = np.array([[0.0, 0, 0], [3, 0, 0], [0, 4, 0]]), np.array([[0, 1, 2]])
        return Surface(
            corners, faces, np.zeros(1, np.int64) if options.parts and name else None, (name,) if name else ()
        )

    monkeypatch.setitem(files.READERS, ".off", Format(read, "off"))

    def write(root: Path, **parts: str) -> None:
        for where, name in parts.items():
            path = root / f"{where.replace('_', '/')}.off"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {name}")

    return write


def parts_of(root: Path, query: str) -> dict[str, str]:
    """Part of each shape by name, and that all its points have it."""
    corpus = open_corpus(f"folder:{root}?{query}", points=64)
    found = {}
    for index in range(len(corpus)):
        labels = corpus[index].part_labels
        assert labels is not None
        assert labels.dtype == np.int16
        (number,) = set(labels.tolist())
        found[corpus.id(index)] = corpus.part_names[number]
    return found


def test_a_number_is_one_part_in_all_splits(tmp_path, named_parts):
    named_parts(tmp_path, train_0="wing", train_1="leg", test_0="wheel", test_1="wing")
    tables = {open_corpus(f"folder:{tmp_path}?parts=group&split={s}", points=64).part_names for s in ("train", "test")}
    assert tables == {("leg", "wheel", "wing")}
    assert parts_of(tmp_path, "parts=group&split=test") == {"test/0.off": "wheel", "test/1.off": "wing"}
    assert parts_of(tmp_path, "parts=group&part_names=wing,leg,wheel")["test/1.off"] == "wing"


def test_a_table_of_parts_needs_no_file_that_is_not_there(tmp_path, named_parts):
    named_parts(tmp_path, a_0="wing")
    (tmp_path / "a" / "1.off").symlink_to(tmp_path / "gone.off")
    corpus = open_corpus(f"folder:{tmp_path}?parts=group", points=64)
    assert corpus.part_names == ("wing",)
    with pytest.raises(ShapeError, match="which does not exist"):
        corpus[1]


def test_a_shape_without_the_parts_asked_for_is_refused(tmp_path, named_parts):
    named_parts(tmp_path, a_0="wing", a_1="")
    corpus = open_corpus(f"folder:{tmp_path}?parts=group", points=64)
    with pytest.raises(ShapeError, match="has no parts by parts=group"):
        corpus[1]
    assert open_corpus(f"folder:{tmp_path}", points=64)[1].part_labels is None


def test_a_part_whose_name_cannot_be_shown_refuses_its_shape_alone(tmp_path, named_parts):
    named_parts(tmp_path, a_0="wing", a_1="w\x1b[2J")
    corpus = open_corpus(f"folder:{tmp_path}?parts=group", points=64)
    assert corpus.part_names == ("wing",)
    with pytest.raises(ShapeError, match="which is none of part_names = wing"):
        corpus[1]


def test_more_parts_than_labels_can_tell_apart_are_refused(tmp_path, named_parts, monkeypatch):
    monkeypatch.setattr(files, "MAX_PARTS", 2)
    named_parts(tmp_path, a_0="wing", a_1="leg", a_2="wheel")
    with pytest.raises(CorpusError, match=r"more than 2 parts, up to .*2\.off"):
        open_corpus(f"folder:{tmp_path}?parts=group", points=64)
    with pytest.raises(CorpusError, match="3 names in part_names=; at most 2"):
        open_corpus(f"folder:{tmp_path}?parts=group&part_names=a,b,c", points=64)


@pytest.mark.parametrize(("names", "said"), [("a,a", "part 'a' occurs twice"), ("a,", "part '' is empty")])
def test_part_names_are_names(tmp_path, named_parts, names, said):
    named_parts(tmp_path, a_0="a")
    with pytest.raises(CorpusError, match=said):
        open_corpus(f"folder:{tmp_path}?parts=group&part_names={names}", points=64)
