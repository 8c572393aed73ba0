"""glTF files written here byte by byte: what a node, a skin, an instance or an accessor says is what is read."""

import base64
import contextlib
import json
import struct
import sys
import zlib
from typing import Any

import DracoPy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.gltf import beside_gltf, read_gltf

TRIANGLE = np.array([[0, 0, 0], [3, 0, 0], [0, 5, 0]], np.float32)


class Writer:
    """A glTF document that grows by accessors, one buffer for all."""

    def __init__(self, **document: Any) -> None:
        self.document: dict[str, Any] = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": [], **document}
        self.data = b""

    def view(self, data: bytes, **more: Any) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        self.document["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data), **more}
        )
        self.data += data
        return len(self.document["bufferViews"]) - 1

    def array(self, values: np.ndarray, **more: Any) -> int:
        codes = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
        columns = 1 if values.ndim == 1 else values.shape[1]
        return self.accessor(
            bufferView=self.view(values.tobytes()),
            componentType=codes[values.dtype.str[1:]],
            count=len(values),
            type={1: "SCALAR", 3: "VEC3", 4: "VEC4", 16: "MAT4"}[columns],
            **more,
        )

    def accessor(self, **accessor: Any) -> int:
        self.document["accessors"].append(accessor)
        return len(self.document["accessors"]) - 1

    def mesh(self, values: np.ndarray = TRIANGLE, faces: Any = None, **more: Any) -> int:
        primitive = {"attributes": {"POSITION": self.array(np.asarray(values, np.float32))}, **more}
        if faces is not None:
            primitive["indices"] = self.array(np.asarray(faces, np.uint16).reshape(-1))
        self.document.setdefault("meshes", []).append({"primitives": [primitive]})
        return len(self.document["meshes"]) - 1

    def glb(self) -> bytes:
        text = json.dumps({**self.document, "buffers": [{"byteLength": max(1, len(self.data))}]}).encode()
        text += b" " * (-len(text) % 4)
        data = self.data or b"\0\0\0\0"
        data += b"\0" * (-len(data) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

    def read(self, path, parts: str = "") -> Any:
        return read_gltf(self.glb(), path / "made.glb", ReadOptions(parts=parts))


def corners(surface: Surface) -> np.ndarray:
    """[F, 3, 3], in the file's order."""
    return surface.vertices[surface.faces]


def refused(writer: Writer, path, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        writer.read(path)


# -- nodes -------------------------------------------------------------------------------------------------------------


def test_nodes_place_a_mesh_as_often_as_they_name_it(tmp_path):
    quarter = np.sqrt(0.5)
    writer = Writer(
        nodes=[
            {"mesh": 0, "translation": [7, 0, 0], "rotation": [0, 0, quarter, quarter], "scale": [2, 3, 1]},
            {"children": [2], "scale": [-1, 1, 1]},
            {"mesh": 0, "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 10, 20, 30, 1]},
        ],
        scenes=[{"nodes": [0, 1]}],
    )
    writer.mesh()
    turned, mirrored = corners(writer.read(tmp_path))
    # scaled, then turned a quarter about z (x to y, y to -x), then moved
    np.testing.assert_allclose(turned, [[7, 0, 0], [7, 6, 0], [-8, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(mirrored, [[-10, 20, 30], [-13, 20, 30], [-10, 25, 30]], atol=1e-12)


def test_the_default_scene_is_read_and_all_roots_where_there_is_none(tmp_path):
    nodes = [{"mesh": 0}, {"mesh": 0, "translation": [1, 0, 0]}, {"mesh": 0, "translation": [2, 0, 0]}]
    for more, expected in (
        ({"scenes": [{"nodes": [0]}, {"nodes": [1, 2]}], "scene": 1}, [1, 2]),
        ({"scenes": [{"nodes": [2]}, {"nodes": [0]}]}, [2]),
        ({}, [0, 1, 2]),
    ):
        writer = Writer(nodes=nodes, **more)
        writer.mesh()
        assert corners(writer.read(tmp_path))[:, 0, 0].tolist() == expected


def test_instances_multiply_a_mesh(tmp_path):
    writer = Writer()
    writer.mesh()
    moved = writer.array(np.array([[0, 0, 0], [4, 0, 0]], np.float32))
    scaled = writer.array(np.array([[1, 1, 1], [2, 2, 2]], np.float32))
    writer.document["nodes"] = [
        {
            "mesh": 0,
            "translation": [0, 0, 9],
            "extensions": {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": moved, "SCALE": scaled}}},
        }
    ]
    first, second = corners(writer.read(tmp_path))
    np.testing.assert_allclose(first, TRIANGLE + np.array([0, 0, 9]))
    np.testing.assert_allclose(second, 2 * TRIANGLE + np.array([4, 0, 9]))


def test_a_skin_moves_vertices_by_its_joints_and_not_by_its_node(tmp_path):
    writer = Writer()
    joints = writer.array(np.array([[0, 1, 0, 0]] * 3, np.uint8))
    weights = writer.array(np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0]], np.float32))
    writer.mesh()
    writer.document["meshes"][0]["primitives"][0]["attributes"] |= {"JOINTS_0": joints, "WEIGHTS_0": weights}
    inverse = np.stack([np.eye(4), np.eye(4)])
    inverse[1, :3, 3] = [0, 0, 1]
    binds = writer.array(inverse.transpose(0, 2, 1).reshape(2, 16).astype(np.float32))
    writer.document["skins"] = [{"joints": [1, 2], "inverseBindMatrices": binds}]
    writer.document["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [99, 99, 99]},
        {"translation": [10, 0, 0]},
        {"scale": [2, 2, 2]},
    ]
    (found,) = corners(writer.read(tmp_path))
    first, second = TRIANGLE + np.array([10, 0, 0]), 2 * (TRIANGLE + np.array([0, 0, 1]))
    np.testing.assert_allclose(found, [first[0], second[1], (first[2] + second[2]) / 2])


def test_morph_weights_of_a_node_come_before_those_of_its_mesh(tmp_path):
    writer = Writer()
    target = writer.array(np.array([[0, 0, 0], [0, 0, 8], [0, 0, 0]], np.float32))
    writer.mesh(targets=[{"POSITION": target}])
    writer.document["meshes"][0]["weights"] = [0.25]
    writer.document["nodes"] = [{"mesh": 0}, {"mesh": 0, "weights": [1.0]}]
    assert corners(writer.read(tmp_path))[:, 1, 2].tolist() == [2, 8]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"nodes": [{"children": [1]}, {"children": [0], "mesh": 0}], "scenes": [{"nodes": [0]}]}, "cycle|twice"),
        ({"nodes": [{"children": [0], "mesh": 0}], "scenes": [{"nodes": [0]}]}, "cycle|twice|itself|parent"),
        ({"nodes": [{"mesh": 3}]}, "refers to mesh 3; there are 1"),
        ({"nodes": [{"mesh": True}]}, "refers to mesh True"),
        ({"nodes": [{"mesh": 0}], "scenes": [{"nodes": [5]}]}, "5"),
        ({"nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}], "scene": 4}, "refers to scene 4; there are 1"),
        ({"nodes": [{"mesh": 0, "scale": [1, 2]}]}, "scale"),
        ({"nodes": [{"mesh": 0, "matrix": [1] * 15}]}, "matrix"),
        ({"nodes": [{"mesh": 0, "skin": 0}], "extensionsRequired": ["VENDOR_thing"]}, "requires the extension VENDOR"),
        ({"nodes": "all"}, "its nodes must be a list"),
        ({"asset": {"version": "1.0"}, "nodes": []}, "is glTF '1.0'; version 2 is read"),
    ],
)
def test_a_tree_that_is_none_is_refused_by_name(tmp_path, document, reason):
    writer = Writer(**document)
    if isinstance(document["nodes"], list):
        writer.mesh()
    refused(writer, tmp_path, reason)


# -- primitives and accessors ------------------------------------------------------------------------------------------


def test_each_mode_of_a_primitive(tmp_path):
    points = np.arange(15, dtype=np.float32).reshape(5, 3) ** 2
    expected = {
        4: [[0, 1, 2]],  # two corners are left over
        5: [[0, 1, 2], [1, 2, 3], [2, 3, 4]],
        6: [[0, 1, 2], [0, 2, 3], [0, 3, 4]],
    }
    for mode, faces in expected.items():
        writer = Writer(nodes=[{"mesh": 0}])
        writer.mesh(points, mode=mode)
        surface = writer.read(tmp_path)
        np.testing.assert_array_equal(corners(surface), points[faces])
        assert surface.notes.get("corners left over of triangles", 0) == (2 if mode == 4 else 0)
    for mode in (1, 2, 3):
        writer = Writer(nodes=[{"mesh": 0}])
        writer.mesh(points, mode=mode)
        refused(writer, tmp_path, "neither triangles nor points .1 primitives of lines")
    writer = Writer(nodes=[{"mesh": 0, "translation": [1, 0, 0]}])
    writer.mesh(points, mode=0)
    cloud = writer.read(tmp_path)
    assert isinstance(cloud, Cloud)
    np.testing.assert_array_equal(cloud.points, points + np.array([1, 0, 0]))


def test_accessors_are_read_as_their_values(tmp_path):
    raw = np.array([[0, 0, 0], [127, 0, 0], [0, -128, 64]], np.int8)
    interleaved = np.zeros((3, 5), np.float32)
    interleaved[:, 1:4] = TRIANGLE
    cases: dict[str, Any] = {
        "normalised": (lambda w: w.array(raw, normalized=True), [[0, 0, 0], [1, 0, 0], [0, -1, 64 / 127]]),
        "integers": (lambda w: w.array(raw), raw),
        "strided": (
            lambda w: w.accessor(
                bufferView=w.view(interleaved.tobytes(), byteStride=20),
                byteOffset=4,
                componentType=5126,
                count=3,
                type="VEC3",
            ),
            TRIANGLE,
        ),
        "sparse": (
            lambda w: w.array(
                TRIANGLE,
                sparse={
                    "count": 1,
                    "indices": {"bufferView": w.view(b"\x02"), "componentType": 5121},
                    "values": {"bufferView": w.view(np.float32([9, 8, 7]).tobytes())},
                },
            ),
            [*TRIANGLE[:2].tolist(), [9, 8, 7]],
        ),
        "sparse alone": (
            lambda w: w.accessor(
                componentType=5126,
                count=3,
                type="VEC3",
                sparse={
                    "count": 2,
                    "indices": {"bufferView": w.view(b"\x01\0\x02\0"), "componentType": 5123},
                    "values": {"bufferView": w.view(TRIANGLE[1:].tobytes())},
                },
            ),
            TRIANGLE,
        ),
    }
    for name, (make, expected) in cases.items():
        writer = Writer(nodes=[{"mesh": 0}])
        writer.document["meshes"] = [{"primitives": [{"attributes": {"POSITION": make(writer)}}]}]
        (found,) = corners(writer.read(tmp_path))
        np.testing.assert_allclose(found, expected, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("accessor", "reason"),
    [
        ({"count": 10**9}, "do not fit into buffer view"),
        ({"count": 2**60}, "count is"),
        ({"count": -1}, "count is"),
        ({"count": 3.0}, "count is"),
        ({"byteOffset": 10**15}, "do not fit"),
        ({"bufferView": 7}, "refers to buffer view 7"),
        ({"bufferView": True}, "refers to buffer view True"),
        ({"type": "VEC2"}, "expected VEC3"),
        ({"componentType": 5124}, "components 5124"),
    ],
)
def test_what_an_accessor_promises_is_checked(tmp_path, accessor, reason):
    writer = Writer(nodes=[{"mesh": 0}])
    writer.mesh()
    writer.document["accessors"][0] |= accessor
    refused(writer, tmp_path, reason)


def test_zeros_without_bytes_are_not_made_by_the_thousand_million(tmp_path):
    writer = Writer(nodes=[{"mesh": 0}])
    writer.mesh()
    writer.document["accessors"][0] = {"componentType": 5126, "count": 10**9, "type": "VEC3"}
    refused(writer, tmp_path, "declares 1000000000 items but has no bytes")


def test_an_index_beyond_the_vertices_is_refused(tmp_path):
    writer = Writer(nodes=[{"mesh": 0}])
    writer.mesh(faces=[0, 1, 3])
    refused(writer, tmp_path, "refers to vertex 3; there are 3")


def test_degenerate_faces_are_left_out_and_counted(tmp_path):
    writer = Writer(nodes=[{"mesh": 0}])
    writer.mesh(faces=[0, 1, 2, 1, 1, 2])
    surface = writer.read(tmp_path)
    assert surface.faces.tolist() == [[0, 1, 2]]
    assert surface.notes["degenerate faces"] == 1


def test_parts_are_nodes_or_materials_by_name(tmp_path):
    writer = Writer(materials=[{"name": "oak"}, {}])
    writer.mesh(material=1)
    writer.mesh(TRIANGLE + np.float32(1), material=0)
    writer.document["nodes"] = [{"mesh": 0, "name": "leg"}, {"mesh": 1, "name": "top"}, {"mesh": 0, "name": "leg"}]
    by_node = writer.read(tmp_path, parts="node")
    assert by_node.part_names == ("leg", "top")
    assert by_node.parts.tolist() == [0, 1, 0]
    by_material = writer.read(tmp_path, parts="material")
    assert by_material.part_names == ("material 1", "oak")
    assert by_material.parts.tolist() == [0, 1, 0]
    with pytest.raises(Malformed, match="parts=group was requested"):
        writer.read(tmp_path, parts="group")


# -- buffers -----------------------------------------------------------------------------------------------------------


def _text(uri: str) -> bytes:
    writer = Writer(nodes=[{"mesh": 0}])
    writer.mesh()
    return json.dumps({**writer.document, "buffers": [{"byteLength": len(writer.data), "uri": uri}]}).encode()


def test_buffers_inside_and_beside(tmp_path):
    data = TRIANGLE.tobytes()
    (tmp_path / "a b.bin").write_bytes(data)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "c.bin").write_bytes(data)
    path = tmp_path / "made.gltf"
    inline = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    for uri, files in (("a%20b.bin", ["a b.bin"]), ("in/c.bin", ["in/c.bin"]), (inline, [])):
        np.testing.assert_array_equal(corners(read_gltf(_text(uri), path, ReadOptions()))[0], TRIANGLE)
        path.write_bytes(_text(uri))
        assert [file.relative_to(tmp_path.resolve()).as_posix() for file in beside_gltf(path)] == files


@pytest.mark.parametrize(
    "uri",
    ["../out.bin", "%2e%2e/out.bin", "/etc/hostname", "file:///etc/hostname", "http://there/x", "link.bin", "no.bin"],
)
def test_no_buffer_is_read_outside_the_folder(tmp_path, uri):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "out.bin").write_bytes(TRIANGLE.tobytes())
    (inner / "link.bin").symlink_to(tmp_path / "out.bin")
    with pytest.raises(Malformed, match="not a file beside it"):
        read_gltf(_text(uri), inner / "made.gltf", ReadOptions())


