"""Numeric data of a glTF file: buffers inside and beside it, and accessors into them. Every bound is checked."""

import base64
import binascii
from collections.abc import Hashable
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from pipeline.corpora.formats.allowance import Allowance
from pipeline.corpora.formats.beside import Beside
from pipeline.corpora.formats.geometry import Malformed
from pipeline.corpora.formats.gltf_draco import decode_draco
from pipeline.corpora.formats.gltf_json import flag, items, named, object_of, shown, whole, word

__all__ = ["Accessors", "Buffers", "external_files"]

COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
FULL = {"i1": 127.0, "u1": 255.0, "<i2": 32767.0, "<u2": 65535.0}  # what a normalised integer calls 1
SIZES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
INDICES, JOINTS = (5121, 5123, 5125), (5121, 5123)
FREE_ITEMS = 4096  # of an accessor without bytes, which is all zeros; beyond that the file's size has to justify it


def external_files(document: dict[str, Any], beside: Beside) -> list[str]:
    """Paths by which the buffers name files, each file once. Raises Malformed for what is not a file beside."""
    uris = [buffer["uri"] for buffer in items(document, "buffers") if "uri" in buffer]
    found: dict[Hashable, str] = {}
    for uri in uris:
        if not (isinstance(uri, str) and uri[:5].lower() == "data:"):
            key, name = _named(uri, beside)
            found.setdefault(key, name)
    return list(found.values())


def _named(uri: Any, beside: Beside) -> tuple[Hashable, str]:
    """Return what identifies the file that a uri names, and its path."""
    if not isinstance(uri, str) or not uri:
        raise Malformed(f"a buffer has the uri {shown(uri)}")
    name = unquote(uri)
    refused = Malformed(f"refers to {name[:120]!r}, which is not a file beside it")
    if "://" in name or name.startswith(("/", "\\")) or "\0" in name or ":" in name.split("/")[0]:
        raise refused
    key = beside.find(name)
    if key is None:
        raise refused
    return key, name


class Buffers:
    """Buffers and views of one document, read when they are asked for; files beside it count in the allowance."""

    def __init__(self, document: dict[str, Any], blob: bytes | None, beside: Beside, allowance: Allowance) -> None:
        self._buffers, self._views = items(document, "buffers"), items(document, "bufferViews")
        self._blob, self._beside, self._allowance = blob, beside, allowance
        self._read: dict[int, memoryview] = {}
        self._files: dict[Hashable, bytes] = {}

    def view(self, number: Any, owner: str) -> tuple[memoryview, int]:
        """Return the bytes of a view, and its stride (0: none is given)."""
        number = named(number, self._views, "buffer view", owner)
        view, what = self._views[number], f"buffer view {number}"
        data = self._buffer(named(view.get("buffer"), self._buffers, "buffer", what))
        begin, size = whole(view, "byteOffset", what, 0), whole(view, "byteLength", what, least=1)
        if begin + size > len(data):
            raise Malformed(f"{what} ends at byte {begin + size}; its buffer has {len(data)}")
        stride = whole(view, "byteStride", what, least=1) if "byteStride" in view else 0
        return data[begin : begin + size], stride

    def _buffer(self, number: int) -> memoryview:
        if number not in self._read:
            buffer = self._buffers[number]
            data = self._content(buffer, number)
            size = whole(buffer, "byteLength", f"buffer {number}", least=1)
            if size > len(data):
                raise Malformed(f"buffer {number} declares {size} bytes, but has {len(data)}; it is truncated")
            self._read[number] = memoryview(data)[:size]
        return self._read[number]

    def _content(self, buffer: dict[str, Any], number: int) -> bytes:
        if "uri" not in buffer:
            if number or self._blob is None:
                raise Malformed(f"buffer {number} has neither a uri nor a binary chunk")
            return self._blob
        uri = buffer["uri"]
        if isinstance(uri, str) and uri[:5].lower() == "data:":
            head, comma, body = uri.partition(",")
            if not comma:
                raise Malformed(f"buffer {number} has a data uri without data")
            try:
                encoded = head.lower().endswith(";base64")
                return base64.b64decode(unquote(body), validate=True) if encoded else unquote_to_bytes(body)
            except (binascii.Error, ValueError) as error:
                raise Malformed(f"buffer {number} has a damaged data uri ({error})") from error
        key, name = _named(uri, self._beside)
        if key not in self._files:  # buffers may name one file by the thousand
            self._files[key] = self._beside.read(name)
            self._allowance.size += len(self._files[key])
        return self._files[key]


