"""glTF of few bytes that ask for much: what is made of a file, Draco included, is bounded by its bytes."""

import json
import struct
import time
import tracemalloc

import DracoPy
import numpy as np
import pytest

from pipeline.corpora.formats import beside, gltf
from pipeline.corpora.formats.allowance import FREE, SHARE, Allowance
from pipeline.corpora.formats.geometry import Malformed, ReadOptions
from pipeline.corpora.formats.gltf import read_gltf
from pipeline.corpora.formats.gltf_draco import decode_draco
from tests.corpora.test_gltf import TRIANGLE, Writer, corners

INSTANCING = "EXT_mesh_gpu_instancing"
SECONDS = 30  # of processor time; a refusal takes a few tenths
ROOM = 300  # bytes of memory for each vertex or triangle that is allowed: its numbers, and copies on the way


def instanced(index: int) -> dict:
    """A node that draws mesh 0 at each item of an accessor."""
    return {"mesh": 0, "extensions": {INSTANCING: {"attributes": {"TRANSLATION": index}}}}


def zeros(writer: Writer, count: int, kind: str = "VEC3", component: int = 5126) -> int:
    """An accessor without bytes."""
    return writer.accessor(componentType=component, count=count, type=kind)


def many_nodes(writer: Writer) -> str:
    writer.mesh(np.random.default_rng(0).random((300, 3)), faces=np.tile(np.arange(300), 30), mode=5)
    writer.document["nodes"] = [{"mesh": 0}] * 900
    return "triangles"


def nested_scenes(writer: Writer) -> str:
    many_nodes(writer)
    nodes = writer.document["nodes"] = [{"mesh": 0, "children": [k + 1]} for k in range(900)] + [{"mesh": 0}]
    writer.document["scenes"] = [{"nodes": [0]}]
    assert len(nodes) == 901
    return "triangles"


def many_instances(writer: Writer) -> str:
    writer.mesh(faces=np.tile([0, 1, 2], 300))
    moved = zeros(writer, 4000)
    writer.document["nodes"] = [instanced(moved)]
    return "triangles"


def instances_of_nothing(writer: Writer) -> str:
    writer.mesh(faces=[0, 1, 1])
    moved = zeros(writer, 30_000)
    writer.document["nodes"] = [instanced(moved)] * 500
    return "instances"


def vertices_of_few_triangles(writer: Writer) -> str:
    writer.mesh(np.random.default_rng(0).random((900, 3)), faces=np.arange(900))
    moved = zeros(writer, 2500)
    writer.document["nodes"] = [instanced(moved)]
    return "vertices"


def points(writer: Writer) -> str:
    writer.mesh(mode=0)
    position = writer.document["meshes"][0]["primitives"][0]["attributes"]
    position["POSITION"] = zeros(writer, 4000)
    moved = zeros(writer, 4000)
    writer.document["nodes"] = [instanced(moved)]
    return "points"


def indices_of_one_point(writer: Writer) -> str:
    index = zeros(writer, 50_000, "SCALAR", 5125)
    writer.mesh()
    primitive = {"attributes": {"POSITION": 1}, "indices": index, "mode": 0}
    writer.document["meshes"] = [{"primitives": [primitive] * 2000}]
    writer.document["nodes"] = [{"mesh": 0}]
    return "indices"


def morphs(writer: Writer) -> str:
    target = zeros(writer, 3000)
    writer.mesh(targets=[{"POSITION": target}] * 5000)
    writer.document["meshes"][0]["primitives"][0]["attributes"]["POSITION"] = target
    writer.document["meshes"][0]["weights"] = [1] * 5000
    writer.document["nodes"] = [{"mesh": 0}]
    return "moved vertices"


def sparse_items(writer: Writer) -> str:
    at = writer.view(np.arange(20_000, dtype=np.uint16).tobytes())
    values = writer.view(bytes(60_000))
    sparse = {"count": 20_000, "indices": {"bufferView": at, "componentType": 5123}, "values": {"bufferView": values}}
    position = writer.accessor(componentType=5120, count=20_000, type="VEC3", sparse=sparse)
    index = writer.array(np.array([0, 1, 2], np.uint16))
    primitive = {"attributes": {"POSITION": position}, "indices": index}
    writer.document["meshes"] = [{"primitives": [primitive] * 900}]
    writer.document["nodes"] = [{"mesh": 0}]
    return "sparse items"


