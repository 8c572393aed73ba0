"""Arrays to bytes and back: dtypes as stored, zstd frames, CRC-32C.

Everything is little-endian and row-major. Decoding trusts nothing: the size a zstd frame declares is compared with the
size the schema gives before a byte is decompressed, and output never grows.
"""

import struct
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import compress as _zstd_compress
from numcodecs.zstd import decompress as _zstd_decompress
from numpy.typing import NDArray

from teacher_cache.config import CacheConfig
from teacher_cache.format.int8_decode import multiply_to_half
from teacher_cache.format.records import FLOAT16_OVERFLOW, CacheSchema, TeacherRecord

__all__ = [
    "BadBytes",
    "array_bytes",
    "crc32c",
    "decode_depth",
    "decode_features",
    "decompress_into",
    "encode_record",
    "largest_compressed",
    "pack",
    "quantise",
    "stored_dtypes",
    "stored_shapes",
    "unpacked_size",
]

ZSTD_MAGIC = 0xFD2FB528
# 0.5, an empty pixel, is exactly code 127: with 255 steps it would decode to 0.502, like a pixel that is not empty.
DEPTH_STEPS = 254
LEAST_NORMAL_HALF = 2.0**-14
ATTRIBUTES = {"class": "class_token"}  # of a record, where a stored array's name is a word of Python's


class BadBytes(ValueError):
    """Stored bytes that cannot have been written so; the shard readers add the location."""


def crc32c(data: Any) -> int:
    """Compute the CRC-32C (Castagnoli) of bytes or of a contiguous array."""
    return int(google_crc32c.value(data))


def stored_dtypes(config: CacheConfig) -> dict[str, np.dtype[Any]]:
    """Return the dtype on disk of each large array of a record, in stored order."""
    features = {"float16": "<f2", "float32": "<f4", "int8": "|i1"}[config.features]
    dtypes = {"points": "<f4", "features": features}
    if config.features == "int8":
        dtypes["scale"] = "<f4"
    dtypes["saliency"] = "<f4"
    if config.class_token != "none":
        dtypes["class"] = "<f2"
    if config.depth != "none":
        dtypes["depth"] = "|u1" if config.depth == "uint8" else "<f2"
    return {name: np.dtype(code) for name, code in dtypes.items()}


def stored_shapes(schema: CacheSchema) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array a record may store: the schema's, scales of int8 features, class tokens."""
    return schema.shapes | {"scale": (schema.views, schema.tokens), "class": schema.class_shape}


