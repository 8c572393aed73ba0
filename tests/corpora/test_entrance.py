"""What enters by npz, HDF5 or a list is checked where it enters."""

import os
import stat
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpora import CorpusError, ShapeError, entrance, open_corpus
from pipeline.corpora import npz as npz_module
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
        ([*"abcd", "../up", "f"], "is a path that leads out of the corpus"),
        ([*"abcd", "a/../../b", "f"], "is a path that leads out of the corpus"),
        ([*"abcd", "/etc/passwd", "f"], "is a path that leads out of the corpus"),
        ([*"abcde", "a"], "id 'a' stands twice"),
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
    with pytest.raises(CorpusError, match="code points that no character has"):
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
    with pytest.raises(CorpusError, match="name 'a' stands twice"):
        opened(write_npz(tmp_path / "x.npz", label=label, label_names=np.array(["a", "a"])))
    with pytest.raises(CorpusError, match="holds control characters"):
        opened(write_npz(tmp_path / "x.npz", label=label, label_names=np.array(["a", "b\x07"])))


def test_a_member_that_unpacks_to_more_than_clouds_can_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(entrance, "FREE_BYTES", 4096)
    np.savez_compressed(tmp_path / "x.npz", points=np.zeros((60, 3000, 3), "f4"))

    def read(*arguments, **settings):
        raise AssertionError("it was unpacked")

    monkeypatch.setattr(npz_module, "array_from_npy", read)
    with pytest.raises(CorpusError, match=r"'points' unpacks from .* no cloud packs so small"):
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
    with pytest.raises(CorpusError, match="is no regular file"):
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
        with pytest.raises(CorpusError, match="no cloud packs so small"):
            open_corpus(hdf5(tmp_path / f"m{number}", change), points=64)


# -- whatever the bytes ------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["npz", "modelnet40"]), st.data())
def test_damaged_sets_are_read_or_refused(tmp_path_factory, kind, data):
    folder = tmp_path_factory.mktemp("damaged")
    if kind == "npz":
        path = write_npz(folder / "x.npz", label=np.arange(6) % 2, ids=np.array(list("abcdef")))
        uri = f"npz:{path}"
    else:
        uri = hdf5(folder / "m")
        path = folder / "m" / "a.h5"
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2]))]))
    try:
        corpus = open_corpus(uri, points=64)
        for index in range(min(len(corpus), 8)):
            assert corpus[index].points.shape == (64, 3)
    except (CorpusError, ShapeError):
        pass
