"""NPY and NPZ files, read without unpickling."""

import ast
import io
import lzma
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions

__all__ = ["ZIP_ERRORS", "array_from_npy", "read_npy", "read_npz"]

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


def read_npy(data: bytes, path: Path, options: ReadOptions) -> Cloud:
    """[n, 3 or more] numbers."""
    return _columns(array_from_npy(data))


def read_npz(data: bytes, path: Path, options: ReadOptions) -> Cloud:
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


def _columns(array: np.ndarray) -> Cloud:
    if array.ndim != 2 or array.shape[1] < 3:
        raise Malformed(f"the array has shape {array.shape}; expected (n, 3) or more columns")
    return Cloud(array[:, :3])
