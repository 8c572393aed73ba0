"""Point Cloud Data files of the Point Cloud Library, version 0.5 to 0.7.

The file's VIEWPOINT is the pose of the sensor; it does not move the points, as in the library itself.
"""

import io
import struct
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from pipeline.corpora.formats.columns import REMEDY, chosen_columns, named_columns, part_column, whole_parts
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions
from pipeline.corpora.formats.plain_rows import plain_rows

__all__ = ["read_pcd"]

_MAX_HEADER = 65536
_MAX_RECORD = 2**20  # bytes of one point
_MAX_POINTS = 2**40
_KINDS = {"F": ("f", (4, 8)), "I": ("i", (1, 2, 4, 8)), "U": ("u", (1, 2, 4, 8))}
_LZF_RATIO = 90  # three bytes of LZF give at most 264


class _Header(NamedTuple):
    names: list[str]
    counts: list[int]
    kinds: list[str]
    points: int
    form: str
    body: int  # where the points start

    @property
    def record(self) -> np.dtype:
        fields = zip(self.kinds, self.counts, strict=True)
        return np.dtype([(f"f{k}", "<" + kind, (count,)) for k, (kind, count) in enumerate(fields)])


def read_pcd(data: bytes, path: Path, options: ReadOptions) -> Cloud:
    """Read DATA ascii, binary or binary_compressed; fields x, y and z among others.

    Points with a coordinate that is NaN, as organised clouds have where the sensor saw nothing, are left out and
    counted.
    """
    header = _header(data)
    names = header.names
    if options.columns:
        where = chosen_columns(options.columns, names, len(names))
    else:
        found = named_columns(names)
        if found is None:
            raise Malformed(f"its fields are {' '.join(names)[:80]}; x, y and z are not all among them. {REMEDY}")
        where = found
    wanted = [*where, *([part_column(options.parts, names, len(names))] if options.parts else [])]
    for k in wanted:
        if header.counts[k] != 1:
            raise Malformed(f"its field {names[k]!r} has {header.counts[k]} numbers per point; expected one")
    match header.form:
        case "ascii":
            table = _ascii(data, header, wanted)
        case "binary":
            table = _binary(data, header, wanted)
        case _:
            table = _compressed(data, header, wanted)
    points, parts = table[:, :3], None
    if options.parts:
        parts = whole_parts(table[:, 3], options.parts)
    holes = np.isnan(points)
    if not holes.any():
        return Cloud(points, parts=parts)
    holes = holes.any(axis=1)
    notes = {"points without coordinates (NaN)": int(holes.sum())}
    return Cloud(points[~holes], parts=None if parts is None else parts[~holes], notes=notes)


def _header(data: bytes) -> _Header:
    entries: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in entries:
        end = data.find(b"\n", at, _MAX_HEADER)
        if end < 0:
            raise Malformed("has no PCD header (VERSION ... DATA)")
        words = data[at:end].decode("latin-1").removeprefix("\xef\xbb\xbf").split("#", 1)[0].split()
        if words and words[0].upper() in entries:
            raise Malformed(f"its header has two lines {words[0].upper()}")
        if words:
            entries[words[0].upper()] = words[1:]
        at = end + 1
    names = entries.get("FIELDS", entries.get("COLUMNS", []))
    if not names:
        raise Malformed("its header has no FIELDS")
    counts = _integers(entries.get("COUNT", ["1"] * len(names)), "COUNT", _MAX_RECORD)
    sizes = _integers(entries.get("SIZE", []), "SIZE", 8)
    types = [word.upper() for word in entries.get("TYPE", [])]
    if not len(names) == len(counts) == len(sizes) == len(types):
        raise Malformed(
            f"its header has {len(names)} FIELDS, {len(sizes)} SIZE, {len(types)} TYPE, {len(counts)} COUNT; expected "
            "as many of each"
        )
    for name, kind, size, count in zip(names, types, sizes, counts, strict=True):
        if kind not in _KINDS or size not in _KINDS[kind][1] or count < 1:
            raise Malformed(f"its field {name[:30]!r} has type {kind[:10]}, size {size}, count {count}")
    if sum(size * count for size, count in zip(sizes, counts, strict=True)) > _MAX_RECORD:
        raise Malformed("its header declares points of more than a megabyte each")
    form = " ".join(entries["DATA"]).lower()
    if form not in ("ascii", "binary", "binary_compressed"):
        raise Malformed(f"DATA is {form[:30]!r}; expected ascii, binary or binary_compressed")
    grid = _integers(entries.get("WIDTH", []), "WIDTH", _MAX_POINTS) + _integers(
        entries.get("HEIGHT", ["1"]), "HEIGHT", _MAX_POINTS
    )
    promised = _integers(entries.get("POINTS", []), "POINTS", _MAX_POINTS)
    if len(grid) == 2 and promised and grid[0] * grid[1] != promised[0]:
        raise Malformed(f"its header declares WIDTH x HEIGHT = {grid[0]} x {grid[1]} and POINTS = {promised[0]}")
    if not promised and len(grid) != 2:
        raise Malformed("its header has neither POINTS nor WIDTH")
    points = promised[0] if promised else grid[0] * grid[1]
    kinds = [f"{_KINDS[kind][0]}{size}" for kind, size in zip(types, sizes, strict=True)]
    return _Header(names, counts, kinds, points, form, at)


