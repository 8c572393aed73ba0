"""PLY, ASCII or binary, a mesh or a cloud. Only the vertices' x, y, z and the faces' corners are read."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.polygons import MAX_CORNERS, cut_polygons

__all__ = ["read_ply"]

_NAMES = {
    "i1": "char int8",
    "u1": "uchar uint8",
    "i2": "short int16",
    "u2": "ushort uint16",
    "i4": "int int32",
    "u4": "uint uint32",
    "f4": "float float32",
    "f8": "double float64",
}
_TYPES = {name: dtype for dtype, names in _NAMES.items() for name in names.split()}


class _Property(NamedTuple):
    name: str
    dtype: str
    length: str | None  # type of the length, for a list


class _Element(NamedTuple):
    name: str
    rows: int
    properties: list[_Property]


def read_ply(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """The ``vertex`` element as points, and ``face`` (vertex_indices or vertex_index), where there is one, as
    triangles.
    """
    form, elements, start = _header(data)
    reader = _read_ascii if form == "ascii" else _read_binary
    vertices, polygons = reader(data, start, elements, "<" if form == "binary_little_endian" else ">")
    if vertices is None:
        raise Malformed("has no vertex element with x, y and z")
    if not polygons and any(element.rows for element in elements if element.name in ("face", "tristrips")):
        raise Malformed("its faces have no list vertex_indices (or vertex_index) as their first property")
    vertices = vertices.astype(np.float64)
    cut = cut_polygons(vertices, polygons)
    if not len(cut.faces):
        return Cloud(vertices, notes=cut.notes)
    return Surface(vertices, cut.faces, notes=cut.notes)


def _header(data: bytes) -> tuple[str, list[_Element], int]:
    """Format, elements, and where the body starts."""
    end = data.find(b"end_header", 0, 65536)
    if not data.startswith(b"ply") or end < 0:
        raise Malformed("has no PLY header (ply ... end_header)")
    newline = data.find(b"\n", end)
    start = newline + 1 if newline >= 0 else len(data)
    form, elements = "", []
    for line in data[:end].decode("latin-1").splitlines()[1:]:
        match line.split():
            case ["format", name, _]:
                form = name
            case ["element", name, rows] if (
                rows.isdecimal() and len(rows) < 16
            ):  # int() refuses 5,000 digits its own way
                elements.append(_Element(name, int(rows), []))
            case ["property", "list", count, kind, name] if count in _TYPES and kind in _TYPES and elements:
                if np.dtype(_TYPES[count]).kind == "f":  # a length may be NaN then
                    raise Malformed(f"list {name[:40]} has its length as {count}; expected a whole number type")
                elements[-1].properties.append(_Property(name, _TYPES[kind], _TYPES[count]))
            case ["property", kind, name] if kind in _TYPES and elements:
                elements[-1].properties.append(_Property(name, _TYPES[kind], None))
            case [] | ["comment", *_] | ["obj_info", *_]:
                pass
            case _:
                raise Malformed(f"header line {line[:60]!r} is not understood")
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise Malformed(f"format is {form!r}; expected ascii, binary_little_endian or binary_big_endian")
    return form, elements, start


def _is_corners(prop: _Property) -> bool:
    return prop.length is not None and prop.name in ("vertex_indices", "vertex_index")


def _read_ascii(
    data: bytes, start: int, elements: list[_Element], order: str
) -> tuple[np.ndarray | None, list[np.ndarray]]:
    lines = [line for line in data[start:].decode("latin-1").splitlines() if line.strip()]
    if sum(element.rows for element in elements) > len(lines):
        raise Malformed(
            f"the header promises {sum(e.rows for e in elements)} lines, {len(lines)} follow; the file is truncated"
        )
    vertices, polygons, at = None, [], 0
    for element in elements:
        rows, at = lines[at : at + element.rows], at + element.rows
        names = [prop.name for prop in element.properties]
        if element.name == "vertex" and {"x", "y", "z"} <= set(names):
            if any(prop.length for prop in element.properties):
                raise Malformed("the vertex element holds a list, which is not supported")
            vertices = _numbers(rows, [names.index(axis) for axis in "xyz"])
        elif element.name == "face" and element.properties and _is_corners(element.properties[0]):
            sizes = _numbers(rows, [0])[:, 0]
            for k in np.unique(sizes):
                if not 0 <= k <= MAX_CORNERS or k != int(k):
                    raise Malformed(f"a face has {k:g} corners")
                corners = (
                    _numbers([rows[j] for j in np.flatnonzero(sizes == k)], list(range(1, int(k) + 1)))
                    if k
                    else np.empty((0, 0))
                )
                polygons.append(_whole(corners))
    return vertices, polygons


def _whole(corners: np.ndarray) -> np.ndarray:
    """Corners as int64, of any stored type. Raises Malformed for fractions, NaN and what no file can hold."""
    if corners.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            if not (np.isfinite(corners) & (corners == np.floor(corners)) & (np.abs(corners) < 2**53)).all():
                raise Malformed("a face names a vertex by something that is not a whole number")
    return corners.astype(np.int64)


def _numbers(lines: list[str], columns: list[int]) -> np.ndarray:
    if not lines:
        return np.empty((0, len(columns)))
    try:
        return np.loadtxt(lines, usecols=columns, ndmin=2, comments=None)
    except (ValueError, OverflowError) as error:
        raise Malformed(f"a line is not made of numbers: {error}") from error


def _read_binary(
    data: bytes, start: int, elements: list[_Element], order: str
) -> tuple[np.ndarray | None, list[np.ndarray]]:
    vertices, polygons, at = None, [], start
    for element in elements:
        if any(prop.length for prop in element.properties):
            found, at = _binary_lists(data, at, element, order)
            if element.name == "face":
                polygons += found
            elif element.name == "vertex":
                raise Malformed("the vertex element holds a list, which is not supported")
            continue
        record = np.dtype([(f"{k} {prop.name}", order + prop.dtype) for k, prop in enumerate(element.properties)])
        end = at + element.rows * record.itemsize
        if end > len(data):
            raise Malformed(
                f"the header promises {element.rows} of {element.name}, the file ends before; it is truncated"
            )
        names = [prop.name for prop in element.properties]
        if element.name == "vertex" and {"x", "y", "z"} <= set(names):
            table = np.frombuffer(data, dtype=record, count=element.rows, offset=at)
            vertices = np.stack([table[f"{names.index(axis)} {axis}"].astype(np.float64) for axis in "xyz"], axis=-1)
        at = end
    return vertices, polygons


def _binary_lists(data: bytes, at: int, element: _Element, order: str) -> tuple[list[np.ndarray], int]:
    """Rows with lists: all of one length at a stride when they are, one by one when they are not."""
    if element.rows == 0:
        return [], at
    lengths, end = _row_lengths(data, at, element, order)
    if end is None:
        raise Malformed(f"the header promises {element.rows} of {element.name}, the file ends before; it is truncated")
    fields: list[tuple[Any, ...]] = []
    corners = None
    for k, (prop, length) in enumerate(zip(element.properties, lengths, strict=True)):
        if prop.length is None:
            fields.append((f"v{k}", order + prop.dtype))
            continue
        fields += [(f"n{k}", order + prop.length), (f"v{k}", order + prop.dtype, (length,))]
        corners = k if _is_corners(prop) else corners
    record = np.dtype(fields)
    stop = at + element.rows * record.itemsize
    if stop <= len(data):
        table = np.frombuffer(data, dtype=record, count=element.rows, offset=at)
        if all((table[f"n{k}"] == lengths[k]).all() for k, prop in enumerate(element.properties) if prop.length):
            return ([] if corners is None else [_whole(table[f"v{corners}"])]), stop
    polygons: dict[int, list[np.ndarray]] = {}
    for _ in range(element.rows):
        row = at
        lengths, after = _row_lengths(data, at, element, order)
        if after is None:
            raise Malformed(
                f"the header promises {element.rows} of {element.name}, the file ends before; it is truncated"
            )
        for prop, length in zip(element.properties, lengths, strict=True):
            row += np.dtype(prop.length).itemsize if prop.length else 0
            if _is_corners(prop):
                polygons.setdefault(length, []).append(
                    np.frombuffer(data, dtype=order + prop.dtype, count=length, offset=row)
                )
            row += np.dtype(prop.dtype).itemsize * length
        at = after
    return [_whole(np.stack(rows)) for rows in polygons.values()], at


def _row_lengths(data: bytes, at: int, element: _Element, order: str) -> tuple[list[int], int | None]:
    """Numbers in each property of the row at ``at`` (1 for a plain one), and where the row ends; None past the end of
    the data.
    """
    lengths: list[int] = []
    for prop in element.properties:
        length = 1
        if prop.length is not None:
            size = np.dtype(prop.length).itemsize
            if at + size > len(data):
                return lengths, None
            length = int(np.frombuffer(data, dtype=order + prop.length, count=1, offset=at)[0])
            at += size
        if length < 0:
            raise Malformed(f"a list has {length} entries")
        lengths.append(length)
        at += np.dtype(prop.dtype).itemsize * length
        if at > len(data):
            return lengths, None
    return lengths, at
