"""What enters by npz, HDF5 or a list is checked where it enters."""

import os
import stat
import zipfile
import zlib

import h5py
import numpy as np
import pytest

from pipeline.corpora import CorpusError, ShapeError, entrance, faults, open_corpus
from pipeline.corpora.kinds import npz as npz_module
from tests.support.corpora import write_npz


def opened(path, points=64):
    return open_corpus(f"npz:{path}", points=points)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["", *"abcde"], "id '' of shape 0 is empty"),
        ([*"abcde", "f" * 2000], "of shape 5 has 2000 bytes; at most 1024"),
        ([*"abcde", "é" * 600], "of shape 5 has 1200 bytes"),
        ([*"abcd", "a\x1b[2J", "f"], r"id 'a\\x1b\[2J' of shape 4 holds control characters"),
        ([*"abcd", "two\nlines", "f"], "holds control characters"),
        ([*"abcd", "a\u202eb", "f"], "holds control characters"),
        ([*"abcd", "../up", "f"], "is a path that leaves the corpus"),
        ([*"abcd", "a/../../b", "f"], "is a path that leaves the corpus"),
        ([*"abcd", "/etc/passwd", "f"], "is a path that leaves the corpus"),
        ([*"abcde", "a"], "id 'a' occurs twice"),
    ],
)
def test_ids_that_are_no_names(tmp_path, ids, said):
    with pytest.raises(CorpusError, match=said):
        opened(write_npz(tmp_path / "x.npz", ids=np.array(ids)))


def test_ids_of_any_script_are_names(tmp_path):
    ids = ["가구/의자 1", "Möbel", "..hidden", "a..b", "c:d", "🪑"]
    corpus = opened(write_npz(tmp_path / "x.npz", ids=np.array(ids)))
    assert [corpus.id(i) for i in range(6)] == ids


@pytest.mark.parametrize("code", [0x7FFFFFFF, 0x110000, 0xD800, 0xDFFF])
@pytest.mark.parametrize("key", ["ids", "split", "label_names"])
def test_code_points_that_no_character_has(tmp_path, key, code):
    codes = np.arange(0x61, 0x67, dtype="<u4")
    codes[2] = code
    label = {"label": np.arange(6)} if key == "label_names" else {}
    with pytest.raises(CorpusError, match="invalid code points"):
        opened(write_npz(tmp_path / "x.npz", **{key: codes.view("<U1")}, **label))


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (np.full(6, 2**40), "label 1099511627776 of shape 0; expected a whole number from -1, at most 65536"),
        (np.array([0, 1, 2, 3, 4, -2]), "label -2 of shape 5"),
        (np.array([0, 1, 2, 3, 4, 2**64 - 1], dtype="u8"), "label 18446744073709551615 of shape 5"),
    ],
)
def test_labels_that_are_none(tmp_path, label, said):
    np.savez(tmp_path / "x.npz", points=np.random.default_rng(0).normal(size=(6, 99, 3)), label=label)
    with pytest.raises(CorpusError, match=said):
        opened(tmp_path / "x.npz")


def test_names_are_unique_and_can_be_shown(tmp_path):
    label = np.arange(6) % 2
    with pytest.raises(CorpusError, match="name 'a' occurs twice"):
        opened(write_npz(tmp_path / "x.npz", label=label, label_names=np.array(["a", "a"])))
    with pytest.raises(CorpusError, match="holds control characters"):
        opened(write_npz(tmp_path / "x.npz", label=label, label_names=np.array(["a", "b\x07"])))


def test_a_member_that_unpacks_to_more_than_clouds_can_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(entrance, "FREE_BYTES", 4096)
    np.savez_compressed(tmp_path / "x.npz", points=np.zeros((60, 3000, 3), "f4"))

    def read(*arguments, **settings):
        raise AssertionError("it was unpacked")

    monkeypatch.setattr(npz_module, "array_from_npy", read)
    with pytest.raises(CorpusError, match=r"'points' unpacks from .* a ratio that no point cloud has"):
        opened(tmp_path / "x.npz")


def test_an_array_that_stands_twice(tmp_path):
    path = write_npz(tmp_path / "x.npz")
    with zipfile.ZipFile(path) as archive:
        data = archive.read("points.npy")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("points.npy", data)
    with pytest.raises(CorpusError, match="two arrays 'points'"):
        opened(path)