class Accessors:
    """Typed arrays of one document: sparse, normalised, strided and interleaved ones as their values.

    Only the rows that are asked for are read, so that a mesh of three vertices out of a shared million costs three.
    """

    def __init__(self, document: dict[str, Any], buffers: Buffers, allowance: Allowance) -> None:
        self._accessors, self._buffers, self._allowance = items(document, "accessors"), buffers, allowance

    def count(self, number: Any, owner: str) -> int:
        """Return the number of items of an accessor whose bytes are present."""
        number = named(number, self._accessors, "accessor", owner)
        accessor, what = self._accessors[number], f"accessor {number}"
        word(accessor, "type", what, SIZES)
        return len(self._stored(accessor, what, _component(accessor, what)))

    def floats(self, number: Any, kind: str, owner: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Read some rows [R, components] float64, by their ascending numbers, or all."""
        accessor, what, code = self._accessor(number, kind, owner)
        values = self._values(accessor, what, code, rows)
        if not flag(accessor, "normalized", what, False):
            return values.astype(np.float64)
        if code not in FULL:
            raise Malformed(f"{what} is normalised but not made of 8- or 16-bit integers")
        return np.maximum(values.astype(np.float64) / FULL[code], -1.0)

    def indices(self, number: Any, owner: str) -> np.ndarray:
        """Read an accessor as [count] int64."""
        accessor, what, _ = self._accessor(number, "SCALAR", owner)
        code = _unsigned(accessor, what, "indices", INDICES)
        self._allowance.spend("indices", self.count(number, owner))
        return self._values(accessor, what, code, None)[:, 0].astype(np.int64)

    def joints(self, number: Any, owner: str, rows: np.ndarray) -> np.ndarray:
        """Read some rows [R, 4] int64, by their ascending numbers."""
        accessor, what, _ = self._accessor(number, "VEC4", owner)
        return self._values(accessor, what, _unsigned(accessor, what, "joints", JOINTS), rows).astype(np.int64)

    def draco(self, extension: dict[str, Any], owner: str) -> tuple[np.ndarray, np.ndarray]:
        """Positions [M, 3] float64 and faces [F, 3] int64 of a mesh compressed by Draco."""
        what = f"the KHR_draco_mesh_compression of {owner}"
        whole(object_of(extension, "attributes", what), "POSITION", what)
        return decode_draco(bytes(self._buffers.view(extension.get("bufferView"), what)[0]), self._allowance)

    def _accessor(self, number: Any, kind: str, owner: str) -> tuple[dict[str, Any], str, str]:
        """An accessor of a type, what it is called in reasons, and its components as NumPy names them."""
        number = named(number, self._accessors, "accessor", owner)
        accessor, what = self._accessors[number], f"accessor {number}"
        word(accessor, "type", what, (kind,))
        return accessor, what, _component(accessor, what)

    def _values(self, accessor: dict[str, Any], what: str, code: str, rows: np.ndarray | None) -> np.ndarray:
        """Some rows [R, components] of the stored type, or all."""
        stored = self._stored(accessor, what, code)
        rows = None if rows is None or len(rows) == len(stored) else rows
        values = stored if rows is None else stored[rows]
        return self._replaced(values, len(stored), accessor, what, rows) if "sparse" in accessor else values

    def _stored(self, accessor: dict[str, Any], what: str, code: str) -> np.ndarray:
        """All rows [count, components], without what is sparse, as they lie in the file: nothing is copied."""
        count = whole(accessor, "count", what, least=1)
        dtype, columns = np.dtype(code), SIZES[accessor["type"]]
        offset = whole(accessor, "byteOffset", what, 0)
        if "bufferView" in accessor:
            return self._strided(accessor["bufferView"], offset, count, dtype, columns, what)
        if count > FREE_ITEMS + self._allowance.size:
            raise Malformed(f"{what} declares {count} items but has no bytes for them")
        return np.broadcast_to(np.zeros(1, dtype), (count, columns))

    def _replaced(
        self, values: np.ndarray, count: int, accessor: dict[str, Any], what: str, rows: np.ndarray | None
    ) -> np.ndarray:
        """Values with those that a sparse accessor says instead; ``count`` is that of all of its rows."""
        sparse = object_of(accessor, "sparse", what)
        some = whole(sparse, "count", what, least=1)
        if some > count:
            raise Malformed(f"{what} replaces {some} of {count} items")
        self._allowance.spend("sparse items", some)
        where, instead = object_of(sparse, "indices", what), object_of(sparse, "values", what)
        code = _unsigned(where, what, "sparse indices", INDICES)
        offset = whole(where, "byteOffset", what, 0)
        at = self._strided(where.get("bufferView"), offset, some, np.dtype(code), 1, what)[:, 0].astype(np.int64)
        if (np.diff(at) <= 0).any() or at[-1] >= count:
            raise Malformed(f"{what} has sparse indices that do not ascend below {count}")
        offset = whole(instead, "byteOffset", what, 0)
        others = self._strided(instead.get("bufferView"), offset, some, values.dtype, values.shape[1], what)
        values = values.copy()
        if rows is None:
            values[at] = others
            return values
        place = np.minimum(np.searchsorted(at, rows), some - 1)
        held = at[place] == rows
        values[held] = others[place[held]]
        return values

    def _strided(self, view: Any, offset: int, count: int, dtype: np.dtype, columns: int, what: str) -> np.ndarray:
        data, stride = self._buffers.view(view, what)
        size = dtype.itemsize * columns
        stride = stride or size
        if stride < size:
            raise Malformed(f"buffer view {view} has a stride of {stride} bytes for items of {size}")
        if offset + stride * (count - 1) + size > len(data):
            raise Malformed(f"{count} items of {size} bytes do not fit into buffer view {view} of {len(data)} bytes")
        return np.ndarray((count, columns), dtype, data, offset, (stride, dtype.itemsize))


def _component(owner: dict[str, Any], what: str) -> str:
    """The type of the numbers of an accessor, as NumPy names it."""
    code = whole(owner, "componentType", what)
    if code not in COMPONENTS:
        raise Malformed(f"{what} has components {code}; expected one of {', '.join(map(str, COMPONENTS))}")
    return COMPONENTS[code]


def _unsigned(owner: dict[str, Any], what: str, held: str, among: tuple[int, ...]) -> str:
    code = _component(owner, what)
    if owner["componentType"] not in among or flag(owner, "normalized", what, False):
        raise Malformed(f"{what} has {held} of components {owner['componentType']}; expected unsigned integers")
    return code
