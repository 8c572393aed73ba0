"""Whatever the bytes of an NPZ, NPY or HDF5 file are: it is read, or refused as data, within a bound of memory."""

import io
import math
import struct
import warnings
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpora import CorpusError, MachineFault, ShapeError, faults, open_corpus
from tests.support.fuzz import MEMORY, bounded_memory, flipped

POINTS = np.random.default_rng(0).normal(size=(6, 100, 3)).astype("f4")
EXAMPLES = settings(max_examples=250, deadline=None)

SHAPES = st.sampled_from(
    [
        *[(6, 100, 3), (100, 3), (6, 100), (6,), (), (0,), (6, 0, 3), (0, 9, 3), (6, 1, 3), (3,)],
        *[(10**12, 0, 3), (10**9, 32, 3), (10**20, 3), (-1, 3), (True, 3), (6.0, 3), (1,) * 9],
    ]
)
TYPES = st.sampled_from(
    [
        *["<f4", ">f8", "<f2", "<f16", "<i8", "<u8", "|b1", "<U3", ">U1", "<U0", "|S4", "|O", "<c8", "<M8[s]", "|V4"],
        *["<U99999999", [("x", "<f4")], [("x", "<f4", (3,))], ("<f4", (3,)), [], None, 5, "{"],
    ]
)
VALUES = st.sampled_from(
    [
        *[np.full(6, 2**40), np.full(6, 2**64 - 1, "u8"), np.full(6, -128, "i1"), np.full((6, 100), 2**63, "u8")],
        *[np.full((6, 100), -(2**40)), np.array(["\u202e"] * 6), np.array([""] * 6), np.array("abc"), np.array(0)],
        *[np.full((6, 100, 3), np.nan), np.full((6, 100, 3), 1e300), np.array([["a"] * 3] * 6), np.zeros((6, 64, 3))],
    ]
)
GOOD = {
    "points": POINTS,
    "label": np.arange(6) % 3,
    "label_names": np.array(["x", "y", "z"]),
    "ids": np.array(list("abcdef")),
    "split": np.array(["train"] * 6),
    "part": np.zeros((6, 100), int),
    "part_names": np.array(["a"]),
}


@pytest.fixture(autouse=True)
def no_second_try(monkeypatch):
    monkeypatch.setattr(faults, "PAUSES", ())


def read_or_refused(uri: str) -> int:
    """Read a corpus; -> how many shapes it gave. Fails for what is neither a shape nor a refusal."""
    given = 0
    with bounded_memory():
        try:
            corpus = open_corpus(uri, points=32)
        except MachineFault:
            raise
        except CorpusError as error:
            str(error).encode()  # a reason can be written down
            return 0
        for index in range(min(len(corpus), 7)):
            try:
                shape = corpus[index]
                corpus.fingerprint(index)
            except ShapeError as error:
                str(error).encode()
                continue
            assert shape.points.shape == (32, 3)
            assert np.isfinite(shape.points).all()
            if shape.part_labels is not None:
                assert shape.part_labels.min() >= 0
                assert shape.part_labels.max() < max(len(corpus.part_names), 2**15)
            label = corpus.label(index)
            assert label is None or 0 <= label < len(corpus.label_names)
            given += 1
    return given


def npy(draw: st.DrawFn) -> bytes:
    """A NPY file of an odd header, with a body of the size that it promises, where that is little."""
    shape, descr = draw(SHAPES), draw(TYPES)
    header = repr({"descr": descr, "fortran_order": draw(st.sampled_from([False, True, 0])), "shape": shape})
    header = draw(st.sampled_from([header] * 6 + ["{" * 500, "[" * 9000, header[:-3], "9" * 6000])).ljust(117) + "\n"
    wide = draw(st.booleans())
    size = struct.pack("<I" if wide else "<H", len(header))
    try:
        promised = math.prod(shape) * np.dtype(descr).itemsize
    except (TypeError, ValueError, SyntaxError):
        promised = 24
    body = int(promised) if 0 <= promised < 20_000 else draw(st.sampled_from([0, 7200]))
    return b"\x93NUMPY" + bytes([2 if wide else 1, 0]) + size + header.encode() + bytes(body)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@st.composite
def npz_bytes(draw: st.DrawFn) -> bytes:
    """A whole NPZ file of which one array is odd, or some bytes are changed."""
    odd = draw(st.sampled_from([None, *GOOD]))
    kind = draw(st.sampled_from(["value", "value", "header", "absent", "twice", "packing"]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for key, array in GOOD.items():
            data, method, times = saved(array), None, 1
            match kind if key == odd else None:
                case "value":
                    data = saved(draw(VALUES))
                case "header":
                    data = npy(draw)
                case "absent":
                    times = 0
                case "twice":
                    times = 2
                case "packing":
                    method = draw(st.sampled_from([zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
            with warnings.catch_warnings(action="ignore"):  # of a name that occurs twice
                for _ in range(times):
                    archive.writestr(f"{key}.npy", data, method)
    return draw(flipped(file.getvalue())) if odd is None else file.getvalue()


@st.composite
def hdf5_bytes(draw: st.DrawFn) -> bytes:
    file = io.BytesIO()
    packing: dict = {}
    if draw(st.booleans()):
        packing = {
            "chunks": draw(st.sampled_from([(1, 100, 3), (6, 100, 3), (4, 7, 2)])),
            "compression": draw(st.sampled_from([None, "gzip", "lzf"])),
            "shuffle": draw(st.booleans()),
            "fletcher32": draw(st.booleans()),
        }
    labels = [np.arange(6) % 3] * 4 + [np.full(6, np.inf), np.full(6, 1e30), np.zeros(3), np.array([b"a"] * 6)]
    labels += [np.zeros(6, "f2"), np.zeros(6, [("a", "i4")])]
    with h5py.File(file, "w", libver=draw(st.sampled_from(["earliest", "latest"]))) as out:
        kind = draw(st.sampled_from(["f4"] * 4 + ["f8", ">f4", "f2", "i4"]))
        out.create_dataset("data", data=POINTS.astype(kind), **packing)
        out["label"] = labels[draw(st.integers(0, len(labels) - 1))]
    return draw(flipped(file.getvalue()))


@EXAMPLES
@given(npz_bytes())
def test_any_npz_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    path.write_bytes(data)
    read_or_refused(f"npz:{path}")


@EXAMPLES
@given(hdf5_bytes())
def test_any_hdf5_file_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("hdf5")
    (folder / "a.h5").write_bytes(data)
    (folder / "train_files.txt").write_text("a.h5\n")
    read_or_refused(f"modelnet40:{folder}")


@EXAMPLES
@given(st.data())
def test_any_npy_or_npz_in_a_folder_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("folder")
    one = data.draw(st.sampled_from(["npy", "npz"]))
    (folder / f"x.{one}").write_bytes(data.draw(npz_bytes()) if one == "npz" else npy(data.draw))
    read_or_refused(f"folder:{folder}{data.draw(st.sampled_from(['', '?columns=3,1,2', '?parts=1']))}")


def test_what_is_whole_is_read_within_the_same_bound(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", **GOOD)
    assert read_or_refused(f"npz:{tmp_path / 'x.npz'}") == 6
    with pytest.raises(MemoryError), bounded_memory():
        np.ones(2 * MEMORY, np.uint8)