@pytest.mark.parametrize("kind", ["npz", "modelnet40"])
def test_a_pipe_is_refused_and_not_opened(tmp_path, kind):
    (tmp_path / "train_files.txt").write_text("a.h5\n")
    path = tmp_path / ("x.npz" if kind == "npz" else "a.h5")
    os.mkfifo(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    with pytest.raises(CorpusError, match="is not a regular file"):
        open_corpus(f"{kind}:{path if kind == 'npz' else tmp_path}", points=64)


def test_absurd_numbers_in_a_uri_are_refused_before_memory_is_taken():
    with pytest.raises(CorpusError, match=r"count = 1000000000 is outside 1..10000000"):
        open_corpus("synthetic:?count=1000000000", points=64)
    with pytest.raises(CorpusError, match="points = 1000000000000; at most 10000000"):
        open_corpus("synthetic:?count=3", points=10**12)


# -- HDF5 --------------------------------------------------------------------------------------------------------------


def hdf5(folder, change=None, label=None, names="a\nb\nc\n"):
    folder.mkdir(exist_ok=True)
    (folder / "train_files.txt").write_text("a.h5\n")
    (folder / "test_files.txt").write_text("")
    (folder / "shape_names.txt").write_text(names)
    points = np.random.default_rng(0).normal(size=(6, 100, 3)).astype("f4")
    with h5py.File(folder / "a.h5", "w") as file:
        if change is None:
            file["data"] = points
        else:
            change(file, points)
        file["label"] = (np.arange(6) % 3).reshape(6, 1) if label is None else label
    return f"modelnet40:{folder}"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.inf, "label inf of shape 0"),
        (np.nan, "label nan of shape 0"),
        (1e30, "label 1e\\+30 of shape 0"),
        (0.5, "label 0.5 of shape 0"),
        (-1.0, "label -1.0 of shape 0; expected a whole number from 0"),
        (7.0, "3 names; the labels run to 7"),
    ],
)
def test_labels_of_hdf5_files(tmp_path, value, said):
    with pytest.raises(CorpusError, match=said):
        open_corpus(hdf5(tmp_path / "m", label=np.full((6, 1), value)), points=64)


