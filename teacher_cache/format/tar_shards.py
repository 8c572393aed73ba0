"""Shards as plain tar files that webdataset reads, written and read as docs/format.md specifies to the byte.

The members of a record are adjacent, its JSON first and its depth last, so one read fetches a whole record. The JSON
holds a CRC-32C of each other member and of itself. Names, order and headers are known before a shard is read, so the
reader compares instead of interpreting: a member with any other name, an absolute path, a link or an npy header that
claims another shape is damage.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.config import CacheConfig
from teacher_cache.documents import Fields, canonical
from teacher_cache.errors import ManifestError
from teacher_cache.format.codecs import (
    BadBytes,
    crc32c,
    decode_depth,
    decode_features,
    decompress_into,
    encode_record,
    largest_compressed,
    pack,
    stored_dtypes,
    stored_shapes,
)
from teacher_cache.format.manifest import Description
from teacher_cache.format.records import MAX_ID_BYTES, RecordBatch, TeacherRecord
from teacher_cache.storage.base import ShardFiles

__all__ = ["Shard", "encode", "metadata", "paths"]

BLOCK = 512
END = bytes(2 * BLOCK)
_GEOMETRY = ("lo", "cell", "offset")
_MAX_LABEL = (1 << 31) - 1


def paths(config: CacheConfig, shard: int) -> list[str]:
    """List the shard's only file."""
    return [f"shards/{shard:06d}.tar"]


def metadata(description: Description, shards: int, *, named: bool) -> dict[str, bytes]:
    """Return nothing: a tar needs no metadata beside it."""
    return {}


def encode(records: Sequence[TeacherRecord], description: Description, shard: int) -> Iterator[tuple[str, list[bytes]]]:
    """Yield the shard's file as (path, pieces). Equal records give equal bytes."""
    config = description.storage
    pieces: list[bytes] = []
    for position, record in enumerate(records):
        key, suffix = member_key(shard, position), _suffix(config)
        members = {
            name + suffix: pack(npy_header(array.shape, array.dtype) + array.tobytes(), config)
            for name, array in encode_record(record, config).items()
        }
        for member, data in [("json", _record_json(record, members)), *members.items()]:
            pieces += [tar_header(f"{key}.{member}", len(data)), data, bytes(-len(data) % BLOCK)]
    yield paths(config, shard)[0], [*pieces, END]


def member_key(shard: int, position: int) -> str:
    """Return a record's key in its tar, without dots: webdataset takes what follows the first dot as the extension."""
    return f"{shard:06d}-{position:05d}"


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return an NPY 1.0 header padded to 64 bytes; the padding of NumPy's own header depends on its version."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape!r}, }}".encode("ascii")
    padded = text + b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded


def tar_header(name: str, size: int) -> bytes:
    """Return the ustar header of a regular file: mode 0644, owner, group and time 0."""
    fields = [
        name.encode("ascii").ljust(100, b"\0"),
        b"0000644\0",  # mode
        b"0000000\0",  # uid
        b"0000000\0",  # gid
        b"%011o\0" % size,
        b"00000000000\0",  # mtime
        b" " * 8,  # checksum, counted as spaces
        b"0",  # type: regular file
        bytes(100),  # link name
        b"ustar\x0000",
        bytes(64),  # owner and group names
        b"0000000\0" * 2,  # device numbers
        bytes(167),  # prefix, padding
    ]
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


