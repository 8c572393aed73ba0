"""The numbers of a glTF file: buffers inside and beside it, and accessors into them. Every bound is checked."""

import base64
import binascii
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from pipeline.corpora.base import ShapeError
from pipeline.corpora.faults import read_file
from pipeline.corpora.formats.geometry import Malformed, ReaderMissing

__all__ = ["Accessors", "Buffers", "external_files", "items"]

COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
FULL = {"i1": 127.0, "u1": 255.0, "<i2": 32767.0, "<u2": 65535.0}  # what a normalised integer calls 1
SIZES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
FREE_ITEMS = 4096  # of an accessor without bytes, which is all zeros; beyond that the file's size has to justify it
EXPANSION = 400  # triangles and vertices that a byte of Draco may stand for, at most


def items(owner: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of objects, empty where it is absent. Raises Malformed for anything else."""
    found = owner.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise Malformed(f"its {key} are no list of objects")
    return found


def _whole(owner: dict[str, Any], key: str, default: int | None = None, *, least: int = 0) -> int:
    value = owner.get(key, default)
    if type(value) is not int or not least <= value < 2**53:
        raise Malformed(f"{key} is {str(value)[:40]!r}; expected a whole number of at least {least}")
    return value


def external_files(document: dict[str, Any], path: Path) -> list[Path]:
    """Files that the buffers name. Raises Malformed for what is not a file below the folder of `path`."""
    uris = [buffer["uri"] for buffer in items(document, "buffers") if "uri" in buffer]
    return [_beside(uri, path) for uri in uris if not (isinstance(uri, str) and uri[:5].lower() == "data:")]


def _beside(uri: Any, path: Path) -> Path:
    if not isinstance(uri, str) or not uri:
        raise Malformed(f"a buffer has the uri {str(uri)[:40]!r}")
    name = unquote(uri)
    refused = Malformed(f"wants {name[:120]!r}, which is not a file beside it")
    if "://" in name or name.startswith(("/", "\\")) or "\0" in name or ":" in name.split("/")[0]:
        raise refused
    try:
        folder = path.parent.resolve()
        target = folder.joinpath(name).resolve()
        if not target.is_relative_to(folder) or not target.is_file():
            raise refused
    except (OSError, ValueError, RuntimeError):
        raise refused from None
    return target


class Buffers:
    """Buffers and views of one document, read when they are asked for."""

    def __init__(self, document: dict[str, Any], blob: bytes | None, path: Path) -> None:
        self._buffers, self._views = items(document, "buffers"), items(document, "bufferViews")
        self._blob, self._path = blob, path
        self._read: dict[int, bytes] = {}

    def view(self, number: Any) -> tuple[memoryview, int]:
        """The bytes of a view, and its stride (0: none is given)."""
        if type(number) is not int or not 0 <= number < len(self._views):
            raise Malformed(f"names buffer view {str(number)[:20]!r}; there are {len(self._views)}")
        view = self._views[number]
        data = self._buffer(_whole(view, "buffer"))
        begin, size = _whole(view, "byteOffset", 0), _whole(view, "byteLength")
        if begin + size > len(data):
            raise Malformed(f"buffer view {number} ends at byte {begin + size}; its buffer has {len(data)}")
        return memoryview(data)[begin : begin + size], _whole(view, "byteStride", 0)

    def _buffer(self, number: int) -> bytes:
        if number not in self._read:
            if number >= len(self._buffers):
                raise Malformed(f"names buffer {number}; there are {len(self._buffers)}")
            buffer = self._buffers[number]
            data = self._content(buffer, number)
            size = _whole(buffer, "byteLength", least=1)
            if size > len(data):
                raise Malformed(f"buffer {number} promises {size} bytes, {len(data)} are there; it is truncated")
            self._read[number] = data[:size]
        return self._read[number]

    def _content(self, buffer: dict[str, Any], number: int) -> bytes:
        uri = buffer.get("uri")
        if uri is None:
            if number or self._blob is None:
                raise Malformed(f"buffer {number} has neither a uri nor a binary chunk")
            return self._blob
        if isinstance(uri, str) and uri[:5].lower() == "data:":
            head, comma, body = uri.partition(",")
            if not comma:
                raise Malformed(f"buffer {number} has a data uri without data")
            try:
                encoded = head.lower().endswith(";base64")
                return base64.b64decode(unquote(body), validate=True) if encoded else unquote_to_bytes(body)
            except (binascii.Error, ValueError) as error:
                raise Malformed(f"buffer {number} has a damaged data uri ({error})") from error
        target = _beside(uri, self._path)
        try:
            return read_file(target)
        except ShapeError as error:
            raise Malformed(f"{target.name}: {error.reason}") from error


class Accessors:
    """Typed arrays of one document: sparse, normalised, strided and interleaved ones as their values."""

    def __init__(self, document: dict[str, Any], buffers: Buffers, size: int) -> None:
        self._accessors, self._buffers, self._size = items(document, "accessors"), buffers, size

    def floats(self, number: Any, kind: str | tuple[str, ...]) -> np.ndarray:
        """[count, components] float64."""
        accessor = self._accessor(number)
        if accessor.get("type") not in ((kind,) if isinstance(kind, str) else kind):
            raise Malformed(f"accessor {number} is of type {str(accessor.get('type'))[:20]!r}; expected {kind}")
        values = self._values(accessor, number)
        if accessor.get("normalized") is True:
            code = COMPONENTS[accessor["componentType"]]
            if code not in FULL:
                raise Malformed(f"accessor {number} is normalised and not of small integers")
            return np.maximum(values.astype(np.float64) / FULL[code], -1.0)
        return values.astype(np.float64)

    def indices(self, number: Any) -> np.ndarray:
        """[count] int64."""
        accessor = self._accessor(number)
        if accessor.get("type") != "SCALAR" or accessor.get("componentType") not in (5121, 5123, 5125):
            raise Malformed(f"accessor {number} holds no indices")
        return self._values(accessor, number)[:, 0].astype(np.int64)

    def joints(self, number: Any) -> np.ndarray:
        """[count, 4] int64."""
        accessor = self._accessor(number)
        if accessor.get("type") != "VEC4" or accessor.get("componentType") not in (5121, 5123):
            raise Malformed(f"accessor {number} holds no joints")
        return self._values(accessor, number).astype(np.int64)

    def draco(self, extension: Any) -> tuple[np.ndarray, np.ndarray]:
        """Positions [M, 3] float64 and indices [3 F] of a mesh compressed by Draco."""
        try:
            import DracoPy
        except ImportError as error:
            raise ReaderMissing(
                "is compressed by the extension KHR_draco_mesh_compression, and no decoder is installed: "
                "pip install 'i2p-pretrain[formats]'"
            ) from error
        if not isinstance(extension, dict):
            raise Malformed("its KHR_draco_mesh_compression is no object")
        data = bytes(self._buffers.view(extension.get("bufferView"))[0])
        try:
            mesh = DracoPy.decode(data)
            points, faces = np.asarray(mesh.points, np.float64), np.asarray(mesh.faces, np.int64)
        except (ValueError, TypeError, RuntimeError, AttributeError, DracoPy.FileTypeException) as error:
            raise Malformed(f"its Draco data cannot be decoded: {error}"[:200]) from error
        if points.ndim != 2 or points.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
            raise Malformed("its Draco data holds no triangle mesh")
        return points, faces.reshape(-1)

    def _accessor(self, number: Any) -> dict[str, Any]:
        if type(number) is not int or not 0 <= number < len(self._accessors):
            raise Malformed(f"names accessor {str(number)[:20]!r}; there are {len(self._accessors)}")
        accessor = self._accessors[number]
        if accessor.get("componentType") not in COMPONENTS or accessor.get("type") not in SIZES:
            raise Malformed(
                f"accessor {number} has type {str(accessor.get('type'))[:20]!r} of components "
                f"{str(accessor.get('componentType'))[:20]}"
            )
        return accessor

    def _values(self, accessor: dict[str, Any], number: int) -> np.ndarray:
        """[count, components] of the stored type."""
        count = _whole(accessor, "count", least=1)
        dtype, columns = np.dtype(COMPONENTS[accessor["componentType"]]), SIZES[accessor["type"]]
        if "bufferView" in accessor:
            view, offset = accessor["bufferView"], _whole(accessor, "byteOffset", 0)
            values = self._strided(view, offset, count, dtype, columns)
        else:
            if count > FREE_ITEMS + self._size:
                raise Malformed(f"accessor {number} promises {count} items and has no bytes for them")
            values = np.zeros((count, columns), dtype)
        sparse = accessor.get("sparse")
        if sparse is None:
            return values
        return self._replaced(values, sparse, number)

    def _replaced(self, values: np.ndarray, sparse: Any, number: int) -> np.ndarray:
        if not isinstance(sparse, dict):
            raise Malformed(f"accessor {number} has a sparse that is no object")
        some = _whole(sparse, "count", least=1)
        where, what = sparse.get("indices"), sparse.get("values")
        if some > len(values) or not isinstance(where, dict) or not isinstance(what, dict):
            raise Malformed(f"accessor {number} replaces {some} of {len(values)} items")
        if where.get("componentType") not in (5121, 5123, 5125):
            raise Malformed(f"accessor {number} has sparse indices of another type than unsigned integers")
        code = np.dtype(COMPONENTS[where["componentType"]])
        at = self._strided(where.get("bufferView"), _whole(where, "byteOffset", 0), some, code, 1)[:, 0].astype(
            np.int64
        )
        if (np.diff(at) <= 0).any() or at[-1] >= len(values):
            raise Malformed(f"accessor {number} has sparse indices that do not rise below {len(values)}")
        offset = _whole(what, "byteOffset", 0)
        values = values.copy()
        values[at] = self._strided(what.get("bufferView"), offset, some, values.dtype, values.shape[1])
        return values

    def _strided(self, view: Any, offset: int, count: int, dtype: np.dtype, columns: int) -> np.ndarray:
        data, stride = self._buffers.view(view)
        size = dtype.itemsize * columns
        stride = stride or size
        if stride < size:
            raise Malformed(f"buffer view {view} has a stride of {stride} bytes for items of {size}")
        if offset + stride * (count - 1) + size > len(data):
            raise Malformed(f"{count} items of {size} bytes do not fit into buffer view {view} of {len(data)} bytes")
        return np.ndarray((count, columns), dtype, data, offset, (stride, dtype.itemsize))
