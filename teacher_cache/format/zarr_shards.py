"""Shards as chunks of a Zarr v3 group, written and read without the zarr library.

docs/format.md specifies the bytes. The large arrays use the sharding codec: one file per shard with one inner chunk per
record (zstd, then CRC-32C), followed by an index of (offset, size). The small arrays have one plain chunk per shard.
The writer is our own because the bytes of a cache must not depend on a library's version; the reader is our own because
it decodes straight into a batch's row. Plain zarr opens the same files, and tests hold both to the same values.
"""

import json
import math
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.config import CacheConfig
from teacher_cache.format.codecs import (
    BadBytes,
    array_bytes,
    crc32c,
    decode_depth,
    decode_features,
    decompress_into,
    encode_record,
    largest_compressed,
    pack,
    stored_dtypes,
    stored_shapes,
    unpacked_size,
)
from teacher_cache.format.manifest import Description
from teacher_cache.format.records import MAX_ID_BYTES, RecordBatch, TeacherRecord
from teacher_cache.storage.base import ShardFiles
from teacher_cache.storage.shard_files import ShardFileReader

__all__ = ["Shard", "encode", "metadata", "names_dimensions", "paths"]

MISSING = 2**64 - 1  # offset and size of an inner chunk that is not there, by the sharding codec's specification
INDEX_ENTRY = 16
CRC_BYTES = 4
_ZARR_DTYPES = {
    "<f4": "float32",
    "<f2": "float16",
    "|u1": "uint8",
    "|i1": "int8",
    "<i4": "int32",
    "<i8": "int64",
    "|b1": "bool",
}
_SMALL: dict[str, tuple[str, Any]] = {  # dtype and fill value of the arrays with one chunk a shard
    "lo": ("<f4", 0.0),
    "cell": ("<f4", 0.0),
    "offset": ("<i4", 0),
    "label": ("<i8", -1),
    "valid": ("|b1", False),
}
_DIMENSIONS = {  # after "row"; equal names have equal sizes, as xarray demands
    "points": ("point", "xyz"),
    "features": ("view", "token", "channel"),
    "scale": ("view", "token"),
    "saliency": ("view", "token"),
    "class": ("view", "channel"),
    "depth": ("view", "image_row", "image_column"),
    "lo": ("view", "uv"),
    "cell": ("view",),
    "offset": ("view", "uv"),
}


def paths(config: CacheConfig, shard: int) -> list[str]:
    """List the shard's files: chunk ``shard`` of every array."""
    ranks = {
        "points": 3,
        "features": 4,
        "scale": 3,
        "saliency": 3,
        "class": 3,
        "depth": 4,
        "lo": 3,
        "cell": 2,
        "offset": 3,
    }
    names = [*stored_dtypes(config), *_SMALL, "id"]
    return [f"{name}/c.{shard}" + ".0" * (ranks.get(name, 1) - 1) for name in names]


def metadata(description: Description, shards: int, *, named: bool) -> dict[str, bytes]:
    """Return the ``zarr.json`` of the group and of each array, for shard indices below ``shards``.

    named  whether to write dimension_names; caches of earlier versions have none.
    """
    config, shapes = description.storage, stored_shapes(description.schema)
    R = config.shapes_per_shard
    arrays = {
        name: _array_metadata(shards * R, R, shapes[name], dtype.str, 0.0 if dtype.kind == "f" else 0, config, True)
        for name, dtype in stored_dtypes(config).items()
    }
    for name, (code, fill) in _SMALL.items():
        arrays[name] = _array_metadata(shards * R, R, shapes.get(name, ()), code, fill, config, False)
    arrays["id"] = _array_metadata(shards * R, R, (), "string", "", config, False)
    if named:
        for name, array in arrays.items():
            array["dimension_names"] = ["row", *_DIMENSIONS.get(name, ())]
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"teacher_cache": {"format_version": description.recipe.format_version}},
        # Members are listed here so that no one lists the directory, where receipts and logs lie beside the arrays.
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
    }
    files = {f"{name}/zarr.json": _json(array) for name, array in arrays.items()}
    return files | {"zarr.json": _json(group)}