@pytest.mark.parametrize("uri", ["data:nothing", "data:;base64,@@@@", "data:;base64,AAAA"])
def test_a_data_uri_has_to_hold_what_is_promised(tmp_path, uri):
    with pytest.raises(Malformed, match=r"data uri|truncated"):
        read_gltf(_text(uri), tmp_path / "made.gltf", ReadOptions())


# -- Draco -------------------------------------------------------------------------------------------------------------


def test_draco_is_decoded(tmp_path):
    vertices = np.random.default_rng(3).random((17, 3)).astype(np.float32)
    faces = np.stack([np.arange(15), np.arange(1, 16), np.arange(2, 17)], axis=1).astype(np.uint32)
    packed = DracoPy.encode(vertices, faces, quantization_bits=20)
    for damaged in (False, True):
        writer = Writer(nodes=[{"mesh": 0, "scale": [2, 2, 2]}], extensionsRequired=["KHR_draco_mesh_compression"])
        view = writer.view(packed[: len(packed) // 2] if damaged else packed)
        positions = writer.accessor(componentType=5126, count=17, type="VEC3")
        extension = {"bufferView": view, "attributes": {"POSITION": 0}}
        primitive = {"attributes": {"POSITION": positions}, "extensions": {"KHR_draco_mesh_compression": extension}}
        writer.document["meshes"] = [{"primitives": [primitive]}]
        if damaged:
            refused(writer, tmp_path, "Draco data cannot be decoded")
            continue
        found = corners(writer.read(tmp_path))
        centres = np.sort(found.mean(axis=1), axis=0)  # Draco keeps no order
        np.testing.assert_allclose(centres, np.sort(2 * vertices[faces].mean(axis=1), axis=0), atol=1e-4)


def test_without_a_decoder_draco_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    writer = Writer(nodes=[{"mesh": 0}])
    extension = {"bufferView": writer.view(b"DRACO"), "attributes": {"POSITION": 0}}
    writer.document["meshes"] = [
        {"primitives": [{"attributes": {}, "extensions": {"KHR_draco_mesh_compression": extension}}]}
    ]
    refused(writer, tmp_path, r"pip install 'i2p-pretrain\[formats\]'")


# -- damage ------------------------------------------------------------------------------------------------------------


def _whole() -> bytes:
    writer = Writer()
    writer.mesh(np.random.default_rng(7).random((11, 3)), faces=np.arange(9))
    writer.document["nodes"] = [{"mesh": 0, "rotation": [0, 0, 0, 1]}, {"children": [0]}]
    writer.document["scenes"] = [{"nodes": [1]}]
    return writer.glb()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 2**16))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path, changes, cut):
    data = bytearray(_whole())
    for at, value in changes:
        data[at % len(data)] = value
    if cut % 3 == 0:
        data = data[: cut % len(data)]
    with contextlib.suppress(Malformed):
        read_gltf(bytes(data), tmp_path / f"{zlib.crc32(data)}.glb", ReadOptions())
