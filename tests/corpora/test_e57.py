"""E57 files written by pye57 from numbers chosen here: poses, invalid points, and what the bytes do not hold."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora import ShapeError
from pipeline.corpora.files import read_geometry
from pipeline.corpora.formats.e57 import read_e57
from pipeline.corpora.formats.geometry import Malformed, ReadOptions

POINTS = np.random.default_rng(4).normal(size=(75, 3))


@pytest.fixture
def made(tmp_path):
    """Bytes of a file of two scans: 70 points as they are, and 5 turned so that x becomes y, then moved."""
    pye57 = pytest.importorskip("pye57", reason="pye57 of the extra 'formats' is not installed")

    def write(**more):
        file = pye57.E57(str(tmp_path / "made.e57"), mode="w")
        for part, pose in (
            (POINTS[:70], {}),
            (POINTS[70:], {"rotation": TURN, "translation": np.array([100, 0, 7.0])}),
        ):
            data = {f"cartesian{axis}": part[:, k] for k, axis in enumerate("XYZ")}
            file.write_scan_raw(data | {key: value[: len(part)] for key, value in more.items()}, **pose)
        file.close()
        return (tmp_path / "made.e57").read_bytes()

    return write


TURN = np.array([np.sqrt(0.5), 0, 0, np.sqrt(0.5)])  # (w, x, y, z): a quarter about z
PLACED = np.concatenate([POINTS[:70], np.stack([100 - POINTS[70:, 1], POINTS[70:, 0], POINTS[70:, 2] + 7], axis=1)])


def read(data, **options):
    return read_e57(data, Path("a.e57"), ReadOptions(**options))


def test_scans_are_placed_by_their_poses(made):
    cloud = read(made(), parts="scan")
    np.testing.assert_allclose(cloud.points, PLACED, atol=1e-12)
    assert cloud.points.dtype == np.float64
    assert np.bincount(cloud.parts).tolist() == [70, 5]
    assert not cloud.notes


def test_invalid_points_are_left_out_and_counted(made):
    states = np.zeros(70, np.int8)
    states[[1, 3]] = 2, 1
    cloud = read(made(cartesianInvalidState=states))
    np.testing.assert_allclose(cloud.points, np.delete(PLACED, [1, 3, 71, 73], axis=0), atol=1e-12)
    assert cloud.notes == {"points marked as invalid": 4}


def test_a_scan_in_spherical_coordinates_is_placed_too(tmp_path):
    """Written by libe57 itself, as pye57 writes cartesian scans alone; its pose turns and moves it."""
    pye57 = pytest.importorskip("pye57", reason="pye57 of the extra 'formats' is not installed")
    from pye57 import libe57

    ranges = np.linalg.norm(POINTS, axis=1)
    columns = {
        "sphericalRange": ranges,
        "sphericalAzimuth": np.arctan2(POINTS[:, 1], POINTS[:, 0]),
        "sphericalElevation": np.arcsin(POINTS[:, 2] / ranges),
        "sphericalInvalidState": np.arange(75) % 25 == 3,
    }
    file = pye57.E57(str(tmp_path / "made.e57"), mode="w")
    image = file.image_file

    def structure(**values):
        node = libe57.StructureNode(image)
        for name, value in values.items():
            node.set(name, libe57.FloatNode(image, value) if isinstance(value, float) else value)
        return node

    prototype = structure(
        **{name: libe57.FloatNode(image, 0.0, libe57.E57_DOUBLE, -9.0, 9.0) for name in list(columns)[:3]},
        sphericalInvalidState=libe57.IntegerNode(image, 0, 0, 2),
    )
    points = libe57.CompressedVectorNode(image, prototype, libe57.VectorNode(image, True))
    w, x, y, z = TURN.tolist()
    pose = structure(rotation=structure(w=w, x=x, y=y, z=z), translation=structure(x=100.0, y=0.0, z=7.0))
    file.data3d.append(structure(guid=libe57.StringNode(image, "{1}"), pose=pose, points=points))
    arrays, buffers = file.make_buffers(list(columns), 75)
    for name, column in columns.items():
        arrays[name][:] = column
    writer = points.writer(buffers)
    writer.write(75)
    writer.close()
    file.close()
    cloud = read((tmp_path / "made.e57").read_bytes())
    turned = np.stack([100 - POINTS[:, 1], POINTS[:, 0], POINTS[:, 2] + 7], axis=1)
    np.testing.assert_allclose(cloud.points, turned[np.arange(75) % 25 != 3], atol=1e-12)
    assert cloud.notes == {"points marked as invalid": 3}


def test_spherical_points_follow_the_standard():
    """x = r cos(e) cos(a), y = r cos(e) sin(a), z = r sin(e), of range, azimuth and elevation."""
    pytest.importorskip("pye57", reason="pye57 of the extra 'formats' is not installed")
    from pye57.utils import convert_spherical_to_cartesian

    found = convert_spherical_to_cartesian(np.array([[2, np.pi / 2, 0], [2, 0, np.pi / 6]]))
    np.testing.assert_allclose(found, [[0, 2, 0], [np.sqrt(3), 0, 1]], atol=1e-12)


def test_damage_is_refused(made):
    whole = made()
    with pytest.raises(Malformed, match=f"declares {len(whole)} bytes, the file has {len(whole) - 1024}"):
        read(whole[:-1024])
    for at, value, reason in (
        (24, 2**40, "declares .* bytes of XML at"),
        (32, 9, "its XML is not complete XML"),
        (40, 0, "in pages of 0"),
    ):
        with pytest.raises(Malformed, match=reason):
            read(whole[:at] + struct.pack("<Q", value) + whole[at + 8 :])
    broken = bytearray(whole)
    broken[200] ^= 1  # a checksum for each page
    with pytest.raises(Malformed, match="cannot be read by pye57"):
        read(bytes(broken))


def test_xml_with_entities_is_refused(made):
    whole = made()
    at = whole.index(b"<?xml")
    doctype = b"<!DOCTYPE a [<!ENTITY b 'c'>]>"
    with pytest.raises(Malformed, match="its XML declares a document type"):
        read(whole[:at] + doctype + whole[at + len(doctype) :])


def test_other_bytes_and_a_missing_library_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pye57", None)
    text = b"<a/>"
    page = b"ASTM-E57" + struct.pack("<IIQQQQ", 1, 0, 1024, 48, len(text), 1024) + text
    for data, reason in (
        (b"ASTM-E58", "does not start with ASTM-E57"),
        (b"ASTM-E57" + bytes(9), "ends within its header"),
        (page + bytes(1024 - len(page)), r"is an E57 file, and pye57, .*pip install"),
    ):
        (tmp_path / "a.e57").write_bytes(data)
        with pytest.raises(ShapeError, match=reason):
            read_geometry(tmp_path / "a.e57")
