"""Stored sets: npz, ModelNet40 in both releases, ShapeNet-55."""

import h5py
import numpy as np
import pytest

from pipeline.corpora import CorpusError, ShapeError, check_shape, open_corpus
from pipeline.corpora.kinds.shapenet55 import SYNSETS
from tests.support.corpora import ball, write_npz
from tests.support.reference import shared_dir


def test_npz_gives_what_it_holds(tmp_path):
    path = write_npz(tmp_path / "set.npz")
    corpus = open_corpus(f"npz:{path}", points=100)
    assert (len(corpus), corpus.label_names, corpus.part_names) == (6, ("even", "odd"), ("a", "b", "c"))
    shape = corpus[2]
    assert (shape.id, shape.label, shape.split) == ("thing/2", 0, "test")
    stored = np.load(path)
    where = {p.tobytes(): k for k, p in enumerate(stored["points"][2].astype(np.float32))}
    rows = [where[p.tobytes()] for p in shape.points]
    assert len(set(rows)) == 100
    assert rows != sorted(rows)
    assert (shape.part_labels == stored["part"][2][rows]).all()
    test = open_corpus(f"npz:{path}?split=test", points=100)
    assert [test.id(i) for i in range(len(test))] == ["thing/2", "thing/5"]
    assert test[0].points.tobytes() == shape.points.tobytes()


def test_npz_needs_only_points_and_its_identity_is_its_content(tmp_path):
    np.savez(tmp_path / "a.npz", points=np.stack([ball(64)] * 2))
    np.savez_compressed(tmp_path / "b.npz", points=np.stack([ball(64)] * 2))
    np.savez(tmp_path / "c.npz", points=np.stack([ball(64, 1)] * 2))
    a, b, c = (open_corpus(f"npz:{tmp_path}/{name}.npz", points=64) for name in "abc")
    assert a.identity == b.identity != c.identity
    assert (a.label_names, a.part_names, a.label(0), a.id(1)) == ((), (), None, "a/000001")
    assert a.fingerprint(0) == a.fingerprint(1) != c.fingerprint(0)


def test_one_bad_cloud_does_not_stop_an_npz(tmp_path):
    points = np.stack([ball(64, k) for k in range(3)])
    points[1, 5] = np.nan
    corpus = open_corpus(f"npz:{write_npz(tmp_path / 'x.npz', 3, 64, points=points)}", points=64)
    assert corpus[0].points.shape == corpus[2].points.shape == (64, 3)
    with pytest.raises(ShapeError, match=r"x\.npz row 1: 1 of 64 points are not finite"):
        corpus[1]
    with pytest.raises(ShapeError, match="has 64 points, 128 were requested"):
        open_corpus(f"npz:{tmp_path}/x.npz", points=128)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"points": np.zeros((4, 5), np.float32)},
            r"'points' has shape \(4, 5\) and type float32; expected \(n, points, 3\)",
        ),
        ({"points": np.zeros((4, 64, 3), int)}, "type int64"),
        ({"label": np.zeros(3, int)}, r"'label' has shape \(3,\); expected \(6,\) for 6 clouds of 128 points"),
        ({"label": np.full(6, 2)}, "labels run from 2 to 2; there are 2 label names"),
        ({"label": np.zeros(6)}, "'label' is of type float64; expected integers"),
        ({"ids": np.array(["same"] * 6)}, "id 'same' occurs twice"),
        ({"part": np.zeros((6, 5), int)}, r"'part' has shape \(6, 5\); expected \(6, 128\)"),
        ({"split": np.arange(6)}, "'split': the array is of type int64; expected text"),
        (
            {"ids": np.array([{}] * 6)},
            "'ids': the array is of type object; expected text",
        ),  # a pickle inside: never opened
    ],
)
def test_a_wrong_npz_is_named(tmp_path, changes, message):
    path = write_npz(tmp_path / "x.npz", **changes)
    with pytest.raises(CorpusError, match=message):
        open_corpus(f"npz:{path}", points=64)
    with pytest.raises(CorpusError, match=r"no shapes of split 'dev'; its splits are test, train"):
        open_corpus(f"npz:{write_npz(tmp_path / 'y.npz')}?split=dev", points=64)


