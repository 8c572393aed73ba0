"""E57 (ASTM E2807), read by pye57: the points of all scans, where their poses place them."""

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.corpora.entrance import unpacking_fault
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.isolated import decode as decode_apart
from pipeline.corpora.formats.isolated import errors_of, need
from pipeline.corpora.formats.xml_text import check_xml

__all__ = ["decode", "prepare", "read_e57"]

MAX_BYTES = 2**32  # of unpacked points
_POINT = 24  # bytes of three coordinates
_CHECKSUM = 4  # bytes at the end of each page


def read_e57(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Read Cartesian or spherical points of every scan in the file's common frame, in metres, float64.

    Points that are marked invalid are left out and counted; images are ignored. ``parts=scan`` numbers the scans.
    """
    if options.parts not in ("", "scan"):
        raise Malformed(f"parts={options.parts} was requested; an E57 file has parts by scan")
    _check_header(data)
    need("pye57", "is an E57 file")
    return decode_apart(__name__, data, path, options)


def _check_header(data: bytes) -> None:
    if data[:8] != b"ASTM-E57":
        raise Malformed("does not start with ASTM-E57")
    if len(data) < 48:
        raise Malformed(f"is an E57 file of {len(data)} bytes; it ends within its header")
    size, offset, length, page = struct.unpack_from("<QQQQ", data, 16)
    if size != len(data):
        raise Malformed(f"declares {size} bytes, the file has {len(data)}")
    if not 64 <= page <= 2**20 or not 48 <= offset < size or length > size:
        raise Malformed(f"declares {length} bytes of XML at {offset}, in pages of {page}; the file has {size}")
    # The XML runs on over the checksum at the end of each page.
    begin, text = offset // page * page, bytearray()
    for at in range(begin, size, page):
        text += data[at : at + page - _CHECKSUM]
        if len(text) >= offset - begin + length:
            break
    check_xml(bytes(text[offset - begin : offset - begin + length]), "its XML")


def prepare() -> None:
    """Import what `decode` needs."""
    import pye57  # noqa: F401


@contextmanager
def _by_name(data: bytes) -> Iterator[str]:
    """Give the bytes that were checked a name: the library opens files by name only."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("e57")
        with os.fdopen(file, "wb") as held:
            held.write(data)
            held.flush()
            yield f"/proc/self/fd/{file}"
    else:
        with tempfile.TemporaryDirectory(prefix="i2p-e57-") as folder:
            Path(folder, "scans.e57").write_bytes(data)
            yield str(Path(folder, "scans.e57"))


def decode(data: bytes, path: Path, options: ReadOptions) -> Cloud:
    """Decode a cloud from bytes whose header and XML were checked."""
    import pye57

    clouds, parts, invalid = [], [], 0
    with _by_name(data) as name, errors_of("pye57"):
        scans = pye57.E57(name)
        counts = [scans.get_header(k).point_count for k in range(scans.scan_count)]
        fault = unpacking_fault(sum(counts) * _POINT, len(data), MAX_BYTES)
        if fault:
            raise Malformed(f"declares {sum(counts)} points, which {fault}")
        for k, count in enumerate(counts):
            fields = scans.get_header(k).point_fields
            if not ({"cartesianX", "cartesianY", "cartesianZ"} <= set(fields) or "sphericalRange" in fields):
                raise Malformed(f"scan {k} has no coordinates, but {', '.join(fields)}"[:300])
            if not count:
                continue
            scan = scans.read_scan(k, ignore_missing_fields=True)
            points = np.stack([scan[f"cartesian{axis}"] for axis in "XYZ"], axis=-1).astype(np.float64)
            invalid += count - len(points)
            clouds.append(points)
            parts.append(np.full(len(points), k))
    if not clouds:
        raise Malformed("holds no scans with points")
    notes = {"points marked as invalid": invalid} if invalid else {}
    return Cloud(np.concatenate(clouds), parts=np.concatenate(parts) if options.parts else None, notes=notes)
