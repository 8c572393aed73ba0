"""Meshes that KHR_draco_mesh_compression packs, decoded by DracoPy once their header's counts are justified.

Source of the layout: the Draco bitstream specification 2.2 (Google, 2018), which the extension prescribes.
"""

import struct

import numpy as np

from pipeline.corpora.formats.allowance import Allowance
from pipeline.corpora.formats.geometry import Malformed, ReaderMissing

__all__ = ["decode_draco"]

_MESH, _SEQUENTIAL, _EDGEBREAKER = 1, 0, 1
_HAS_METADATA = 0x8000
_MAX_DEPTH = 100  # metadata within metadata


def decode_draco(data: bytes, allowance: Allowance) -> tuple[np.ndarray, np.ndarray]:
    """Positions [M, 3] float64 and faces [F, 3] int64. Raises Malformed, and ReaderMissing without the decoder."""
    try:
        import DracoPy
    except ImportError as error:
        raise ReaderMissing(
            "is compressed by the extension KHR_draco_mesh_compression, and no decoder is installed: "
            "pip install 'i2p-pretrain[formats]'"
        ) from error
    vertices, triangles = _promised(data)
    allowance.spend("vertices of Draco", vertices)
    allowance.spend("triangles of Draco", triangles)
    try:
        mesh = DracoPy.decode(data)
        points, faces = np.asarray(mesh.points, np.float64), np.asarray(mesh.faces, np.int64)
    except (ValueError, TypeError, RuntimeError, AttributeError, DracoPy.FileTypeException) as error:
        raise Malformed(f"its Draco data cannot be decoded: {error}"[:200]) from error
    if points.ndim != 2 or points.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise Malformed("its Draco data holds no triangle mesh")
    if len(faces) != triangles:
        raise Malformed(
            f"its Draco data cannot be decoded: the file declares {triangles} triangles, the data has {len(faces)}"
        )
    return points, faces


def _promised(data: bytes) -> tuple[int, int]:
    """Vertices and triangles that the header promises, before anything is allocated for them."""
    try:
        magic, major, minor, kind, method, flags = struct.unpack_from("<5s4BH", data)
        if magic != b"DRACO":
            raise Malformed("its Draco data cannot be decoded: it does not start with DRACO")
        if (major, minor) != (2, 2):
            raise Malformed(f"has Draco data of version {major}.{minor}; glTF requires version 2.2")
        if kind != _MESH or method not in (_SEQUENTIAL, _EDGEBREAKER):
            raise Malformed("its Draco data holds no triangle mesh")
        at = 11
        if flags & _HAS_METADATA:
            count, at = _number(data, at)
            for _ in range(count):
                _, at = _number(data, at)  # of the attribute
                at = _behind_metadata(data, at, _MAX_DEPTH)
            at = _behind_metadata(data, at, _MAX_DEPTH)
        if method == _SEQUENTIAL:
            triangles, at = _number(data, at)
            return _number(data, at)[0], triangles
        vertices, at = _number(data, at + 1)  # behind the kind of traversal
        return vertices, _number(data, at)[0]
    except (IndexError, struct.error):
        raise Malformed(f"its Draco data cannot be decoded: {len(data)} bytes end within its header") from None


def _behind_metadata(data: bytes, at: int, depth: int) -> int:
    if not depth:
        raise Malformed(f"its Draco data has metadata more than {_MAX_DEPTH} deep")
    count, at = _number(data, at)
    for _ in range(count):
        at += 1 + data[at]  # a key
        size, at = _number(data, at)
        at += size
    count, at = _number(data, at)
    for _ in range(count):
        at = _behind_metadata(data, at + 1 + data[at], depth - 1)
    return at


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 35, 7):
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise Malformed("its Draco data cannot be decoded: a number of its header does not end")