@pytest.mark.parametrize("name", ["labeled_psb", "classic_meshes", "modelnet10_vox"])
def test_real_sets_open(name):
    corpus = open_corpus(f"npz:{shared_dir('data') / name / name}.npz?split=test", points=1024)
    for i in range(0, len(corpus), max(1, len(corpus) // 10)):
        shape = corpus[i]
        check_shape(shape.points, shape.id)
        assert 0 <= shape.label < len(corpus.label_names)


def hdf5(folder, n=5, points=128, **changes):
    """A small ModelNet40 in the HDF5 layout: two train files, one test file."""
    folder.mkdir(exist_ok=True)
    (folder / "shape_names.txt").write_text("airplane\nbathtub\n")
    for split, names in (("train", ["ply_data_train0.h5", "ply_data_train1.h5"]), ("test", ["ply_data_test0.h5"])):
        (folder / f"{split}_files.txt").write_text("".join(f"data/modelnet40_ply_hdf5_2048/{name}\n" for name in names))
        for k, name in enumerate(names):
            arrays = {
                "data": np.stack([ball(points, 10 * k + j) for j in range(n)]),
                "label": (np.arange(n) % 2).astype(np.uint8)[:, None],
                **changes,
            }
            with h5py.File(folder / name, "w") as file:
                for key, array in arrays.items():
                    if array is not None:
                        file.create_dataset(key, data=array, compression="gzip")


def test_modelnet40_hdf5(tmp_path):
    hdf5(tmp_path)
    corpus = open_corpus(f"modelnet40:{tmp_path}", points=100)
    assert (len(corpus), corpus.label_names) == (10, ("airplane", "bathtub"))
    assert (corpus.id(7), corpus.label(6), corpus[7].split) == ("ply_data_train1/0002", 1, "train")
    stored = {p.tobytes() for p in ball(128, 12)}
    assert {p.tobytes() for p in corpus[7].points} <= stored
    assert len(open_corpus(f"modelnet40:{tmp_path}?split=test", points=100)) == 5
    assert len(open_corpus(f"modelnet40:{tmp_path}?split=all", points=100)) == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((5, 128, 6), np.float32)}, r"dataset 'data' has shape \(5, 128, 6\)"),
        ({"label": np.zeros((4, 1), np.uint8)}, "one whole number for each of the 5 clouds"),
        ({"label": np.full((5, 1), 0.5)}, "label 0.5 of shape 0; expected a whole number"),
        ({"label": np.full((5, 1), 7)}, "2 names; the labels run to 7"),
        ({"label": None}, "holds data; expected the datasets 'data' and 'label'"),
    ],
)
def test_a_wrong_modelnet40_is_named(tmp_path, changes, message):
    hdf5(tmp_path, **changes)
    with pytest.raises(CorpusError, match=message):
        open_corpus(f"modelnet40:{tmp_path}", points=64)


def test_a_real_hdf5_file_is_read():
    """Of doubles, with repeats, not centred, and with no test list."""
    folder = shared_dir("data") / "formats" / "modelnet40_ply_hdf5_2048"
    listed = [name.split("/")[-1] for name in (folder / "train_files.txt").read_text().split()]
    rows = 0
    for name in listed:
        with h5py.File(folder / name) as file:
            rows += len(file["data"])
    corpus = open_corpus(f"modelnet40:{folder}", points=2048)
    assert len(corpus) == rows > 0
    assert corpus.label_names == tuple((folder / "shape_names.txt").read_text().split())
    for i in range(len(corpus)):
        assert corpus[i].points.shape == (2048, 3)
    with pytest.raises(CorpusError, match=r"test_files\.txt: this list is missing.*Is the download complete\?"):
        open_corpus(f"modelnet40:{folder}?split=test", points=64)


