"""EXT_meshopt_compression: what holds its data unpacked too is read from there, all else is refused with a remedy."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora.formats.geometry import Malformed, ReadOptions
from pipeline.corpora.formats.gltf import read_gltf

TRIANGLE = np.array([[0, 0, 0], [3, 0, 0], [0, 5, 0]], "<f4")


def read(*, required=True, fallback=None, name="EXT_meshopt_compression"):
    """One triangle, its positions as 36 bytes of a view that is also packed into 40 bytes of noise."""
    where = "data:application/octet-stream;base64,"
    unpacked = {"byteLength": 36, "extensions": {name: {"fallback": True}}}
    if fallback is not None:
        unpacked["uri"] = where + base64.b64encode(fallback).decode()
    packed = {"buffer": 0, "byteLength": 40, "byteStride": 12, "count": 3, "mode": "ATTRIBUTES"}
    document = {
        "asset": {"version": "2.0"},
        "extensionsUsed": [name],
        **({"extensionsRequired": [name]} if required else {}),
        "buffers": [{"byteLength": 40, "uri": where + base64.b64encode(b"\xa5" * 40).decode()}, unpacked],
        "bufferViews": [{"buffer": 1, "byteLength": 36, "extensions": {name: packed}}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "nodes": [{"mesh": 0}],
    }
    return read_gltf(json.dumps(document).encode(), Path("a.gltf"), ReadOptions())


def test_data_that_is_there_unpacked_too_is_read():
    surface = read(required=False, fallback=TRIANGLE.tobytes())
    np.testing.assert_array_equal(surface.vertices[surface.faces[0]], TRIANGLE)


@pytest.mark.parametrize("name", ["EXT_meshopt_compression", "KHR_meshopt_compression"])
@pytest.mark.parametrize(("required", "fallback"), [(True, None), (True, TRIANGLE.tobytes()), (False, None)])
def test_data_that_is_only_packed_is_refused_with_the_remedy(name, required, fallback):
    with pytest.raises(Malformed, match=rf"compressed by the extension {name}, .*unpack it \(gltfpack"):
        read(name=name, required=required, fallback=fallback)
