"""Trees of files: labels, splits, order, what is ignored, links."""

import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora import CorpusError, ShapeError, corpus_fingerprint, open_corpus
from tests.support.corpora import ball, cube_text


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".off":
            path.write_bytes(cube_text("modelnet-off"))
        elif path.suffix.lower() == ".npy":
            with path.open("wb") as file:  # by a handle: np.save would add a second suffix to .NPY
                np.save(file, ball(256, seed=len(name)))
        else:
            path.write_text("nothing to read")


def test_modelnets_layout_gives_class_and_split(tmp_path):
    put(
        tmp_path,
        "sofa/train/sofa_0001.off",
        "sofa/test/sofa_0002.OFF",
        "bed/Train/bed_0001.off",
        "bed/test/bed_0009.off",
    )
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    assert [corpus.id(i) for i in range(4)] == [
        "bed/Train/bed_0001.off",
        "bed/test/bed_0009.off",
        "sofa/test/sofa_0002.OFF",
        "sofa/train/sofa_0001.off",
    ]
    assert corpus.label_names == ("bed", "sofa")
    assert [corpus.label(i) for i in range(4)] == [0, 0, 1, 1]
    assert [corpus[i].split for i in range(4)] == ["train", "test", "test", "train"]
    test = open_corpus(f"folder:{tmp_path}?split=test", points=64)
    assert [test.id(i) for i in range(len(test))] == ["bed/test/bed_0009.off", "sofa/test/sofa_0002.OFF"]
    assert test.label_names == corpus.label_names
    with pytest.raises(CorpusError, match=r"none of the 4 shapes in .* lies in a folder named val"):
        open_corpus(f"folder:{tmp_path}?split=val", points=64)


def test_label_rules(tmp_path):
    put(tmp_path, "03001627/a1/models/model.off", "02691156/b2/models/model.off", "loose.off")
    top = open_corpus(f"folder:{tmp_path}?label=top", points=64)
    assert top.label_names == ("02691156", "03001627")
    assert [top.label(i) for i in range(3)] == [0, 1, None]
    assert open_corpus(f"folder:{tmp_path}", points=64).label_names == ("models",)
    none = open_corpus(f"folder:{tmp_path}?label=none", points=64)
    assert none.label_names == ()
    assert none[0].label is None


def test_ignored_files_are_counted(tmp_path, caplog):
    put(tmp_path, "a/x.off", "a/x.mtl", "a/.hidden.off", ".git/y.off", "README.md", "a/cloud.NPY")
    with caplog.at_level(logging.INFO):
        corpus = open_corpus(f"folder:{tmp_path}", points=64)
    assert [corpus.id(i) for i in range(len(corpus))] == ["a/cloud.NPY", "a/x.off"]
    assert corpus.ignored == 3  # a hidden folder is not entered
    assert "3 files ignored" in caplog.text
    only = open_corpus(f"folder:{tmp_path}?formats=npy", points=64)
    assert [only.id(i) for i in range(len(only))] == ["a/cloud.NPY"]


def test_an_empty_folder_says_what_is_read(tmp_path):
    put(tmp_path, "notes.md")
    with pytest.raises(
        CorpusError, match=r"no shapes in .* \(1 other files\); these are read: \.3mf .*\.csv .*\.glb \.gltf .*\.npy"
    ):
        open_corpus(f"folder:{tmp_path}", points=64)
    with pytest.raises(CorpusError, match="does not exist"):
        open_corpus(f"folder:{tmp_path}/gone", points=64)
    with pytest.raises(CorpusError, match="is not a folder"):
        open_corpus(f"folder:{tmp_path}/notes.md", points=64)


def test_links_are_followed_but_never_in_a_circle(tmp_path):
    put(tmp_path, "real/chair/a.off")
    root = tmp_path / "set"
    root.mkdir()
    (root / "chair").symlink_to(tmp_path / "real" / "chair")
    (tmp_path / "real" / "chair" / "loop").symlink_to(root)
    (root / "self").symlink_to(root)
    (root / "broken.off").symlink_to(tmp_path / "gone")
    corpus = open_corpus(f"folder:{root}", points=64)
    assert [corpus.id(i) for i in range(len(corpus))] == ["broken.off", "chair/a.off"]
    with pytest.raises(ShapeError, match=r"broken.off: is a link to '.*gone', which does not exist"):
        corpus[0]


def test_seed_id_and_nothing_else_decide_the_points(tmp_path):
    put(tmp_path, "a/x.off", "a/y.off", "a/z.npy")
    first = open_corpus(f"folder:{tmp_path}", points=64)
    before = [first[i].points.tobytes() for i in range(3)]
    assert before[0] != before[1]  # the same cube, other ids
    put(tmp_path, "a/aa.off")
    grown = open_corpus(f"folder:{tmp_path}", points=64)
    assert [grown[i].points.tobytes() for i in (1, 2, 3)] == before
    assert grown.identity == first.identity
    other = open_corpus(f"folder:{tmp_path}?seed=1", points=64)
    assert all(other[i + 1].points.tobytes() != before[i] for i in range(3))


def test_the_fingerprint_follows_the_bytes(tmp_path):
    put(tmp_path, "a/x.off", "a/y.off")
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    whole, one = corpus_fingerprint(corpus), corpus_fingerprint(corpus, [0])
    assert corpus.fingerprint(0) == corpus.fingerprint(1)
    (tmp_path / "a/y.off").write_bytes(cube_text("off"))
    assert corpus_fingerprint(corpus) != whole
    assert corpus_fingerprint(corpus, [0]) == one
    (tmp_path / "a/y.off").write_bytes(b"")
    with pytest.raises(ShapeError, match=r"y\.off: the file is empty"):
        corpus[1]
    assert corpus_fingerprint(corpus) != whole


def test_percent_escapes_reach_odd_paths(tmp_path):
    put(tmp_path, "what?&=/a.off")
    assert len(open_corpus(f"folder:{tmp_path}/what%3F&=", points=64)) == 1


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("folder", "is not a corpus; expected kind:location"),
        ("floder:x", "'floder' is not a kind of corpus; the kinds are\n  synthetic:"),
        ("folder:", "no location; write folder:DIR"),
        ("folder:.?seed", "option 'seed' has no value"),
        ("folder:.?seed=1&seed=2", "option seed is given twice"),
        ("folder:.?formats=off,dwg", "formats: 'dwg' not known; there are off, obj"),
        ("folder:.?seed=-1", r"seed = -1 is outside 0\.\."),
    ],
)
def test_wrong_uris_are_named(uri, message):
    with pytest.raises(CorpusError, match=message):
        open_corpus(uri, points=64)


def test_a_corpus_of_no_points_is_refused():
    with pytest.raises(CorpusError, match="points = 16; a shape needs at least 32 points"):
        open_corpus("synthetic:", points=16)