def test_datasets_that_lie_elsewhere_are_not_followed(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(6 * 100 * 3 * 4))

    def external(file, points):
        file.create_dataset("data", shape=(6, 100, 3), dtype="f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])

    def link(file, points):
        file["data"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/data")

    def soft(file, points):
        file["other"] = points
        file["data"] = h5py.SoftLink("/other")

    def virtual(file, points):
        layout = h5py.VirtualLayout(shape=(6, 100, 3), dtype="f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "data", shape=(6, 100, 3))
        file.create_virtual_dataset("data", layout)

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.zeros((6, 100, 3), "f4")
    for number, change in enumerate((external, link, soft, virtual)):
        with pytest.raises(CorpusError, match=r"is a link|is stored in other files"):
            open_corpus(hdf5(tmp_path / f"m{number}", change), points=64)


def test_counts_that_no_bytes_back(tmp_path):
    def hollow(file, points):  # 3.6 GB that were never written: 2 kB of file
        file.create_dataset("data", shape=(6, 50_000_000, 3), dtype="f4", chunks=(1, 1000, 3))

    def bomb(file, points):
        file.create_dataset("data", data=np.zeros((6, 2_000_000, 3), "f4"), chunks=(1, 100_000, 3), compression="gzip")

    for number, change in enumerate((hollow, bomb)):
        with pytest.raises(CorpusError, match="a ratio that no point cloud has"):
            open_corpus(hdf5(tmp_path / f"m{number}", change), points=64)


def test_labels_are_sized_before_they_are_read(tmp_path):
    uri = hdf5(tmp_path / "m")
    with h5py.File(tmp_path / "m" / "a.h5", "r+") as file:
        del file["label"]
        file.create_dataset("label", shape=(50_000_000, 1), dtype="i8", chunks=(1000, 1))
    with pytest.raises(CorpusError, match="dataset 'label' unpacks from 0 to 400000000 bytes"):
        open_corpus(uri, points=64)


def test_one_chunk_may_not_be_larger_than_its_bytes_can_mean(tmp_path, monkeypatch):
    monkeypatch.setattr(entrance, "FREE_BYTES", 4096)

    def wide(file, points):  # 7 kB of points in a chunk of 12 MB, which HDF5 unpacks whole
        data = file.create_dataset(
            "data", shape=points.shape, dtype="f4", maxshape=(6, None, 3), chunks=(1, 10**6, 3), compression="gzip"
        )
        data[:] = points

    with pytest.raises(CorpusError, match="one chunk of dataset 'data' unpacks from"):
        open_corpus(hdf5(tmp_path / "m", wide), points=64)


def test_a_chunk_that_inflates_beyond_its_size_is_refused_uninflated(tmp_path):
    def bomb(file, points):
        data = file.create_dataset("data", shape=points.shape, dtype="f4", chunks=points.shape, compression="gzip")
        data.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(50 * points.nbytes)))

    corpus = open_corpus(hdf5(tmp_path / "m", bomb), points=64)
    with pytest.raises(ShapeError, match="a chunk of 'data' inflates to more than its 7200 bytes"):
        corpus[0]


@pytest.mark.parametrize(
    "packing",
    [
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf", "shuffle": True},
        {"fletcher32": True},
    ],
)
def test_every_usual_packing_is_read(tmp_path, packing):
    def packed(file, points):
        file.create_dataset("data", data=points, chunks=(4, 33, 3), **packing)

    corpus = open_corpus(hdf5(tmp_path / "m", packed), points=100)
    plain = open_corpus(hdf5(tmp_path / "plain"), points=100)
    for index in range(6):
        np.testing.assert_array_equal(corpus[index].points, plain[index].points)


def test_filters_whose_growth_is_not_known_are_refused(tmp_path):
    def scaled(file, points):
        file.create_dataset("data", data=points, chunks=(6, 100, 3), scaleoffset=4)

    with pytest.raises(CorpusError, match=r"compressed with the filters \[6\]; compress it with `h5repack"):
        open_corpus(hdf5(tmp_path / "m", scaled), points=64)


def test_a_file_of_many_names_is_refused_in_one_line(tmp_path):
    def many(file, points):
        for number in range(500):
            file.create_group(f"group{number:04d}")

    with pytest.raises(CorpusError, match=r"holds group0000, .*group0007, \.\.\.; expected") as caught:
        open_corpus(hdf5(tmp_path / "m", many), points=64)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("points", [0, 1, 31])
@pytest.mark.parametrize("kind", ["npz", "modelnet40"])
def test_clouds_of_too_few_points_are_refused_before_they_are_counted(tmp_path, kind, points):
    clouds = np.zeros((6, points, 3), "f4")
    np.savez(tmp_path / "x.npz", points=clouds)
    uri = f"npz:{tmp_path / 'x.npz'}"
    if kind == "modelnet40":
        uri = hdf5(tmp_path / "m", lambda file, _: file.create_dataset("data", data=clouds))
    with pytest.raises(CorpusError, match=rf"holds 6 clouds of {points} points; a shape needs at least 32"):
        open_corpus(uri, points=64)


# -- NPZ ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["label_names", "part_names"])
@pytest.mark.parametrize("names", [np.array("abc"), np.array([["a", "b"], ["c", "d"]])])
def test_names_that_are_no_list(tmp_path, key, names):
    numbers = {"label": np.arange(6) % 2} if key == "label_names" else {"part": np.zeros((6, 128), int)}
    with pytest.raises(CorpusError, match=rf"'{key}' has shape .*; expected a list of names"):
        opened(write_npz(tmp_path / "x.npz", **{key: names}, **numbers))


@pytest.mark.parametrize("value", [2**15, 40000, 2**40, -(2**40)])
@pytest.mark.parametrize("names", [{}, {"part_names": np.array(["a", "b"])}])
def test_part_labels_beyond_16_bits_do_not_wrap(tmp_path, value, names):
    points = np.random.default_rng(0).normal(size=(6, 200, 3))
    np.savez(tmp_path / "x.npz", points=points, part=np.full((6, 200), value), **names)
    with pytest.raises(CorpusError, match=r"part labels run from .*; expected 0\.\.32767"):
        opened(tmp_path / "x.npz")


def test_negative_part_labels_refuse_their_shapes_with_names_and_without(tmp_path):
    part = np.zeros((6, 200), int)
    part[2, 7] = -1
    points = np.random.default_rng(0).normal(size=(6, 200, 3))
    for number, names in enumerate(({}, {"part_names": np.array(["a"])})):
        np.savez(tmp_path / f"{number}.npz", points=points, part=part, **names)
        corpus = opened(tmp_path / f"{number}.npz")
        assert corpus[1].part_labels.tolist() == [0] * 64
        with pytest.raises(ShapeError, match="part labels run from -1 to 0"):
            corpus[2]
    np.savez(tmp_path / "x.npz", points=points, part=np.full((6, 200), -7))
    with pytest.raises(ShapeError, match="part labels run from -7 to -7"):
        opened(tmp_path / "x.npz")[0]


@pytest.mark.parametrize("word", ["", "a\nb", "\x1b[2J", "x" * 2000])
def test_splits_are_words_that_can_be_shown(tmp_path, word):
    with pytest.raises(CorpusError, match=r"split .*; rename it"):
        opened(write_npz(tmp_path / "x.npz", split=np.array(["train"] * 5 + [word])))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_members_packed_as_numpy_packs_none_are_refused(tmp_path, kind, method):
    path = write_npz(tmp_path / "x.npz")
    with zipfile.ZipFile(path) as archive:
        data = archive.read("points.npy")
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("points.npy", data)
    with pytest.raises((CorpusError, ShapeError), match=rf"'points' is packed by method {method}"):
        open_corpus(f"{kind}:{path if kind == 'npz' else tmp_path}", points=64)[0]


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_a_directory_that_claims_more_packed_bytes_than_the_file_has_is_not_believed(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(entrance, "FREE_BYTES", 4096)
    np.savez_compressed(tmp_path / "x.npz", points=np.zeros((1, 300_000, 3) if kind == "npz" else (300_000, 3), "f4"))
    raw = bytearray((tmp_path / "x.npz").read_bytes())
    directory = raw.index(b"PK\1\2")
    raw[directory + 20 : directory + 24] = (10**9).to_bytes(4, "little")  # its packed size
    (tmp_path / "x.npz").write_bytes(bytes(raw))
    with pytest.raises((CorpusError, ShapeError), match=r"'points' unpacks from .* a ratio that no point cloud has"):
        open_corpus(f"{kind}:{tmp_path / 'x.npz' if kind == 'npz' else tmp_path}", points=64)[0]


def test_an_axis_that_is_a_truth_value_is_refused(tmp_path):
    header = repr({"descr": "<f4", "fortran_order": False, "shape": (True, 3)}).ljust(117) + "\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + bytes(12))
    with pytest.raises(ShapeError, match="the NPY header has shape"):
        open_corpus(f"folder:{tmp_path}", points=64)[0]


@pytest.mark.parametrize("field", ["occupancies", "occ", "sdf", "inside", "SDF"])
def test_points_with_a_field_measured_in_space_are_no_surface(tmp_path, field):
    np.savez(tmp_path / "x.npz", points=np.random.default_rng(0).normal(size=(99, 3)), **{field: np.zeros(99)})
    with pytest.raises(ShapeError, match=f"contains query points with {field}, which lie off the surface"):
        open_corpus(f"folder:{tmp_path}", points=64)[0]


# -- files and places --------------------------------------------------------------------------------------------------


def test_a_file_of_holes_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "FREE_BYTES", 2**16)
    np.save(tmp_path / "whole.npy", np.random.default_rng(0).normal(size=(20_000, 3)))
    with open(tmp_path / "hollow.npy", "wb") as file:
        file.write((tmp_path / "whole.npy").read_bytes()[:200])
        file.truncate(2**40)
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    assert len(corpus[1].points) == 64
    with pytest.raises(ShapeError, match="has a size of 1099511627776 bytes, nearly all of them holes"):
        corpus[0]


@pytest.mark.parametrize("kind", ["folder", "npz", "modelnet40", "shapenet55"])
@pytest.mark.parametrize("place", ["k" * 300, "k/" * 3000, "~nobody-of-this-name/x", "%00", "%ff"])
def test_places_that_cannot_be_looked_at(kind, place):
    with pytest.raises(CorpusError, match=f"^{kind}:"):
        open_corpus(f"{kind}:{place}", points=64)


def test_a_class_is_no_way_out_of_the_corpus(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "modelnet40_shape_names.txt").write_text("..\n")
    (tmp_path / "m" / "modelnet40_train.txt").write_text(".._1\n")
    (tmp_path / ".._1.txt").write_text("".join(f"{k},{k * k},{k % 7}\n" for k in range(99)))
    with pytest.raises(CorpusError, match="leaves the corpus"):
        open_corpus(f"modelnet40:{tmp_path / 'm'}", points=64)