def quantise(features: NDArray[Any], steps: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise features [V, T, C] to codes in -steps..steps with one scale per token: features ~ codes * scale.

    -> codes [V, T, C] int8, scale [V, T] float32, the token's largest magnitude over `steps`. A number is off by at
    most half a scale. Fewer steps leave zstd fewer different codes, and so fewer bytes.
    """
    values = np.asarray(features, np.float32)
    scale = (np.abs(values).max(axis=-1) / np.float32(steps)).astype(np.float32, copy=False)
    divisor = np.where(scale > 0, scale, np.float32(1))[..., None]
    return np.rint(values / divisor).clip(-steps, steps).astype(np.int8), scale


def decode_features(codes: NDArray[np.int8], scale: NDArray[np.float32], out: NDArray[Any], steps: int) -> None:
    """Decode what ``quantise`` made with the same `steps` into ``out`` [V, T, C] float16.

    Raises BadBytes for codes and scales that ``quantise`` cannot have written.
    """
    with np.errstate(over="ignore"):  # a made-up scale may be as large as a float32 is
        sound = np.isfinite(scale).all() and scale.min() >= 0 and scale.max() * steps < FLOAT16_OVERFLOW
    if not sound:
        raise BadBytes("a scale of its int8 features is negative, not finite or too large")
    if codes.min() < -steps or codes.max() > steps:
        raise BadBytes(f"its int8 features contain codes outside -{steps}..{steps}")
    least = scale[scale > 0].min(initial=np.inf)
    if out.dtype == np.float16 and out.flags.c_contiguous and least >= LEAST_NORMAL_HALF:
        multiply_to_half(codes, scale, out)
    else:
        np.multiply(codes, scale[..., None], out=out, dtype=np.float32, casting="same_kind")


def encode_record(record: TeacherRecord, config: CacheConfig) -> dict[str, NDArray[Any]]:
    """Convert a record's large arrays to their stored dtype, contiguous; rounding is to nearest, ties to even."""
    arrays = {}
    derived: dict[str, NDArray[Any]] = {}
    if config.features == "int8":
        features = record.features.astype(np.float16) if config.half_first else record.features
        derived["features"], derived["scale"] = quantise(features, config.steps)
    for name, dtype in stored_dtypes(config).items():
        array = derived[name] if name in derived else getattr(record, ATTRIBUTES.get(name, name))
        if name == "depth" and dtype.kind == "u":
            array = np.rint(array.astype(np.float64) * DEPTH_STEPS)
        arrays[name] = np.ascontiguousarray(array, dtype=dtype)
    return arrays


def decode_depth(stored: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Decode stored depth into ``out``, float32 in 0..1."""
    if stored.dtype.kind == "u":
        np.divide(stored, np.float32(DEPTH_STEPS), out=out)
    else:
        out[...] = stored


def pack(data: bytes | NDArray[Any], config: CacheConfig) -> bytes:
    """Encode bytes as stored: one zstd frame that declares its size, or the bytes themselves."""
    raw = data if isinstance(data, bytes) else data.tobytes()
    return bytes(_zstd_compress(raw, config.level, False)) if config.compression == "zstd" else raw


def largest_compressed(size: int) -> int:
    """Return the upper bound of a zstd frame of ``size`` bytes (ZSTD_compressBound); longer ones are not read."""
    return size + (size >> 8) + 128


def decompress_into(data: NDArray[np.uint8], out: NDArray[Any], config: CacheConfig) -> None:
    """Decode what ``pack`` made into the contiguous array ``out``, which has exactly its size. Raises BadBytes."""
    if config.compression == "none":
        if data.size != out.nbytes:
            raise BadBytes(f"expected {out.nbytes} bytes, found {data.size}")
        out.reshape(-1).view(np.uint8)[...] = data
        return
    declared = _frame_content_size(data[:18].tobytes())
    if declared != out.nbytes:
        raise BadBytes(f"expected a zstd frame of {out.nbytes} bytes, found one that declares {declared}")
    try:
        _zstd_decompress(data, out)
    except (RuntimeError, ValueError) as error:
        raise BadBytes(f"zstd cannot decode it ({error})") from error


def unpacked_size(data: NDArray[np.uint8], config: CacheConfig, limit: int) -> int:
    """Return the uncompressed size that packed bytes declare.

    Raises BadBytes when they declare none or one > limit.
    """
    size = data.size if config.compression == "none" else _frame_content_size(data[:18].tobytes())
    if size is None or size > limit:
        raise BadBytes(f"expected at most {limit} bytes uncompressed, its header declares {size}")
    return size


def _frame_content_size(header: bytes) -> int | None:
    """Return the decompressed size a zstd frame header declares (RFC 8878, 3.1.1.1), or None."""
    if len(header) < 6 or struct.unpack_from("<I", header)[0] != ZSTD_MAGIC:
        raise BadBytes("expected a zstd frame, found other bytes")
    descriptor = header[4]
    single_segment = descriptor >> 5 & 1
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = (single_segment, 2, 4, 8)[descriptor >> 6]
    field = header[start : start + size]
    if len(field) < size or size == 0:
        return None
    return int.from_bytes(field, "little") + (256 if size == 2 else 0)


def array_bytes(schema: CacheSchema, config: CacheConfig) -> dict[str, int]:
    """Return the uncompressed bytes of each large array of one record."""
    shapes = stored_shapes(schema)
    return {name: int(np.prod(shapes[name])) * dtype.itemsize for name, dtype in stored_dtypes(config).items()}
