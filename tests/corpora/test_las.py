"""LAS and LAZ: headers and points written byte by byte, and packed by laspy."""

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora import ShapeError
from pipeline.corpora.files import read_geometry
from pipeline.corpora.formats.geometry import Malformed, ReadOptions
from pipeline.corpora.formats.las import read_las

COUNT = 70
SCALES, OFFSETS = (0.01, 0.02, 0.5), (500_000.0, 4_000_000.0, -7.0)
RAW = np.random.default_rng(3).integers(-1000, 1000, (COUNT, 3))
CLASSES = np.arange(COUNT) % 6 + 1
XYZ = RAW * SCALES + OFFSETS


def las(minor=2, form=0, count=COUNT, withheld=(), length=None, classes=CLASSES):
    """A LAS file by the specification's tables: format 0 (20 bytes a point), or 6 (30 bytes) in 1.4."""
    length = length or {0: 20, 6: 30}[form]
    size = 375 if minor == 4 else 227
    head = struct.pack("<4sHHIHH8sBB32s32sHHH", b"LASF", 0, 0, 0, 0, 0, b"", 1, minor, b"", b"", 1, 2020, size)
    head += struct.pack("<IIBHI5I", size, 0, form, length, count if form < 6 else 0, 0, 0, 0, 0, 0)
    head += struct.pack("<12d", *SCALES, *OFFSETS, 0, 0, 0, 0, 0, 0)
    if minor == 4:
        head += struct.pack("<QQIQ15Q", 0, 0, 0, count, *([0] * 15))
    assert len(head) == size
    body = b""
    for k, (x, y, z) in enumerate(RAW.tolist()):
        flag = k in withheld
        if form == 0:  # the class shares its byte with three flags, withheld is the highest
            point = struct.pack("<iiiHBBbBH", x, y, z, 9, 0, classes[k] | (0x80 if flag else 0), 0, 0, 1)
        else:  # the flags have a byte of their own, withheld is bit 2
            point = struct.pack("<iiiHBBBBhHd", x, y, z, 9, 0, 4 if flag else 0, classes[k], 0, 0, 1, 0.0)
        body += point + bytes(length - len(point))
    return head + body


def read(data, **options):
    return read_las(data, Path("a.las"), ReadOptions(**options))


@pytest.fixture(scope="module", autouse=True)
def _installed():
    pytest.importorskip("laspy", reason="laspy of the extra 'formats' is not installed")
    pytest.importorskip("lazrs", reason="lazrs of the extra 'formats' is not installed")


@pytest.mark.parametrize(("minor", "form"), [(0, 0), (2, 0), (3, 0), (4, 0), (4, 6)])
def test_points_are_scaled_and_moved(minor, form):
    cloud = read(las(minor, form), parts="classification")
    np.testing.assert_allclose(cloud.points, XYZ, rtol=0, atol=1e-9)
    assert cloud.points.dtype == np.float64
    assert cloud.parts.tolist() == CLASSES.tolist()
    assert not cloud.notes


def test_bytes_behind_the_known_fields_are_passed_over():
    np.testing.assert_allclose(read(las(length=27)).points, XYZ, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("minor", "form"), [(2, 0), (4, 6)])
def test_withheld_points_are_left_out_and_counted(minor, form):
    cloud = read(las(minor, form, withheld=(0, 5, 69)), parts="classification")
    kept = np.delete(np.arange(COUNT), [0, 5, 69])
    np.testing.assert_allclose(cloud.points, XYZ[kept], rtol=0, atol=1e-9)
    assert cloud.parts.tolist() == CLASSES[kept].tolist()
    assert cloud.notes == {"points marked as withheld": 3}


def laz(data):
    import laspy

    out = io.BytesIO()
    laspy.read(io.BytesIO(data)).write(out, do_compress=True, laz_backend=laspy.LazBackend.Lazrs)
    return out.getvalue()


@pytest.mark.parametrize(("minor", "form"), [(2, 0), (4, 6)])
def test_packed_points_are_the_same(tmp_path, minor, form):
    path = tmp_path / "a.LAZ"
    path.write_bytes(laz(las(minor, form, withheld=(4,))))
    cloud = read_geometry(path, ReadOptions(parts="classification"))
    np.testing.assert_allclose(cloud.points, np.delete(XYZ, 4, axis=0), rtol=0, atol=1e-9)


def changed(data, at, value):
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (las()[:-1], "declares 70 points of 20 bytes from byte 227; the file has 1626 bytes"),
        (las()[:100], "of 100 bytes; it ends within its header"),
        (las(count=2**32 - 1), "declares 4294967295 points"),
        (las(4, 6, count=2**60), "declares 1152921504606846976 points"),
        (changed(las(), 25, b"\x05"), "is LAS 1.5; versions 1.0 to 1.4 are read"),
        (changed(las(), 96, struct.pack("<I", 10**6)), "points from byte 1000000; the file has 1627"),
        (changed(las(), 100, struct.pack("<I", 2**31)), "declares 2147483648 records"),
        (changed(las(), 131, struct.pack("<d", float("nan"))), "scales .nan, 0.02, 0.5."),
        (changed(las(), 139, struct.pack("<d", 0.0)), "scales .0.01, 0.0, 0.5."),
        (changed(las(), 104, b"\x0b"), "cannot be read by laspy"),  # a point format that there is not
        (changed(las(), 105, struct.pack("<H", 19)), "cannot be read by laspy"),  # shorter than its format
    ],
)
def test_headers_that_the_bytes_do_not_hold_are_refused(data, reason):
    with pytest.raises(Malformed, match=reason):
        read(data)


def test_packed_points_that_are_damaged_or_promised_are_refused():
    whole = laz(las())
    for length in range(len(whole) // 2, len(whole), 97):
        with pytest.raises(Malformed):
            read(whole[:length])
    with pytest.raises(Malformed, match="a ratio that no point cloud has"):
        read(changed(whole, 107, struct.pack("<I", 10**8)))
    with pytest.raises(Malformed, match=r"declares 75 points|cannot be read by laspy"):
        read(changed(whole, 107, struct.pack("<I", 75)))


def test_parts_that_are_no_dimension_are_refused():
    with pytest.raises(Malformed, match="parts=layer was requested; its dimensions are X, Y, Z, intensity"):
        read(las(), parts="layer")


def test_without_the_library_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lazrs", None)
    (tmp_path / "a.laz").write_bytes(laz(las()))
    with pytest.raises(ShapeError, match=r"a\.laz.*is a LAZ file, and lazrs.*pip install 'i2p-pretrain\[formats\]'"):
        read_geometry(tmp_path / "a.laz")
