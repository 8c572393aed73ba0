"""ShapeNetPart: points and parts stay together, and the table of 16 categories and 50 parts holds."""

import json

import numpy as np
import pytest

from pipeline.corpora import CorpusError, ShapeError, open_corpus
from pipeline.corpora.kinds import shapenetpart
from pipeline.corpora.kinds.shapenetpart import CATEGORIES, FOLDER, PART_NAMES
from tests.support.commands import run
from tests.support.corpora import ball

FIRST = dict(zip(CATEGORIES, np.cumsum([0] + [parts for _, parts in CATEGORIES.values()])[:-1].tolist(), strict=True))


def cloud_lines(name, seed, points=300):
    """x y z nx ny nz part of a cloud; the part is the first of the category where z is negative, else the second."""
    points = ball(points, seed)
    part = FIRST[name] + (points[:, 2] > 0)
    return np.concatenate([points, ball(len(points), seed + 1)[:, :3] * 0 + 0.5, part[:, None]], axis=1)


def write_release(root, names=tuple(CATEGORIES), *, folder=FOLDER):
    """One shape of each category in each split."""
    home = root / folder
    (home / "train_test_split").mkdir(parents=True)
    (home / "synsetoffset2category.txt").write_text("".join(f"{name}\t{CATEGORIES[name][0]}\n" for name in names))
    for at, split in enumerate(("train", "val", "test")):
        listed = []
        for k, name in enumerate(names):
            synset, id = CATEGORIES[name][0], f"u{split}-{k}" if k % 2 else f"{k:x}abc{at}"
            (home / synset).mkdir(exist_ok=True)
            np.savetxt(home / synset / f"{id}.txt", cloud_lines(name, 100 * at + k), fmt="%.6f")
            listed.append(f"shape_data/{synset}/{id}")
        (home / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(listed))
    return home


@pytest.fixture
def release(tmp_path, monkeypatch):
    monkeypatch.setattr(shapenetpart, "LISTED", {"train": 16, "val": 16, "test": 16})
    monkeypatch.setattr(shapenetpart, "ABSENT", 0)
    return write_release(tmp_path)


def test_the_table_has_16_categories_and_50_parts():
    assert (len(CATEGORIES), len(PART_NAMES), len(set(PART_NAMES))) == (16, 50, 50)
    assert [FIRST[name] for name in ("Airplane", "Car", "Lamp", "Motorbike", "Skateboard", "Table")] == [
        0, 8, 24, 30, 44, 47,
    ]  # fmt: skip
    assert PART_NAMES[44:48] == ("Skateboard/0", "Skateboard/1", "Skateboard/2", "Table/0")


def test_points_and_parts_stay_together(release, tmp_path):
    corpus = open_corpus(f"shapenetpart:{tmp_path}?split=trainval", points=200)
    assert (len(corpus), corpus.label_names, corpus.part_names) == (32, tuple(CATEGORIES), PART_NAMES)
    for index in (0, 14, 20):
        shape = corpus[index]
        name = corpus.label_names[shape.label]
        assert (shape.points.shape, shape.part_labels.dtype) == ((200, 3), np.int16)
        assert (shape.part_labels == FIRST[name] + (shape.points[:, 2] > 0)).all()
        assert len(set(shape.part_labels.tolist())) == 2
    assert corpus[0].id == "02691156/0abc0"
    stored = open_corpus(f"shapenetpart:{release}?order=stored", points=200)[3]
    written = np.loadtxt(release / "02958343" / "utrain-3.txt")[:200]
    assert (stored.points == written[:, :3].astype(np.float32)).all()
    assert (stored.part_labels == written[:, 6]).all()


def test_a_part_of_another_category_refuses_the_shape(release, tmp_path):
    path = next((release / "04225987").glob("*.txt"))
    rows = np.loadtxt(path)
    corpus = open_corpus(f"shapenetpart:{tmp_path}?split=all", points=32)
    index = next(i for i in range(len(corpus)) if corpus.source(i) == str(path))
    for wrong, said in (
        (47, "44 to 47; a Skateboard has 44 to 46"),
        (50, r"expected 0\.\.49"),
        (44.5, "values other than whole numbers"),
    ):
        rows[7, 6] = wrong
        np.savetxt(path, rows, fmt="%.6f")
        with pytest.raises(ShapeError, match=said):
            open_corpus(f"shapenetpart:{tmp_path}?split=all", points=300)[index]
    rows[7, 6] = 47  # found whichever points are drawn
    np.savetxt(path, rows, fmt="%.6f")
    with pytest.raises(ShapeError, match="a Skateboard has 44 to 46"):
        corpus[index]


