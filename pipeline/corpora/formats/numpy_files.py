"""NPY and NPZ files, read without unpickling."""

import ast
import io
import lzma
import math
import struct
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pipeline.corpora.entrance import held_names, unpacking_fault
from pipeline.corpora.formats.columns import (
    REMEDY,
    chosen_columns,
    named_columns,
    part_column,
    sure_columns,
    whole_parts,
)
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions

__all__ = ["ZIP_ERRORS", "array_from_npy", "member_bytes", "read_npy", "read_npz"]

# What the standard library raises for a zip file that is damaged in one way or another.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    NotImplementedError,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
)
_MOST = 2**40  # items along an axis: far below where an empty array of many rows overflows
# CPython 3.11 counts the depth of syntax trees for all threads together (gh-106905): of two parsers at once, one
# now and then raises SystemError over a header that is right.
_parsing = threading.Lock()
# Arrays beside points by which they are known as places in space where a field was measured: most lie off the surface.
OFF_SURFACE = frozenset(
    {
        *("occupancies", "occupancy", "occ", "occs", "inside", "sdf", "sdfs", "tsdf", "udf", "udfs"),
        *("signed_distance", "signed_distances"),
    }
)
MAX_ARRAY_BYTES = 2**30  # one shape; a compressed array that claims more is refused before it is unpacked


def array_from_npy(data: bytes, *, kinds: str = "fiu") -> np.ndarray:
    """Read an array of one of the NumPy type ``kinds`` from the bytes of a NPY file.

    The header is checked against the bytes at hand; object arrays are refused, never unpickled.
    """
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise Malformed("does not start as a NPY file")
    wide = data[6] >= 2
    start = 12 if wide else 10
    length = int.from_bytes(data[8:start], "little")
    if start + length > len(data) or length > 65536:
        raise Malformed("the NPY header is longer than the file")
    try:
        with _parsing:
            header = ast.literal_eval(data[start : start + length].decode("latin-1").strip())
        shape, dtype = header["shape"], np.dtype(header["descr"])
        fortran = bool(header["fortran_order"])
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError, OverflowError) as error:
        raise Malformed("the NPY header cannot be read") from error
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 8:
        raise Malformed(f"the NPY header has shape {str(shape)[:60]}")
    record = dtype.kind == "V" and dtype.names is not None and "V" in kinds
    if not record and (dtype.kind not in kinds or dtype.subdtype is not None):
        raise Malformed(f"the array is of type {str(dtype)[:60]}; expected {'text' if kinds == 'U' else 'numbers'}")
    if dtype.itemsize == 0 or max(shape, default=0) > _MOST:
        raise Malformed(f"the NPY header has shape {str(shape)[:60]} of {str(dtype)[:60]}")
    count = math.prod(shape)  # of Python's own integers: no overflow
    body = data[start + length :]
    if count * dtype.itemsize != len(body):
        raise Malformed(
            f"the header declares {shape} of {dtype} ({count * dtype.itemsize} bytes), {len(body)} bytes follow"
        )
    flat = np.frombuffer(body, dtype=dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def read_npy(data: bytes, path: Path, options: ReadOptions) -> Cloud:
    """Read [n, 3 or more] numbers, or records with fields x, y and z."""
    return _cloud(array_from_npy(data, kinds="fiuV"), options)


def member_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo, held: int, most: int) -> bytes:
    """Unpack a zip member to at most `most` bytes, and no more than its packed bytes justify.

    Raises Malformed for one that claims more or is packed as NumPy packs none, and ZIP_ERRORS.
    """
    what = ascii(info.filename.removesuffix(".npy")[:40])
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA takes up to 4 GB for a dictionary
        raise Malformed(f"{what} is packed by method {info.compress_type}; save it with numpy.savez_compressed")
    fault = unpacking_fault(info.file_size, min(info.compress_size, held), most)
    if fault:
        raise Malformed(f"{what} {fault}")
    with archive.open(info) as member:
        data = member.read(info.file_size + 1)  # the directory may lie about the size
    if len(data) != info.file_size:
        raise Malformed(f"{what} does not unpack to the {info.file_size} bytes that the directory declares")
    return data


def read_npz(data: bytes, path: Path, options: ReadOptions) -> Cloud:
    """Read the array ``points``, or the only one there is: [n, 3 or more] numbers."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            held = held_names(name.removesuffix(".npy") for name in names) or "nothing"
            field = next((name for name in names if name.removesuffix(".npy").lower() in OFF_SURFACE), None)
            if field is not None:
                raise Malformed(
                    f"contains query points with {field.removesuffix('.npy')}, which lie off the surface, and no "
                    f"cloud ({held})"
                )
            if names.count("points.npy") > 1:
                raise Malformed("holds two arrays 'points'")
            if "points.npy" not in names and len(names) != 1:
                raise Malformed(f"has no array 'points'; it holds {held}")
            name = "points.npy" if "points.npy" in names else names[0]
            unpacked = member_bytes(archive, archive.getinfo(name), len(data), MAX_ARRAY_BYTES)
    except ZIP_ERRORS as error:
        raise Malformed(f"not a complete NPZ file: {error}") from error
    return _cloud(array_from_npy(unpacked, kinds="fiuV"), options)


def _cloud(array: np.ndarray, options: ReadOptions) -> Cloud:
    names = None
    if array.dtype.names is not None:
        names = list(array.dtype.names)
        array = _records(array, names)
    elif array.dtype.kind == "V":  # bytes without fields
        raise Malformed(f"the array is of type {array.dtype}; expected numbers")
    if array.ndim == 2 and array.shape[0] == 3 and array.shape[1] > 4:
        raise Malformed(f"the array has shape {array.shape}, which looks transposed; save it as (n, 3)")
    if array.ndim != 2 or array.shape[1] < 3:
        raise Malformed(f"the array has shape {array.shape}; expected (n, 3) or more columns")
    width = array.shape[1]
    notes: dict[str, int] = {}
    if options.columns:
        where = chosen_columns(options.columns, names, width)
    elif names is not None:
        found = named_columns(names)
        if found is None:
            raise Malformed(f"its fields are {', '.join(names)[:80]}; x, y and z are not all among them. {REMEDY}")
        where = found
    elif width == 3 or len(array) == 0:
        where = (0, 1, 2)
    else:
        leading = array[:, :4].astype(np.float64)
        whole = [bool((column == np.floor(column)).all()) for column in leading.T]
        where, index = sure_columns(leading, width, whole)
        notes = {"columns of row numbers passed over": index} if index else {}
    parts = None
    if options.parts:
        values = array[:, part_column(options.parts, names, width)].astype(np.float64)
        parts = whole_parts(values, options.parts)
    return Cloud(array[:, list(where)], parts=parts, notes=notes)


def _records(array: np.ndarray, names: list[str]) -> np.ndarray:
    """Convert records [n] with plain numeric fields to [n, fields] float64."""
    odd = [name for name in names if array.dtype[name].kind not in "fiu" or array.dtype[name].subdtype is not None]
    if odd or array.ndim != 1:
        raise Malformed(
            f"its records {'have fields that are not numbers: ' + ', '.join(odd)[:60] if odd else array.shape}"
        )
    return np.stack([array[name].astype(np.float64) for name in names], axis=-1)
