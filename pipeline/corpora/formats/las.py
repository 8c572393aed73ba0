"""LAS and LAZ, versions 1.0 to 1.4, read by laspy; LAZ is unpacked by lazrs.

Source of the header's layout: ASPRS, LAS Specification 1.4 R15, section 2.4.
"""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.entrance import unpacking_fault
from pipeline.corpora.formats.columns import whole_parts
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.isolated import decode as decode_apart
from pipeline.corpora.formats.isolated import errors_of, need

__all__ = ["decode", "prepare", "read_las"]

MAX_BYTES = 2**32  # of unpacked points
_RECORD = 54  # bytes of a variable length record's own header
_PACKED = 0x80  # this bit of the point format says LAZ


def read_las(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Read x, y and z in the file's units, float64: whole numbers times scale plus offset.

    Points that are marked withheld, which the specification calls deleted, are left out and counted. ``parts`` is a
    dimension of whole numbers, such as classification.
    """
    _check_header(data, path)
    need("laspy", "is a LAS file")
    if data[104] & _PACKED:
        need("lazrs", "is a LAZ file")
    return decode_apart(__name__, data, path, options)


def _check_header(data: bytes, path: Path) -> None:
    """Check the header's claims against the bytes at hand."""
    if data[:4] != b"LASF":
        raise Malformed("does not start with LASF")
    if len(data) < 227:
        raise Malformed(f"is a LAS file of {len(data)} bytes; it ends within its header")
    major, minor = data[24], data[25]
    if major != 1 or minor > 4:
        raise Malformed(f"is LAS {major}.{minor}; versions 1.0 to 1.4 are read")
    head, start, records = struct.unpack_from("<HII", data, 94)
    form, length, count = struct.unpack_from("<BHI", data, 104)
    if minor == 4:
        if len(data) < 375 or head < 375:
            raise Malformed(f"is LAS 1.4 with a header of {min(head, len(data))} bytes; LAS 1.4 has 375")
        count = struct.unpack_from("<Q", data, 247)[0] or count
    if not head <= start <= len(data) or head + records * _RECORD > start:
        raise Malformed(
            f"its header of {head} bytes declares {records} records and points from byte {start}; the file has "
            f"{len(data)}"
        )
    packed = bool(form & _PACKED)
    if not packed and start + count * length > len(data):
        raise Malformed(f"declares {count} points of {length} bytes from byte {start}; the file has {len(data)} bytes")
    fault = unpacking_fault(count * length, len(data) - start, MAX_BYTES) if packed else ""
    if fault:
        raise Malformed(f"declares {count} points of {length} bytes, which {fault}")
    scales = struct.unpack_from("<6d", data, 131)
    if not (np.isfinite(scales).all() and all(scales[:3])):
        raise Malformed(f"its header has the scales {scales[:3]} and offsets {scales[3:]}; expected finite numbers")


def prepare() -> None:
    """Import what `decode` needs."""
    import laspy  # noqa: F401


def decode(data: bytes, path: Path, options: ReadOptions) -> Cloud:
    """Decode a cloud from bytes whose header was checked."""
    import laspy

    with errors_of("laspy"):
        # One thread: many files are read at once.
        stored = laspy.read(io.BytesIO(data), laz_backend=laspy.LazBackend.Lazrs)
        promised = int(stored.header.point_count)
        if len(stored.points) != promised:
            raise Malformed(f"declares {promised} points and holds {len(stored.points)}; it is truncated")
        points = np.stack([np.asarray(stored[axis], np.float64) for axis in "xyz"], axis=-1)
        names = list(stored.point_format.dimension_names)
        withheld = np.asarray(stored["withheld"], bool) if "withheld" in names else np.zeros(promised, bool)
        if options.parts and options.parts not in names:
            raise Malformed(f"parts={options.parts} was requested; its dimensions are {', '.join(names)}"[:300])
        parts = whole_parts(_numbers(stored[options.parts], options.parts), options.parts) if options.parts else None
    notes = {"points marked as withheld": int(withheld.sum())} if withheld.any() else {}
    return Cloud(points[~withheld], parts=None if parts is None else parts[~withheld], notes=notes)


def _numbers(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise Malformed(f"its dimension {name!r} does not contain whole numbers")
    return array.astype(np.float64)