def names_dimensions(file: bytes) -> bool | None:
    """Check whether a ``zarr.json`` of a cache has dimension_names.

    Return None for one that does not parse, and for the group's.
    """
    try:
        array = json.loads(file)
        return "dimension_names" in array if array["node_type"] == "array" else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def encode(records: Sequence[TeacherRecord], description: Description, shard: int) -> Iterator[tuple[str, list[bytes]]]:
    """Yield the shard's files as (path, pieces), in the order of ``paths``. Equal records give equal bytes."""
    config, shapes = description.storage, stored_shapes(description.schema)
    R = config.shapes_per_shard
    names = paths(config, shard)
    columns: dict[str, list[bytes]] = {name: [] for name in stored_dtypes(config)}
    for record in records:
        for name, array in encode_record(record, config).items():
            columns[name].append(_checked(pack(array, config)))
    for path, chunks in zip(names, columns.values(), strict=False):
        yield path, [*chunks, _index(chunks, R)]
    for path, (name, (code, fill)) in zip(names[len(columns) :], _SMALL.items(), strict=False):
        rows = np.full((R, *shapes.get(name, ())), fill, dtype=code)
        for row, record in enumerate(records):
            rows[row] = True if name == "valid" else getattr(record, name)
        yield path, [_checked(pack(rows, config))]
    texts = [record.id.encode("utf-8") for record in records] + [b""] * (R - len(records))
    raw = struct.pack("<I", R) + b"".join(struct.pack("<I", len(text)) + text for text in texts)
    yield names[-1], [_checked(pack(raw, config))]


class Shard:
    """One committed shard, open for reading."""

    def __init__(self, files: ShardFiles, description: Description, shard: int, records: int) -> None:
        self._opener = files
        self._config = description.storage
        self._shapes = stored_shapes(description.schema)
        self._sizes = array_bytes(description.schema, self._config)
        self._records = records
        self._shard = shard
        self._paths = {path.split("/")[0]: path for path in paths(self._config, shard)}
        self._dtypes = stored_dtypes(self._config)
        self._lock = threading.Lock()
        self._files: dict[str, tuple[ShardFileReader, NDArray[np.uint64]]] = {}
        self._small = {name: self._read_small(name) for name in _SMALL if name != "valid"}
        self._ids = self._read_ids()

    def read_into(self, batch: RecordBatch, row: int, position: int) -> None:
        batch.ids[row] = self._ids[position]
        for name, rows in self._small.items():
            getattr(batch, name)[row] = rows[position]
        for name in ("points", "saliency"):
            self._read_array(name, position, getattr(batch, name)[row])
        if "scale" in self._dtypes:
            self._read_int8(position, batch.features[row])
        else:
            self._read_array("features", position, batch.features[row])
        if batch.class_token is not None:
            self._read_array("class", position, batch.class_token[row])
        if batch.depth is not None:
            stored = np.empty(self._shapes["depth"], self._dtypes["depth"])
            self._read_array("depth", position, stored)
            decode_depth(stored, batch.depth[row])

    def read_class(self, position: int, out: NDArray[np.float16]) -> None:
        self._read_array("class", position, out)

    def load(self) -> None:
        for name in self._dtypes:
            if name != "depth":
                self._open(name)

    def _read_int8(self, position: int, out: NDArray[Any]) -> None:
        codes, scale = (np.empty(self._shapes[name], self._dtypes[name]) for name in ("features", "scale"))
        self._read_array("features", position, codes)
        self._read_array("scale", position, scale)
        try:
            decode_features(codes, scale, out, self._config.steps)
        except BadBytes as error:
            raise self._open("scale")[0].damaged(str(error), position) from error

    def _read_array(self, name: str, position: int, out: NDArray[Any]) -> None:
        file, index = self._open(name)
        offset, size = int(index[position, 0]), int(index[position, 1])
        if offset == MISSING and size == MISSING:
            raise file.damaged("the shard index marks this record as missing", position)
        if size > largest_compressed(self._sizes[name]) + CRC_BYTES:
            raise file.damaged(
                f"the shard index gives {size} bytes, more than {self._sizes[name]} bytes can compress to", position
            )
        try:
            decompress_into(_unchecked(file.read(offset, size, position)), out, self._config)
        except BadBytes as error:
            raise file.damaged(str(error), position) from error

    def _open(self, name: str) -> tuple[ShardFileReader, NDArray[np.uint64]]:
        found = self._files.get(name)
        if found is None:
            with self._lock:
                found = self._files.get(name)
                if found is None:
                    file = self._opener.open(self._paths[name], self._shard)
                    found = self._files[name] = (file, self._read_index(file))
        return found

    def _read_index(self, file: ShardFileReader) -> NDArray[np.uint64]:
        size = self._config.shapes_per_shard * INDEX_ENTRY + CRC_BYTES
        try:
            raw = _unchecked(file.read(file.size - size, size))
        except BadBytes as error:
            raise file.damaged(f"its shard index: {error}") from error
        return raw.view("<u8").reshape(-1, 2)

    def _read_small(self, name: str) -> NDArray[Any]:
        code, _ = _SMALL[name]
        shape = (self._config.shapes_per_shard, *self._shapes.get(name, ()))
        size = math.prod(shape) * np.dtype(code).itemsize
        file = self._opener.open(self._paths[name], self._shard)
        return self._decode_whole(file, size, size).view(code).reshape(shape)

    def _read_ids(self) -> list[str]:
        R = self._config.shapes_per_shard
        file = self._opener.open(self._paths["id"], self._shard)
        raw = self._decode_whole(file, 4 + 4 * R, 4 + R * (4 + MAX_ID_BYTES)).tobytes()
        try:
            if struct.unpack_from("<I", raw)[0] != R:
                raise BadBytes(f"expected {R} ids")
            ids, at = [], 4
            for _ in range(self._records):
                (size,) = struct.unpack_from("<I", raw, at)
                text = raw[at + 4 : at + 4 + size]
                if len(text) != size:
                    raise BadBytes("an id is cut short")
                ids.append(text.decode("utf-8"))
                at += 4 + size
        except (BadBytes, struct.error, UnicodeDecodeError) as error:
            raise file.damaged(str(error)) from error
        return ids

    def _decode_whole(self, file: ShardFileReader, least: int, most: int) -> NDArray[np.uint8]:
        """Decode a file of one chunk, whose size is checked before it is read and before it is decoded."""
        try:
            if file.size > largest_compressed(most) + CRC_BYTES:
                raise BadBytes(f"it has {file.size} bytes, more than {most} bytes can compress to")
            data = _unchecked(file.read(0, file.size))
            size = unpacked_size(data, self._config, most)
            if size < least:
                raise BadBytes(f"expected at least {least} bytes uncompressed, its header declares {size}")
            out = np.empty(size, np.uint8)
            decompress_into(data, out, self._config)
        except BadBytes as error:
            raise file.damaged(str(error)) from error
        return out