def _integers(words: list[str], name: str, high: int) -> list[int]:
    for word in words:
        if not (word.isascii() and word.isdecimal() and len(word) < 20 and int(word) <= high):
            raise Malformed(f"its header has {name} {word[:30]!r}; expected a whole number up to {high}")
    return [int(word) for word in words]


def _ascii(data: bytes, header: _Header, wanted: list[int]) -> np.ndarray:
    width = sum(header.counts)
    columns = [sum(header.counts[:k]) for k in wanted]
    rows = plain_rows(data[header.body :])
    if rows is not None and rows.separator is None and rows.values.shape == (header.points, width):
        return rows.values.take(columns, axis=1)
    lines = [line for line in data[header.body :].decode("latin-1").splitlines() if line.strip()]
    if len(lines) != header.points:
        what = "; the file is truncated" if len(lines) < header.points else ""
        raise Malformed(f"the header declares {header.points} points, {len(lines)} lines follow{what}")
    if not lines:
        return np.empty((0, len(wanted)))
    for number, line in enumerate(lines, start=1):
        if len(line.split()) != width:
            raise Malformed(f"point {number} has {len(line.split())} numbers; the header declares {width}")
    try:
        return np.loadtxt(lines, usecols=columns, ndmin=2, comments=None)
    except ValueError as error:
        raise Malformed(f"a line is not made of numbers: {error}") from error


def _binary(data: bytes, header: _Header, wanted: list[int]) -> np.ndarray:
    record = header.record
    if header.body + header.points * record.itemsize > len(data):
        raise Malformed(f"the header declares {header.points} points, the file ends before; it is truncated")
    table = np.frombuffer(data, dtype=record, count=header.points, offset=header.body)
    return _columns([table[f"f{k}"][:, 0] for k in wanted])


def _compressed(data: bytes, header: _Header, wanted: list[int]) -> np.ndarray:
    """Read binary_compressed: two sizes, then all fields one after the other, packed with LZF."""
    if header.body + 8 > len(data):
        raise Malformed("ends within its header; the file is truncated")
    packed, size = struct.unpack_from("<II", data, header.body)
    body = data[header.body + 8 : header.body + 8 + packed]
    expected = header.points * header.record.itemsize
    if len(body) != packed or size != expected or size > _LZF_RATIO * packed:
        raise Malformed(
            f"declares {packed} bytes that unpack to {size}; {len(body)} follow, {header.points} points take {expected}"
        )
    if not size:
        return np.empty((0, len(wanted)))
    unpacked = _unlzf(body, size)
    starts = np.cumsum([0, *(np.dtype(kind).itemsize * n for kind, n in zip(header.kinds, header.counts, strict=True))])
    columns = []
    for k in wanted:
        begin = int(starts[k]) * header.points
        column = np.frombuffer(unpacked, dtype="<" + header.kinds[k], count=header.points, offset=begin)
        columns.append(column)
    return _columns(columns)


def _columns(columns: list[np.ndarray]) -> np.ndarray:
    """Stack columns [n] of any number types, [n, columns] float64."""
    table = np.empty((len(columns[0]), len(columns)))
    with np.errstate(invalid="ignore"):  # signalling NaN
        for k, column in enumerate(columns):
            table[:, k] = column
    return table


def _unlzf(body: bytes, size: int) -> bytes:
    """Unpack LZF with HDF5's decoder: the bytes become a chunk of a file in memory."""
    try:
        with h5py.File(io.BytesIO(), "w") as file:
            made = file.create_dataset("lzf", shape=(size,), dtype="u1", chunks=(size,), compression="lzf")
            made.id.write_direct_chunk((0,), body)
            return made[:].tobytes()
    except (OSError, ValueError) as error:
        raise Malformed(f"its LZF data cannot be unpacked: {error}"[:200]) from error
