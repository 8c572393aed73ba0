"""Readers of clouds: NPY, NPZ (key ``points``), XYZ / PTS / TXT / CSV, and PCD. The first three columns are x, y and
z.
"""

import ast
import io
import lzma
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pipeline.corpora.geometry import Cloud, Malformed

__all__ = ["ZIP_ERRORS", "array_from_npy", "read_npy", "read_npz", "read_pcd", "read_text"]

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
MAX_ARRAY_BYTES = 2**30  # one shape; a compressed array that claims more is refused before it is unpacked


def array_from_npy(data: bytes, *, kinds: str = "fiu") -> np.ndarray:
    """An array of one of the NumPy type ``kinds`` from the bytes of a NPY file. The header is checked against the bytes
    at hand; object arrays are refused, never unpickled.
    """
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise Malformed("does not start as a NPY file")
    wide = data[6] >= 2
    start = 12 if wide else 10
    length = int.from_bytes(data[8:start], "little")
    if start + length > len(data) or length > 65536:
        raise Malformed("the NPY header is longer than the file")
    try:
        header = ast.literal_eval(data[start : start + length].decode("latin-1").strip())
        shape, dtype = header["shape"], np.dtype(header["descr"])
        fortran = bool(header["fortran_order"])
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise Malformed("the NPY header cannot be read") from error
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape) or len(shape) > 8:
        raise Malformed(f"the NPY header has shape {str(shape)[:60]}")
    if dtype.kind not in kinds:
        raise Malformed(f"the array is of type {dtype}; expected {'text' if kinds == 'U' else 'numbers'}")
    count = 1
    for size in shape:  # Python's own integers: no overflow
        count *= size
    body = data[start + length :]
    if count * dtype.itemsize != len(body):
        raise Malformed(
            f"the header promises {shape} of {dtype} ({count * dtype.itemsize} bytes), {len(body)} bytes follow"
        )
    flat = np.frombuffer(body, dtype=dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def read_npy(data: bytes, path: Path) -> Cloud:
    """[n, 3 or more] numbers."""
    return _columns(array_from_npy(data))


def read_npz(data: bytes, path: Path) -> Cloud:
    """The array ``points``: [n, 3 or more] numbers."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if "points.npy" not in names:
                held = ", ".join(name.removesuffix(".npy") for name in names[:8]) or "nothing"
                raise Malformed(f"has no array 'points'; it holds {held[:100]}")
            size = archive.getinfo("points.npy").file_size
            if size > MAX_ARRAY_BYTES:
                raise Malformed(f"'points' unpacks to {size} bytes; more than {MAX_ARRAY_BYTES} is refused")
            with archive.open("points.npy") as member:
                unpacked = member.read(MAX_ARRAY_BYTES + 1)
    except ZIP_ERRORS as error:
        raise Malformed(f"not a whole NPZ file: {error}") from error
    return _columns(array_from_npy(unpacked))


def read_text(data: bytes, path: Path) -> Cloud:
    """Lines of numbers between spaces, tabs, commas or semicolons; ``#`` starts a comment; a first line of one number
    (a count) is skipped.
    """
    if b"\0" in data:
        raise Malformed("is binary; expected lines of numbers")
    text = data.decode("latin-1").translate({ord(","): " ", ord(";"): " "})
    lines = [line for line in (raw.split("#", 1)[0] for raw in text.splitlines()) if line.strip()]
    promised = None
    if lines and len(lines[0].split()) == 1 and lines[0].strip().isdecimal() and len(lines[0]) < 20:
        promised = int(lines.pop(0))
    if not lines:
        raise Malformed("holds no lines of numbers")
    if promised is not None and promised != len(lines):
        raise Malformed(f"the first line promises {promised} points, {len(lines)} follow")
    width = len(lines[0].split())
    if width < 3:
        raise Malformed(f"the first line has {width} columns; expected at least 3")
    try:
        return Cloud(
            np.loadtxt(lines, ndmin=2, comments=None)[:, :3]
        )  # every line must have as many columns as the first
    except ValueError as error:
        raise Malformed(f"a line is not {width} numbers: {error}") from error


def read_pcd(data: bytes, path: Path) -> Cloud:
    """Point Cloud Data, DATA ascii or binary, fields x, y and z among others."""
    header: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in header:
        end = data.find(b"\n", at)
        if end < 0 or end > 65536:
            raise Malformed("has no PCD header (VERSION ... DATA)")
        words = data[at:end].decode("latin-1").split("#", 1)[0].split()
        if words:
            header[words[0].upper()] = words[1:]
        at = end + 1
    try:
        fields, form = header["FIELDS"], header["DATA"][0].lower()
        counts = [int(text) for text in header.get("COUNT", ["1"] * len(fields))]
        points = int(header["POINTS"][0]) if "POINTS" in header else int(header["WIDTH"][0]) * int(header["HEIGHT"][0])
        kinds = [
            {"F": "f", "I": "i", "U": "u"}[kind.upper()] + str(int(size))
            for kind, size in zip(header["TYPE"], header["SIZE"], strict=True)
        ]
        record = np.dtype(
            [
                (f"{k} {name}", "<" + kind, (count,))
                for k, (name, kind, count) in enumerate(zip(fields, kinds, counts, strict=True))
            ]
        )
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise Malformed(f"the PCD header is incomplete or contradicts itself: {error}") from error
    if points < 0 or min(counts) < 1 or not {"x", "y", "z"} <= set(fields):
        raise Malformed(f"fields are {' '.join(fields)[:60]}, points {points}; expected x, y and z")
    where = [fields.index(axis) for axis in "xyz"]
    if form == "binary":
        if at + points * record.itemsize > len(data):
            raise Malformed(f"the header promises {points} points, the file ends before; it is truncated")
        table = np.frombuffer(data, dtype=record, count=points, offset=at)
        return Cloud(np.stack([table[f"{k} {fields[k]}"][:, 0].astype(np.float64) for k in where], axis=-1))
    if form != "ascii":
        raise Malformed(f"DATA is {form[:30]!r}; ascii and binary are read (pcl_convert_pcd_ascii_binary converts)")
    lines = [line for line in data[at:].decode("latin-1").splitlines() if line.strip()]
    if len(lines) < points:
        raise Malformed(f"the header promises {points} points, {len(lines)} follow; the file is truncated")
    columns = [sum(counts[:k]) for k in where]
    try:
        return Cloud(
            np.loadtxt(lines[:points], usecols=columns, ndmin=2, comments=None) if points else np.empty((0, 3))
        )
    except ValueError as error:
        raise Malformed(f"a line is not made of numbers: {error}") from error


def _columns(array: np.ndarray) -> Cloud:
    if array.ndim != 2 or array.shape[1] < 3:
        raise Malformed(f"the array has shape {array.shape}; expected (n, 3) or more columns")
    return Cloud(array[:, :3])
