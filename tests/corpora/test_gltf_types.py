"""glTF whose JSON holds other values than it should: each place of small documents takes each of many.

The outcome is a sound geometry or a refusal by name; where a value is read, another type is always refused.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import DracoPy
import numpy as np
import pytest

from pipeline.corpora.base import ShapeError
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface, sample_geometry
from pipeline.corpora.formats.gltf import read_gltf
from tests.corpora.test_gltf import TRIANGLE, Writer

OTHERS: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 1.5, 1e30, 2**63, 10**400, "", "x", "VEC3", [], {}, [None], [[0]], {"a": {"a": []}},
)  # fmt: skip
SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [9, 9, 9]], np.float32)


def accessors() -> Writer:
    """Strided and normalised positions, indices, nested nodes, a camera, materials, scenes."""
    writer = Writer(
        asset={"version": "2.0", "minVersion": "2.0"},
        scene=0,
        scenes=[{"nodes": [0]}],
        materials=[{"name": "oak"}],
        cameras=[{"type": "perspective", "perspective": {"yfov": 1.0, "znear": 0.1}}],
        extensionsRequired=["KHR_mesh_quantization"],
    )
    raw = np.zeros((5, 8), np.int8)
    raw[:, :3] = SQUARE
    view = writer.view(raw.tobytes(), byteStride=8)
    place = {"bufferView": view, "byteOffset": 0, "componentType": 5120, "normalized": True, "count": 5, "type": "VEC3"}
    faces = writer.array(np.array([0, 1, 2, 0, 2, 3], np.uint16))
    primitive = {"attributes": {"POSITION": writer.accessor(**place)}, "indices": faces, "mode": 4, "material": 0}
    writer.document["meshes"] = [{"name": "m", "primitives": [primitive]}]
    writer.document["nodes"] = [
        {"children": [1, 2], "translation": [1, 2, 3], "scale": [2, 2, 2], "rotation": [0, 0, 0, 1]},
        {"name": "a", "mesh": 0, "camera": 0, "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 5, 6, 7, 1]},
        {"mesh": 0, "extensions": {"KHR_node_visibility": {"visible": True}}},
    ]
    return writer


def sparse() -> Writer:
    """Positions and indices of which some are replaced."""
    writer = Writer(nodes=[{"mesh": 0}])
    change = {
        "count": 2,
        "indices": {"bufferView": writer.view(b"\x01\x03"), "byteOffset": 0, "componentType": 5121},
        "values": {"bufferView": writer.view(SQUARE[[1, 3]].tobytes()), "byteOffset": 0},
    }
    writer.mesh(SQUARE, faces=[0, 1, 2, 0, 2, 3])
    writer.document["accessors"][0]["sparse"] = change
    return writer


def skin() -> Writer:
    """Two joints below each other, with inverse bind matrices."""
    writer = Writer()
    joints = writer.array(np.array([[0, 1, 0, 0]] * 3, np.uint8))
    weights = writer.array(np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0]], np.float32))
    writer.mesh()
    writer.document["meshes"][0]["primitives"][0]["attributes"] |= {"JOINTS_0": joints, "WEIGHTS_0": weights}
    binds = writer.array(np.tile(np.eye(4, dtype=np.float32).reshape(1, 16), (2, 1)))
    writer.document["skins"] = [{"joints": [1, 2], "inverseBindMatrices": binds}]
    writer.document["nodes"] = [{"mesh": 0, "skin": 0}, {"children": [2]}, {"scale": [2, 2, 2]}]
    return writer


def morph() -> Writer:
    """Two targets, with weights of the mesh and of one node."""
    writer = Writer(nodes=[{"mesh": 0}, {"mesh": 0, "weights": [1, 0.5]}])
    target = writer.array(np.array([[0, 0, 0], [0, 0, 8], [0, 0, 0]], np.float32))
    other = writer.array(np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0]], np.float32))
    writer.mesh(targets=[{"POSITION": target}, {"POSITION": other}])
    writer.document["meshes"][0]["weights"] = [0.25, 0.75]
    return writer


def instances() -> Writer:
    """Three instances, by bytes and floats."""
    writer = Writer(extensionsRequired=["EXT_mesh_gpu_instancing"])
    writer.mesh()
    moved = writer.array(np.array([[0, 0, 0], [4, 0, 0], [8, 0, 0]], np.float32))
    turned = writer.array(np.array([[0, 0, 0, 127]] * 3, np.int8), normalized=True)
    scaled = writer.array(np.ones((3, 3), np.float32))
    attributes = {"TRANSLATION": moved, "ROTATION": turned, "SCALE": scaled}
    writer.document["nodes"] = [{"mesh": 0, "extensions": {"EXT_mesh_gpu_instancing": {"attributes": attributes}}}]
    return writer


def points() -> Writer:
    writer = Writer(nodes=[{"mesh": 0}])
    writer.mesh(np.random.default_rng(0).random((40, 3)), faces=np.arange(40), mode=0)
    return writer


def draco() -> Writer:
    rng = np.random.default_rng(3)
    k = np.arange(15)
    packed = DracoPy.encode(rng.random((17, 3)), np.stack([k, k + 1, k + 2], axis=1).astype(np.uint32))
    writer = Writer(nodes=[{"mesh": 0}], extensionsRequired=["KHR_draco_mesh_compression"])
    extension = {"bufferView": writer.view(packed), "attributes": {"POSITION": 0}}
    primitive = {
        "attributes": {"POSITION": writer.accessor(componentType=5126, count=17, type="VEC3")},
        "extensions": {"KHR_draco_mesh_compression": extension},
    }
    writer.document["meshes"] = [{"primitives": [primitive]}]
    return writer


DOCUMENTS = (accessors, sparse, skin, morph, instances, points, draco)

NUMBERS = {"translation", "rotation", "scale", "matrix", "weights"}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values."""
    if path:
        yield path
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(below, (*path, key))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def unread(path: tuple[Any, ...], make: Any, parts: str) -> bool:
    """Whether no geometry depends on a value: it is refused or makes no difference."""
    if make is draco and "extensions" not in path and {"accessors", "POSITION"} & set(path):
        return True  # what is packed stands for them
    if path[0] == "cameras" or path[-1] == "camera" or path[:3] == ("meshes", 0, "name"):
        return True
    return (path[-1] == "name" and path[0] != {"node": "nodes", "material": "materials"}.get(parts)) or (
        path[-1] == "material" and parts != "material"
    )