def test_modelnet40_normal_resampled(tmp_path):
    (tmp_path / "modelnet40_shape_names.txt").write_text("airplane\nnight_stand\n")
    (tmp_path / "modelnet40_train.txt").write_text("airplane_0001\nnight_stand_0001\n")
    (tmp_path / "modelnet40_test.txt").write_text("night_stand_0002\n")
    for name in ("airplane_0001", "night_stand_0001", "night_stand_0002"):
        path = tmp_path / name.rpartition("_")[0] / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        np.savetxt(path, np.concatenate([ball(128), ball(128)], axis=1), delimiter=",", fmt="%.6f")
    corpus = open_corpus(f"modelnet40:{tmp_path}?split=all", points=64)
    assert [corpus.id(i) for i in range(3)] == [
        "airplane/airplane_0001",
        "night_stand/night_stand_0001",
        "night_stand/night_stand_0002",
    ]
    assert [corpus.label(i) for i in range(3)] == [0, 1, 1]
    assert [corpus[i].split for i in range(3)] == ["train", "train", "test"]
    assert len(open_corpus(f"modelnet40:{tmp_path}", points=64)) == 2
    (tmp_path / "night_stand" / "night_stand_0001.txt").unlink()
    with pytest.raises(
        ShapeError, match=r"night_stand_0001\.txt: is listed in modelnet40_train\.txt, but does not exist"
    ):
        corpus[1]
    (tmp_path / "modelnet40_train.txt").write_text("zeppelin_0001\n")
    with pytest.raises(CorpusError, match="'zeppelin_0001' has no class of modelnet40_shape_names"):
        open_corpus(f"modelnet40:{tmp_path}", points=64)


def test_a_folder_that_is_no_modelnet40_says_what_was_looked_for(tmp_path):
    with pytest.raises(CorpusError, match=r"expected train_files\.txt and test_files\.txt .*or modelnet40_train\.txt"):
        open_corpus(f"modelnet40:{tmp_path}", points=64)


@pytest.mark.parametrize("place", ["", "ShapeNet55-34", "data/ShapeNet55-34"])
def test_shapenet55_is_found_where_people_keep_it(tmp_path, place):
    base = tmp_path / place
    (base / "ShapeNet-55").mkdir(parents=True)
    (base / "shapenet_pc").mkdir()
    (base / "ShapeNet-55" / "train.txt").write_text("02691156-aa.npy\n03001627-b-b.npy\n")
    (base / "ShapeNet-55" / "test.txt").write_text("04554684-cc.npy\n")
    for k, name in enumerate(("02691156-aa", "03001627-b-b")):
        np.save(base / "shapenet_pc" / f"{name}.npy", ball(256, k))
    corpus = open_corpus(f"shapenet55:{tmp_path}", points=200)
    assert [corpus.id(i) for i in range(2)] == ["02691156/aa", "03001627/b-b"]
    assert [corpus.label_names[corpus.label(i)] for i in range(2)] == ["airplane", "chair"]
    assert {p.tobytes() for p in corpus[1].points} <= {p.tobytes() for p in ball(256, 1)}
    test = open_corpus(f"shapenet55:{tmp_path}?split=test", points=200)
    assert (test.label(0), test.label_names) == (54, corpus.label_names)
    with pytest.raises(ShapeError, match=r"04554684-cc\.npy: is listed in test\.txt, but does not exist"):
        test[0]
    assert (
        open_corpus(f"shapenet55:{base / 'ShapeNet-55'}", points=200)[0].points.tobytes() == corpus[0].points.tobytes()
    )