def test_lists_that_cannot_be_are_refused(release, tmp_path):
    def listing(split, names):
        (release / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(names))

    def refused(message):
        with pytest.raises(CorpusError, match=message):
            open_corpus(f"shapenetpart:{tmp_path}?counts=any", points=64)

    one = "shape_data/02691156/0abc0"
    listing("train", [one, one])
    refused("02691156/0abc0 occurs twice in this list")
    listing("train", [one])
    listing("test", [one])
    refused("02691156/0abc0 is in the list of train too")
    listing("test", ["shape_data/02691156/x", "shape_data/00000000/x"])
    refused("entry 1: 'shape_data/00000000/x'; expected shape_data/<synset>/<id>")
    listing("test", {"a": 1})
    refused("holds a dict; expected a list")
    (release / "train_test_split" / "shuffled_test_file_list.json").write_text("[")
    refused("not a JSON list")
    (release / "train_test_split" / "shuffled_test_file_list.json").unlink()
    refused("this list is missing")


def test_a_set_that_is_not_whole_is_refused(tmp_path):
    home = write_release(tmp_path, ("Airplane", "Table"))
    with pytest.raises(CorpusError) as refused:
        open_corpus(f"shapenetpart:{tmp_path}?split=test", points=64)
    said = str(refused.value)
    assert "test: 2 shapes, 2,874 in the release" in said
    assert "test: no shape of Bag, Cap, Car" in said
    assert "synsetoffset2category.txt: without Bag" in said
    part = open_corpus(f"shapenetpart:{tmp_path}?split=test&counts=any", points=64)
    assert [part.label(i) for i in range(2)] == [0, 15]  # numbered by the table, whatever is there
    (home / "synsetoffset2category.txt").write_text("Table\t04379243\nAirplane\t02691156\n")
    with pytest.raises(CorpusError, match="lines are in another order"):
        open_corpus(f"shapenetpart:{tmp_path}?counts=any", points=64)
    (home / "synsetoffset2category.txt").write_text("Table\t02691156\n")
    with pytest.raises(CorpusError, match=r"line 1: .* is none of the 16 categories"):
        open_corpus(f"shapenetpart:{tmp_path}?counts=any", points=64)


def test_other_releases_are_told_apart(tmp_path):
    (tmp_path / "v0" / "02691156" / "points_label").mkdir(parents=True)
    with pytest.raises(CorpusError, match="the release without normals"):
        open_corpus(f"shapenetpart:{tmp_path}/v0", points=64)
    (tmp_path / "h5").mkdir()
    (tmp_path / "h5" / "train_hdf5_file_list.txt").write_text("ply_data_train0.h5\n")
    with pytest.raises(CorpusError, match="the HDF5 release of PointNet"):
        open_corpus(f"shapenetpart:{tmp_path}/h5", points=64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"(?s)no ShapeNetPart in .*shapenet\.cs\.stanford\.edu"):
        open_corpus(f"shapenetpart:{tmp_path}/empty", points=64)


def test_check_counts_shapes_without_a_file_and_allows_those_of_the_release(release, tmp_path, capsys, monkeypatch):
    uri = f"shapenetpart:{tmp_path}?split=trainval"
    found = run(capsys, "corpus", "check", uri, "--points", 64, "--workers", 1)
    assert (found.code, "read        32 shapes, 0 refused" in found.out) == (0, True)
    (release / "02691156" / "0abc0.txt").unlink()
    found = run(capsys, "corpus", "check", uri, "--points", 64, "--workers", 1)
    assert found.code == 1
    assert "1 shapes cannot be used" in found.out
    assert "is listed in shuffled_train_file_list.json, but does not exist" in found.out
    monkeypatch.setattr(shapenetpart, "ABSENT", 1)
    found = run(capsys, "corpus", "check", uri, "--points", 64, "--workers", 1)
    assert (found.code, "1 are listed by the release but exist in no copy of it" in found.out) == (0, True)