def alike(path: tuple[Any, ...], before: Any, after: Any) -> bool:
    """Whether a value is of the type of the one in its place."""
    number = NUMBERS & set(path)
    if number and isinstance(before, int | float):
        return type(after) in (int, float)
    return type(before) is type(after)


def outcome(writer: Writer, path: Any, parts: str) -> Any:
    """A sound geometry, or the reason of a refusal."""
    try:
        found = writer.read(path, parts)
        points, labels = sample_geometry(found, count=32, seed=0, id="a", source="a", repeat=True)
    except (Malformed, ShapeError) as error:
        return str(error)
    assert points.shape == (32, 3)
    assert np.isfinite(points).all()
    if isinstance(found, Surface):
        assert found.faces.dtype == np.int64
        assert found.faces.shape[1:] == (3,)
        assert found.vertices.shape[1:] == (3,)
        assert found.vertices.dtype == np.float64
        assert found.faces.min() >= 0
        assert found.faces.max() < len(found.vertices)
        assert len(found.faces) < 10_000
    else:
        assert isinstance(found, Cloud)
    if parts and labels is not None:
        assert all(isinstance(name, str) for name in found.part_names)
    return found


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other) or isinstance(one, str):
        return False
    if isinstance(one, Cloud):
        return np.array_equal(one.points, other.points)
    return np.array_equal(one.vertices, other.vertices) and np.array_equal(one.faces, other.faces)


@pytest.mark.parametrize(
    ("make", "parts"), [*((make, "") for make in DOCUMENTS), (accessors, "node"), (accessors, "material")]
)
def test_each_value_may_be_anything(tmp_path, make, parts):
    whole = make()
    expected = outcome(whole, tmp_path, parts)
    assert not isinstance(expected, str), expected
    tried = 0
    for path in places(whole.document):
        before = at(whole.document, path)
        for value in OTHERS:
            writer = copy.deepcopy(whole)
            at(writer.document, path[:-1])[path[-1]] = value
            found = outcome(writer, tmp_path, parts)
            tried += 1
            if unread(path, make, parts):
                assert isinstance(found, str) or same(found, expected), (path, value)
            elif not alike(path, before, value):
                assert isinstance(found, str), (path, value)
    assert tried > 300


@pytest.mark.parametrize("make", DOCUMENTS)
def test_each_key_may_be_absent(tmp_path, make):
    whole = make()
    for path in places(whole.document):
        if isinstance(path[-1], str):
            writer = copy.deepcopy(whole)
            del at(writer.document, path[:-1])[path[-1]]
            outcome(writer, tmp_path, "")


@pytest.mark.parametrize("value", OTHERS)
def test_buffers_and_the_document_itself_too(tmp_path, value):
    whole = accessors()
    document = {**whole.document, "buffers": [{"byteLength": len(whole.data)}]}
    for path in (("buffers",), ("buffers", 0), ("buffers", 0, "byteLength"), ("buffers", 0, "uri"), ()):
        changed = copy.deepcopy(document)
        if path:
            at(changed, path[:-1])[path[-1]] = value
        else:
            changed = value
        with pytest.raises(Malformed):
            read_gltf(json.dumps(changed).encode(), tmp_path / "a.gltf", ReadOptions())


def test_a_skin_without_joints_is_refused(tmp_path):
    writer = skin()
    writer.document["skins"][0]["joints"] = []
    with pytest.raises(Malformed, match="skin 0 has no joints"):
        writer.read(tmp_path)


def test_a_skin_and_instances_on_one_node_are_refused(tmp_path):
    writer = skin()
    moved = writer.array(np.zeros((2, 3), np.float32))
    writer.document["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": moved}}}
    with pytest.raises(Malformed, match="node 0 has both a skin and EXT_mesh_gpu_instancing, which is not supported"):
        writer.read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("componentType", 5126.0, r"componentType is 5126\.0; expected a whole number"),
        ("componentType", [5126], r"componentType is \[5126\]"),
        ("type", ["VEC3"], r"is of type \['VEC3'\]; expected SCALAR or"),
        ("normalized", 1, "has normalized 1; expected true or false"),
        ("sparse", None, "has sparse None; expected an object"),
        ("byteOffset", 0.0, r"byteOffset is 0\.0"),
        ("count", True, "count is True"),
    ],
)
def test_reasons_name_the_value(tmp_path, key, value, reason):
    writer = Writer(nodes=[{"mesh": 0}])
    writer.mesh()
    writer.document["accessors"][0][key] = value
    with pytest.raises(Malformed, match=f"^accessor 0.* {reason}"):
        writer.read(tmp_path)


def test_a_mode_that_equals_a_number_is_none(tmp_path):
    for mode in (True, 4.0, "4", None):
        writer = Writer(nodes=[{"mesh": 0}])
        writer.mesh(TRIANGLE, mode=mode)
        with pytest.raises(Malformed, match=r"primitive 0 of mesh 0: mode is "):
            writer.read(tmp_path)
