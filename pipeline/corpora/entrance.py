"""Checks of names and numbers in stored sets, made once at entry."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.base import CorpusError
from pipeline.corpora.check import MIN_DISTINCT

__all__ = [
    "MAX_CLASSES",
    "MAX_PARTS",
    "check_ids",
    "check_names",
    "check_regular",
    "check_size",
    "check_unpacked",
    "checked_labels",
    "held_names",
    "name_fault",
    "text_array",
    "unpacking_fault",
]

MAX_CLASSES = 1 << 16  # far beyond any labelled set; a larger number is no label
MAX_PARTS = 1 << 15  # part labels are int16
MAX_ID_BYTES = 1024
SHOWN = 8
MAX_EXPANSION, FREE_BYTES = 64, 64 * 2**20  # clouds pack to a half or a third; more than 64 times is no cloud
_FORBIDDEN = {*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def check_regular(path: Path) -> None:
    """Raise CorpusError for a pipe, socket or device, without opening it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # whoever opens it says why
    if not stat.S_ISREG(mode):
        raise CorpusError(f"{path}: is not a regular file (a folder, pipe, socket or device)")


def check_ids(ids: Sequence[Any], source: str) -> None:
    """Raise CorpusError unless ids are unique, printable names.

    A name has 1..1024 bytes of UTF-8 without control characters, is no absolute path and has no ``..`` within.
    """
    for place, id in enumerate(ids):
        fault = name_fault(id) or _way_out(id)
        if fault:
            raise CorpusError(f"{source}: id {str(id)[:40]!a} of shape {place} {fault}; rename it")
    if len(set(ids)) < len(ids):
        twice = next(id for id, times in Counter(ids).items() if times > 1)
        raise CorpusError(f"{source}: id {twice!r} occurs twice; ids must be unique")


def check_names(names: Sequence[Any], what: str, source: str) -> list[str]:
    """Return names of classes or parts as text. Raises CorpusError for unprintable or duplicate ones."""
    found = [str(name) for name in names]
    for name in found:
        fault = name_fault(name)
        if fault:
            raise CorpusError(f"{source}: {what} {name[:40]!a} {fault}; rename it")
    if len(set(found)) < len(found):
        twice = next(name for name, times in Counter(found).items() if times > 1)
        raise CorpusError(f"{source}: {what} {twice!r} occurs twice")
    return found


def checked_labels(labels: np.ndarray, source: str, *, names: int | None, least: int = -1) -> np.ndarray:
    """Return labels [n] as int64.

    names  how many there are; None: not known, then at most MAX_CLASSES.
    least  -1 where that means no label.

    Raises CorpusError for values that are not whole numbers in range: infinite, NaN, fractions, too large, negative.
    """
    if labels.dtype.kind not in "fiu":
        raise CorpusError(f"{source}: labels are of type {labels.dtype}; expected whole numbers")
    if labels.dtype.kind == "f":
        labels = labels.astype(np.float64)  # in which the limits are exact: float16 ends below them
    most = MAX_CLASSES if names is None else names
    whole = np.isfinite(labels) & (labels == np.floor(labels)) & (labels >= least) & (labels < most)
    if not whole.all():
        row = int(np.flatnonzero(~whole)[0])
        limit = f"there are {names} names" if names is not None else f"at most {MAX_CLASSES} classes are allowed"
        raise CorpusError(
            f"{source}: label {labels[row]!s} of shape {row}; expected a whole number from {least}, {limit}"
        )
    return labels.astype(np.int64)


def unpacking_fault(size: int, packed: int, most: int) -> str:
    """Return what is wrong with an array that claims `size` bytes and has `packed`; "" for nothing.

    packed  bytes that are there, never more than the file has: a directory may claim any number.
    """
    if size > most:
        return f"unpacks to {size} bytes, more than the {most} allowed. Split the file"
    if size > MAX_EXPANSION * packed + FREE_BYTES:
        return f"unpacks from {packed} to {size} bytes, a ratio that no point cloud has, so it is refused"
    return ""


def check_unpacked(size: int, packed: int, what: str, source: str, most: int) -> None:
    """Raise CorpusError for an array that claims more bytes than its packed bytes allow, or than `most`."""
    fault = unpacking_fault(size, packed, most)
    if fault:
        raise CorpusError(f"{source}: {what} {fault}")


def check_size(clouds: int, points: int, source: str) -> None:
    """Raise CorpusError for stored clouds of fewer points than a shape needs: no byte might back their number."""
    if clouds and points < MIN_DISTINCT:
        raise CorpusError(f"{source}: holds {clouds} clouds of {points} points; a shape needs at least {MIN_DISTINCT}")


def held_names(names: Iterable[str]) -> str:
    """Format the first names in a file for a message; "" for none."""
    shown = [str(name)[:40] for name in islice(names, SHOWN + 1)]
    return ascii(", ".join(shown[:SHOWN]))[1:-1] + (", ..." if len(shown) > SHOWN else "")


def text_array(array: np.ndarray, what: str, source: str) -> list[str]:
    """Convert a NumPy array of text [n] to strings. Raises CorpusError for invalid code points, and another shape."""
    if array.ndim != 1:
        raise CorpusError(f"{source}: {what} has shape {array.shape}; expected a list of text")
    codes = (
        np.ascontiguousarray(array).view(np.dtype("u4").newbyteorder(array.dtype.byteorder)) if array.size else array
    )
    if array.size and array.dtype.itemsize and ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise CorpusError(f"{source}: {what} contains invalid code points; the file is damaged")
    return [str(text) for text in array.tolist()]


def name_fault(id: Any) -> str:
    """Return what is wrong with a name; "" for nothing."""
    if not isinstance(id, str) or not id:
        return "is empty" if isinstance(id, str) else "is not text"
    try:
        size = len(id.encode())
    except UnicodeEncodeError:
        return "cannot be written as UTF-8"
    if size > MAX_ID_BYTES:
        return f"has {size} bytes; at most {MAX_ID_BYTES} are allowed"
    if any(ord(letter) in _FORBIDDEN for letter in id):
        return "holds control characters"
    return ""


def _way_out(id: str) -> str:
    return "is a path that leaves the corpus" if id.startswith("/") or ".." in id.split("/") else ""