def _array_metadata(
    rows: int, chunk: int, shape: tuple[int, ...], code: str, fill: Any, config: CacheConfig, sharded: bool
) -> dict[str, Any]:
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    if code in {"|u1", "|i1", "|b1"}:
        little = {"name": "bytes"}
    zstd = {"name": "zstd", "configuration": {"level": config.level, "checksum": False}}
    packed = [zstd] if config.compression == "zstd" else []
    first = {"name": "vlen-utf8"} if code == "string" else little
    codecs: list[dict[str, Any]] = [first, *packed, {"name": "crc32c"}]
    if sharded:
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": [1, *shape], "codecs": codecs, "index_codecs": index, "index_location": "end"}
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *shape],
        "data_type": _ZARR_DTYPES.get(code, code),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk, *shape]}},
        # One flat folder per array: the default separator would cost one folder per dimension for every shard.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {},
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode("ascii")


def _checked(data: bytes) -> bytes:
    return data + struct.pack("<I", crc32c(data))


def _unchecked(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Strip the trailing CRC-32C. Raises BadBytes when it does not match the bytes before it."""
    if data.size < CRC_BYTES:
        raise BadBytes(f"expected a checksum, found {data.size} bytes")
    body = data[:-CRC_BYTES]
    if crc32c(body) != int.from_bytes(data[-CRC_BYTES:].tobytes(), "little"):
        raise BadBytes("its bytes do not match their CRC-32C")
    return body


def _index(chunks: list[bytes], rows: int) -> bytes:
    entries = np.full((rows, 2), MISSING, "<u8")
    sizes = [len(chunk) for chunk in chunks]
    entries[: len(sizes), 0] = np.cumsum([0, *sizes[:-1]]) if sizes else 0
    entries[: len(sizes), 1] = sizes
    return _checked(entries.tobytes())