@pytest.mark.parametrize(
    "ask",
    [many_nodes, nested_scenes, many_instances, instances_of_nothing, vertices_of_few_triangles, points,
     indices_of_one_point, morphs, sparse_items],
)  # fmt: skip
def test_few_bytes_that_ask_for_much_are_refused_with_the_bound(tmp_path, ask):
    writer = Writer()
    what = ask(writer)
    size = len(writer.glb())
    assert size < 10**6
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(Malformed) as told:
        writer.read(tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(told.value) == (
        f"has more than {FREE + SHARE * size} {what}, too many for its {size} bytes "
        "(1000000, plus 64 per byte, are allowed)"
    )
    assert most < ROOM * (FREE + SHARE * size)
    assert time.process_time() - began < SECONDS


def test_what_is_allowed_is_drawn(tmp_path):
    """Just below the bound: 999 triangles a thousand times."""
    writer = Writer()
    writer.mesh(np.random.default_rng(0).random((50, 3)), faces=np.random.default_rng(1).permuted(
        np.tile(np.arange(3), (999, 1)), axis=1))  # fmt: skip
    moved = writer.array(np.arange(3000, dtype=np.float32).reshape(1000, 3))
    writer.document["nodes"] = [instanced(moved)]
    surface = writer.read(tmp_path)
    assert len(surface.faces) == 999_000
    assert len(surface.vertices) == 3000  # of 50, those that triangles use
    np.testing.assert_allclose(surface.vertices[-1], surface.vertices[2] + 2997, rtol=1e-12)


def test_vertices_that_no_triangle_uses_are_dropped_before_instances(tmp_path):
    writer = Writer()
    values = np.full((1000, 3), np.nan, np.float32)
    values[[3, 500, 999]] = TRIANGLE
    writer.mesh(values, faces=[999, 3, 500, 3, 3, 999])
    moved = writer.array(np.array([[0, 0, 0], [0, 0, 7]], np.float32))
    writer.document["nodes"] = [instanced(moved)]
    surface = writer.read(tmp_path)
    assert surface.vertices.shape == (6, 3)
    np.testing.assert_array_equal(corners(surface), [TRIANGLE[[2, 0, 1]], TRIANGLE[[2, 0, 1]] + np.array([0, 0, 7])])
    assert surface.notes == {"degenerate faces": 2}


def test_rows_of_sparse_and_skinned_meshes_are_their_own(tmp_path):
    """Of 100 vertices three are drawn: their values, joints and targets, not those of the first three."""
    values = np.zeros((100, 3), np.float32)
    sparse_at = np.array([10, 40, 90])
    writer = Writer()
    at = writer.view(sparse_at.astype(np.uint8).tobytes())
    instead = writer.view(TRIANGLE.tobytes())
    moves = np.zeros((100, 3), np.float32)
    moves[40] = 0, 0, 8
    target = writer.array(moves)
    named = np.zeros((100, 4), np.uint8)
    named[90, 0] = 1
    joints = writer.array(named)
    weights = writer.array(np.tile(np.array([1, 0, 0, 0], np.float32), (100, 1)))
    writer.mesh(values, faces=[10, 40, 90], targets=[{"POSITION": target}])
    position = writer.document["meshes"][0]["primitives"][0]["attributes"]
    writer.document["accessors"][position["POSITION"]]["sparse"] = {
        "count": 3, "indices": {"bufferView": at, "componentType": 5121}, "values": {"bufferView": instead},
    }  # fmt: skip
    position |= {"JOINTS_0": joints, "WEIGHTS_0": weights}
    writer.document["skins"] = [{"joints": [1, 2]}]
    writer.document["nodes"] = [{"mesh": 0, "skin": 0, "weights": [0.5]}, {}, {"translation": [100, 0, 0]}]
    (found,) = corners(writer.read(tmp_path))
    np.testing.assert_array_equal(found, [[0, 0, 0], [3, 0, 4], [100, 5, 0]])


def test_a_file_of_many_triangles_is_refused_however_large(tmp_path, monkeypatch):
    monkeypatch.setattr(gltf, "MAX_TRIANGLES", 3)
    writer = Writer(nodes=[{"mesh": 0}] * 4)
    writer.mesh()
    with pytest.raises(Malformed, match="make more than 3 triangles"):
        writer.read(tmp_path)


def test_buffers_that_name_one_file_read_it_once_and_count_it_once(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(beside, "read_file", lambda path: read.append(path) or TRIANGLE.tobytes())
    (tmp_path / "a.bin").write_bytes(TRIANGLE.tobytes())
    buffers = [{"byteLength": 36, "uri": "a.bin"}, {"byteLength": 36, "uri": "./a.bin"}]
    writer = Writer()
    writer.mesh()
    writer.mesh()
    writer.document["bufferViews"] = [{"buffer": k, "byteLength": 36} for k in range(2)]
    writer.document |= {"nodes": [{"mesh": 0}, {"mesh": 1}], "buffers": buffers}
    text = json.dumps(writer.document).encode()
    surface = read_gltf(text, tmp_path / "a.gltf", ReadOptions())
    assert len(surface.faces) == 2
    assert read == [(tmp_path / "a.bin").resolve()]
    (tmp_path / "a.gltf").write_bytes(text)
    assert gltf.beside_gltf(tmp_path / "a.gltf") == read


def test_files_beside_it_justify_triangles_too(tmp_path):
    allowance = Allowance(100)
    allowance.spend("triangles", FREE + 100 * SHARE)
    with pytest.raises(Malformed, match="triangles"):
        allowance.spend("triangles", 1)
    writer = Writer(nodes=[{"mesh": 0}])
    data = np.zeros(100_000, np.float32)
    data[:9] = TRIANGLE.reshape(-1)
    (tmp_path / "a.bin").write_bytes(data.tobytes())
    writer.mesh(faces=np.tile([0, 1, 2], 400))
    writer.document["bufferViews"] = [
        {"buffer": 0, "byteLength": 36}, {"buffer": 1, "byteLength": 2400},
    ]  # fmt: skip
    inline = "data:;base64," + "AAABAAIA" * 400
    writer.document["buffers"] = [{"byteLength": 36, "uri": "a.bin"}, {"byteLength": 2400, "uri": inline}]
    writer.document["nodes"] = [{"mesh": 0}] * 3000  # 1.2 million triangles, of 400 kB beside 40 kB of text
    surface = read_gltf(json.dumps(writer.document).encode(), tmp_path / "a.gltf", ReadOptions())
    assert len(surface.faces) == 1_200_000


# -- Draco -------------------------------------------------------------------------------------------------------------


def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A flat square of n x n vertices: what Draco packs best."""
    y, x = np.mgrid[:n, :n]
    i = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).reshape(-1)
    faces = np.concatenate([np.stack([i, i + 1, i + n], axis=1), np.stack([i + 1, i + n + 1, i + n], axis=1)])
    return np.stack([x, y, 0 * x], axis=-1).reshape(-1, 3).astype(np.float32), faces.astype(np.uint32)


def varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def with_metadata(packed: bytes) -> bytes:
    """The same mesh, with metadata of an attribute and of the file, one within it."""
    entry = b"\x03key" + varint(200) + bytes(200)
    nested = varint(1) + entry + varint(0)
    block = varint(1) + varint(0) + nested + varint(1) + entry + varint(1) + b"\x04name" + nested
    flags = struct.unpack_from("<H", packed, 9)[0] | 0x8000
    return packed[:9] + struct.pack("<H", flags) + block + packed[11:]


@pytest.mark.parametrize("level", [0, 1, 7, 10])
def test_what_draco_packs_best_is_far_within_its_bound(level):
    vertices, faces = grid(150)
    packed = DracoPy.encode(vertices, faces, compression_level=level, quantization_bits=12)
    for data in (packed, with_metadata(packed)):
        allowance = Allowance(0)
        points, found = decode_draco(data, allowance)
        area = np.linalg.norm(np.cross(*(points[found[:, k]] - points[found[:, 0]] for k in (1, 2))), axis=1).sum() / 2
        assert area == pytest.approx(149**2, rel=1e-3)
        assert allowance._spent == {"vertices of Draco": 150**2, "triangles of Draco": 2 * 149**2}
    assert 4 * len(faces) < SHARE * len(packed)


@pytest.mark.parametrize("method", [0, 1])
@pytest.mark.parametrize(("vertices", "triangles"), [(2**31, 20), (20, 2**31), (2**31, 2**31)])
def test_a_header_that_promises_much_is_refused_before_it_is_decoded(monkeypatch, method, vertices, triangles):
    monkeypatch.setattr(DracoPy, "decode", None)
    counts = [varint(triangles), varint(vertices)] if method == 0 else [b"\0", varint(vertices), varint(triangles)]
    data = b"DRACO\x02\x02\x01" + bytes([method]) + b"\0\0" + b"".join(counts) + bytes(99)
    what = "vertices" if vertices == 2**31 else "triangles"
    with pytest.raises(Malformed, match=f"has more than 1006400 {what} of Draco, too many for its 100 bytes"):
        decode_draco(data, Allowance(100))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"DRACQ" + data[5:], "does not start with DRACO"),
        (lambda data: data[:5] + b"\x01" + data[6:], "of version 1.2; glTF requires version 2.2"),
        (lambda data: data[:7] + b"\0" + data[8:], "holds no triangle mesh"),
        (lambda data: data[:8] + b"\x07" + data[9:], "holds no triangle mesh"),
        (lambda data: data[:9], "9 bytes end within its header"),
        (lambda data: data[:12], "12 bytes end within its header"),
        (lambda data: data[:12] + b"\xff" * 9, "a number of its header does not end"),
        (lambda data: data[:9] + b"\0\x80\0" + b"\0\1\1a" * 200, "metadata more than 100 deep"),
        (lambda data: data[:-40], "cannot be decoded"),
    ],
)
def test_a_damaged_header_of_draco_is_named(change, reason):
    packed = DracoPy.encode(*grid(9))
    with pytest.raises(Malformed, match=reason):
        decode_draco(change(packed), Allowance(len(packed)))


def test_draco_holds_triangles_whatever_the_mode_says(tmp_path):
    vertices, faces = grid(4)
    for mode, reads in ((4, True), (5, True), (0, False), (6, False)):
        writer = Writer(nodes=[{"mesh": 0}])
        extension = {"bufferView": writer.view(DracoPy.encode(vertices, faces)), "attributes": {"POSITION": 0}}
        extensions = {"KHR_draco_mesh_compression": extension}
        writer.document["meshes"] = [{"primitives": [{"attributes": {}, "extensions": extensions, "mode": mode}]}]
        if reads:
            assert len(writer.read(tmp_path).faces) == len(faces)
        else:
            with pytest.raises(Malformed, match=f"has mode {mode} and KHR_draco_mesh_compression, which is for triang"):
                writer.read(tmp_path)