class Shard:
    """One committed shard, open for reading; its member headers are scanned once, at opening."""

    def __init__(self, files: ShardFiles, description: Description, shard: int, records: int) -> None:
        self._config = description.storage
        self._shapes = stored_shapes(description.schema)
        self._dtypes = stored_dtypes(self._config)
        self._headers = {name: npy_header(self._shapes[name], dtype) for name, dtype in self._dtypes.items()}
        self._file = files.open(paths(self._config, shard)[0], shard)
        self._suffix = _suffix(self._config)
        self._members = ["json", *(name + self._suffix for name in self._dtypes)]
        self._extents = self._scan(shard, records)  # [records, members, 2]: offset and size of the payload

    def read_into(self, batch: RecordBatch, row: int, position: int) -> None:
        wanted = [name for name in self._dtypes if name != "depth" or batch.depth is not None]
        extents = self._extents[position, : 1 + len(wanted)]
        start = int(extents[0, 0])
        data = self._file.read(start, int(extents[-1].sum()) - start, position)
        payloads = [data[offset - start : offset - start + size] for offset, size in extents.tolist()]
        try:
            values = self._parse(payloads[0])
            stored = {
                name: self._checked(name, payload, values) for name, payload in zip(wanted, payloads[1:], strict=True)
            }
            self._decode(stored, batch, row)
            batch.ids[row] = values.text("id")
            batch.label[row] = values.integer("label", -1, _MAX_LABEL)
            for name in _GEOMETRY:
                self._geometry(name, values, getattr(batch, name)[row])
        except (BadBytes, ManifestError) as error:
            raise self._file.damaged(str(error), position) from error

    def read_class(self, position: int, out: NDArray[np.float16]) -> None:
        columns = (0, 1 + list(self._dtypes).index("class"))
        document, payload = (
            self._file.read(offset, size, position) for offset, size in self._extents[position, columns, :].tolist()
        )
        try:
            out[...] = self._checked("class", payload, self._parse(document))
        except (BadBytes, ManifestError) as error:
            raise self._file.damaged(str(error), position) from error

    def load(self) -> None:
        """Do nothing: the only file is already open."""

    def _scan(self, shard: int, records: int) -> NDArray[np.int64]:
        extents = np.zeros((records, len(self._members), 2), np.int64)
        limits = self._limits()
        at = 0
        for position in range(records):
            for column, member in enumerate(self._members):
                name = f"{member_key(shard, position)}.{member}"
                header = self._file.read(at, BLOCK, position).tobytes()
                size = _header_size(header)
                if size is None or header != tar_header(name, size):
                    raise self._file.damaged(f"expected the tar header of {name} at byte {at}, found another", position)
                if size > limits[column]:
                    raise self._file.damaged(f"{name} has {size} bytes; expected at most {limits[column]}", position)
                extents[position, column] = at + BLOCK, size
                at += BLOCK + size + -size % BLOCK
        if self._file.size != at + len(END) or self._file.read(at, len(END)).any():
            raise self._file.damaged(f"expected the archive to end after {records} records, at byte {at}")
        return extents

    def _limits(self) -> list[int]:
        views = self._shapes["cell"][0]
        limits = [4096 + 6 * MAX_ID_BYTES + 256 * views]  # of the JSON; a character of an id may be six of JSON
        for name, dtype in self._dtypes.items():
            size = len(self._headers[name]) + int(np.prod(self._shapes[name])) * dtype.itemsize
            limits.append(largest_compressed(size) if self._config.compression == "zstd" else size)
        return limits

    def _parse(self, payload: NDArray[np.uint8]) -> Fields:
        try:
            document = json.loads(payload.tobytes().decode("ascii"))
            stored = document.pop("self")
            found = crc32c(canonical(document))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BadBytes("its JSON does not parse") from error
        if stored != found or type(stored) is not int:
            raise BadBytes("its JSON does not match its own CRC-32C")
        return Fields(document, "its JSON")

    def _checked(self, name: str, payload: NDArray[np.uint8], values: Fields) -> NDArray[Any]:
        """Return a member's array after checking it against the CRC-32C in its record's JSON."""
        if crc32c(payload) != values.inner("crc32c").integer(name + self._suffix, 0, 2**32 - 1):
            raise BadBytes(f"member {name}{self._suffix} does not match its CRC-32C")
        return self._stored(name, payload)

    def _stored(self, name: str, payload: NDArray[np.uint8]) -> NDArray[Any]:
        header, dtype, shape = self._headers[name], self._dtypes[name], self._shapes[name]
        size = len(header) + int(np.prod(shape)) * dtype.itemsize
        if self._config.compression == "zstd":
            raw = np.empty(size, np.uint8)
            decompress_into(payload, raw, self._config)
        else:
            raw = payload
        if raw.size != size or raw[: len(header)].tobytes() != header:
            raise BadBytes(f"member {name}{self._suffix} is not an NPY file of {list(shape)} {dtype.name}")
        return raw[len(header) :].view(dtype).reshape(shape)

    def _decode(self, stored: dict[str, NDArray[Any]], batch: RecordBatch, row: int) -> None:
        for name in ("points", "saliency"):
            getattr(batch, name)[row] = stored[name]
        if "scale" in stored:
            decode_features(stored["features"], stored["scale"], batch.features[row], self._config.steps)
        else:
            batch.features[row] = stored["features"]
        if "class" in stored:
            assert batch.class_token is not None
            batch.class_token[row] = stored["class"]
        if "depth" in stored:
            assert batch.depth is not None
            decode_depth(stored["depth"], batch.depth[row])

    def _geometry(self, name: str, values: Fields, out: NDArray[Any]) -> None:
        try:
            array = np.array(values.values.get(name), np.float64)
            if array.shape != out.shape:
                raise BadBytes(f"{name} has shape {list(array.shape)}; expected {list(out.shape)}")
            with np.errstate(over="raise", invalid="raise"):
                out[...] = array
        except (ValueError, TypeError, OverflowError, FloatingPointError) as error:
            raise BadBytes(f"{name} is not an array of numbers") from error


def _suffix(config: CacheConfig) -> str:
    return ".npy.zst" if config.compression == "zstd" else ".npy"


def _record_json(record: TeacherRecord, members: dict[str, bytes]) -> bytes:
    document: dict[str, Any] = {"id": record.id, "label": int(record.label)}
    for name in _GEOMETRY:
        document[name] = getattr(record, name).tolist()  # float32 as float64: its shortest decimal comes back exactly
    document["crc32c"] = {member: crc32c(data) for member, data in members.items()}
    return canonical(document | {"self": crc32c(canonical(document))})


def _header_size(header: bytes) -> int | None:
    digits = header[124:135]
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else None