def test_a_wrong_shapenet55_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"no train\.txt; looked in .*ShapeNet-55, "):
        open_corpus(f"shapenet55:{tmp_path}", points=64)
    (tmp_path / "train.txt").write_text("02691156-aa.npy\n../../etc/passwd\n")
    with pytest.raises(CorpusError, match=r"no folder shapenet_pc; looked for"):
        open_corpus(f"shapenet55:{tmp_path}", points=64)
    (tmp_path / "shapenet_pc").mkdir()
    with pytest.raises(
        CorpusError, match=r"train\.txt line 2: found '\.\./\.\./etc/passwd'; expected <synset>-<hash>\.npy"
    ):
        open_corpus(f"shapenet55:{tmp_path}", points=64)
    assert len(SYNSETS) == 55
    assert list(SYNSETS) == sorted(SYNSETS)


def text_release(root, names=("airplane_0001", "night_stand_0001"), rows=128):
    """A small text release, all to train on; -> the folder. Cloud k is ball(rows, k)."""
    root.mkdir(exist_ok=True)
    (root / "modelnet40_shape_names.txt").write_text("airplane\nnight_stand\n")
    (root / "modelnet40_train.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "modelnet40_test.txt").write_text("airplane_0009\n")
    for k, name in enumerate(names):
        path = root / name.rpartition("_")[0] / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        np.savetxt(path, np.concatenate([ball(rows, k), ball(rows, k)], axis=1), delimiter=",", fmt="%.9g")
    return root


def test_modelnet40_comes_in_its_stored_order(tmp_path):
    """Rows of both releases are in the order of farthest points, so that the first of them are a sample."""
    text_release(tmp_path / "text")
    hdf5(tmp_path / "hdf5")
    for folder, index, seed in (("text", 1, 1), ("hdf5", 7, 12)):
        base = f"modelnet40:{tmp_path / folder}"
        stored = open_corpus(f"{base}?order=stored", points=50)
        assert stored[index].points.tobytes() == ball(128, seed)[:50].tobytes()
        drawn = open_corpus(base, points=50)
        assert drawn[index].points.tobytes() != stored[index].points.tobytes()
        assert "order" not in drawn.identity  # caches of before stay what they were
        assert {**drawn.identity, "order": "stored"} == stored.identity
    more = open_corpus(f"modelnet40:{tmp_path / 'text'}?order=stored&pad=repeat", points=200)[0].points
    assert more[:128].tobytes() == ball(128, 0).tobytes()
    assert {p.tobytes() for p in more[128:]} < {p.tobytes() for p in more[:128]}


def test_modelnet40_is_counted(tmp_path, caplog):
    text_release(tmp_path / "text")
    hdf5(tmp_path / "hdf5")
    for folder, name, whole in (("text", "normal resampled", "9,843"), ("hdf5", "HDF5 of 2048 points", "9,840")):
        caplog.clear()
        open_corpus(f"modelnet40:{tmp_path / folder}", points=64)
        assert f"does not contain all of ModelNet40, {name}: train:" in caplog.text
        assert f"{whole} in the release" in caplog.text
        with pytest.raises(
            CorpusError,
            match=rf"(?s)the ModelNet40, {name} in .* differs from the release.*test: .* 2,468 in the release",
        ):
            open_corpus(f"modelnet40:{tmp_path / folder}?counts=official&split=all", points=64)


def test_a_listed_hdf5_file_that_is_absent_is_named(tmp_path):
    hdf5(tmp_path)
    (tmp_path / "ply_data_train1.h5").unlink()
    with pytest.raises(CorpusError, match=r"ply_data_train1\.h5: is listed in train_files\.txt, but missing"):
        open_corpus(f"modelnet40:{tmp_path}", points=64)


def test_pickled_caches_are_refused_with_what_to_read_instead(tmp_path):
    path = tmp_path / "modelnet40_test_8192pts_fps.dat"
    path.write_bytes(b"\x80\x04]q\x00.")
    for place in (path, tmp_path):
        with pytest.raises(CorpusError, match=r"_fps\.dat is a pickled cache .*Use the text release"):
            open_corpus(f"modelnet40:{place}", points=64)
