"""PLY, ASCII or binary: a mesh or a cloud. The format: Greg Turk, The PLY Polygon File Format (1994)."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.corpora.formats.columns import whole_parts
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.polygons import MAX_CORNERS, cut_polygons
from pipeline.corpora.formats.records import Binary, Element, Property, Rows, Source, Words, locate, skip
from pipeline.corpora.formats.tokens import read_tokens

__all__ = ["read_ply"]

_NAMES = {
    "i1": "char int8",
    "u1": "uchar uint8",
    "i2": "short int16",
    "u2": "ushort uint16",
    "i4": "int int32",
    "u4": "uint uint32",
    "i8": "int64",
    "u8": "uint64",
    "f4": "float float32",
    "f8": "double float64",
}
_TYPES = {name: dtype for dtype, names in _NAMES.items() for name in names.split()}
_MAX_HEADER = 2**20
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r)")
_CORNERS = ("vertex_indices", "vertex_index")
_FACES = ("face", "tristrips")
_LOOSE = 50  # bytes behind the last element that a writer may leave


class _Header(NamedTuple):
    form: str
    elements: list[Element]
    body: int  # where it starts


def read_ply(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Read the ``vertex`` element as points, and ``face`` or ``tristrips``, if one has rows, as triangles.

    Triangles come from the list vertex_indices (or vertex_index), wherever it stands among the properties.

    Other elements and properties are passed over. ``parts`` is a plain property of the faces, or of the vertices: a
    triangle then has the label of most of its corners.
    """
    header = _header(data)
    elements = {element.name: element for element in header.elements}
    faces = [elements[name] for name in _FACES if name in elements and elements[name].rows]
    if "vertex" not in elements:
        raise Malformed(f"has no vertex element; it has {', '.join(elements)[:80] or 'none at all'}")
    if len(faces) > 1:
        raise Malformed(
            "has both face and tristrips, which may describe the same surface twice; save it with one of them"
        )
    axes = [_only(elements["vertex"], axis) for axis in "xyz"]
    corners = [_corner_list(element) for element in faces]
    where, notes = _find(data, header, wanted={"vertex", *(element.name for element in faces)})
    vertices = np.stack([where["vertex"].column(k) for k in axes], axis=1)
    if not faces:
        edges = elements.get("edge")
        if edges and edges.rows:
            raise Malformed(f"has {edges.rows} edges and no faces; its vertices are ends of edges, not a cloud")
        return Cloud(vertices, parts=_labels(where["vertex"], options.parts), notes=notes)
    rows = where[faces[0].name]
    triangles, owners, found = (_polygons if faces[0].name == "face" else _strips)(vertices, rows, corners[0])
    notes = {**notes, **found}
    if not len(triangles):
        held = ", ".join(f"{count} {what}" for what, count in notes.items())
        raise Malformed(f"holds no triangles{f' ({held})' if held else ''}; a cloud has no {faces[0].name} element")
    parts = None
    if options.parts and any(prop.name == options.parts and not prop.length for prop in rows.element.properties):
        labels = _labels(rows, options.parts)
        parts = None if labels is None else labels[owners]
    elif options.parts:
        parts, mixed = _of_most(_labels(where["vertex"], options.parts, beside=rows.element), triangles)
        if mixed:
            notes["triangles whose corners are of several parts"] = mixed
    return Surface(vertices, triangles, parts=parts, notes=notes)


def _header(data: bytes) -> _Header:
    begin = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    lines: list[str] = []
    at, ends = begin, set()
    while not lines or lines[-1] != "end_header":
        match = _LINE.match(data, at, min(len(data), begin + _MAX_HEADER))
        if match is None:
            if data[at:].strip(b" \t") != b"end_header":
                raise Malformed("has no PLY header (ply ... end_header)")
            at = len(data)
            break
        if lines or match[1].strip():
            lines.append(match[1].decode("latin-1").strip())
        if lines and lines[0] != "ply":
            raise Malformed("has no PLY header (ply ... end_header)")
        ends.add(match[2])
        at = match.end()
        if lines[-1:] == ["end_header"] and ends == {b"\r", b"\r\n"}:
            at -= 1  # all lines end in CR, and the body begins with a byte that looks like LF
    form, elements = "", []
    for line in lines[1:]:
        match line.split():
            case ["format", name, _] if not form:
                form = name
            case ["element", name, rows] if (
                rows.isascii() and rows.isdecimal() and len(rows) < 16
            ):  # int() refuses 5,000 digits its own way
                elements.append(Element(name, int(rows), []))
            case ["property", "list", count, kind, name] if count in _TYPES and kind in _TYPES and elements:
                if _TYPES[count].startswith("f"):  # a length may be NaN then
                    raise Malformed(f"list {name[:40]} has its length as {count}; expected a whole number type")
                elements[-1].properties.append(Property(name, _TYPES[kind], _TYPES[count]))
            case ["property", kind, name] if kind in _TYPES and elements:
                elements[-1].properties.append(Property(name, _TYPES[kind]))
            case [] | ["comment" | "obj_info" | "end_header", *_]:
                pass
            case _:
                raise Malformed(f"header line {line[:60]!r} is not understood")
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise Malformed(f"format is {form[:40]!r}; expected ascii, binary_little_endian or binary_big_endian")
    names = [element.name for element in elements]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Malformed(f"its header describes two elements {twice[:40]}")
    return _Header(form, elements, at)


def _only(element: Element, name: str) -> int:
    """Return the only plain property of a name."""
    found = [k for k, prop in enumerate(element.properties) if prop.name == name]
    if len(found) != 1 or element.properties[found[0]].length is not None:
        held = ", ".join(prop.name for prop in element.properties)[:80] or "nothing"
        what = "no plain property" if not found or len(found) == 1 else f"{len(found)} properties"
        raise Malformed(f"its {element.name} element has {what} {name[:40]}; it has {held}")
    return found[0]


def _corner_list(element: Element) -> int:
    found = [k for k in element.lists if element.properties[k].name in _CORNERS]
    if len(found) != 1:
        held = ", ".join(prop.name for prop in element.properties)[:80] or "nothing"
        how_many = "two lists" if found else "no list"
        raise Malformed(f"its {element.name} element has {how_many} vertex_indices (or vertex_index); it has {held}")
    return found[0]


def _find(data: bytes, header: _Header, wanted: set[str]) -> tuple[dict[str, Rows], dict[str, int]]:
    """Read the rows of the wanted elements, by name; and notes."""
    source: Source
    if header.form == "ascii":
        tokens = read_tokens(data, header.body)
        promised = sum(element.rows for element in header.elements if element.properties)
        source = Words(tokens, by_lines=promised == len(tokens.firsts))
        if promised > source.end:  # no row is less than a number
            raise Malformed(f"the header declares {promised} lines, {len(tokens.firsts)} follow; the file is truncated")
        at = 0
    else:
        source = Binary(data, "<" if header.form == "binary_little_endian" else ">")
        at = header.body
    found: dict[str, Rows] = {}
    try:
        for element in header.elements:
            if element.name in wanted:
                found[element.name] = locate(source, at, element)
                at = found[element.name].end
            else:
                at = skip(source, at, element)
    except Malformed as error:
        if header.form == "ascii" and promised > len(tokens.firsts):
            raise Malformed(
                f"the header declares {promised} lines, {len(tokens.firsts)} follow; the file is truncated"
            ) from error
        raise
    if header.form == "ascii" and at < source.end:
        raise Malformed(f"{source.where(at, header.elements[-1], header.elements[-1].rows)}: more than declared")
    rest = data[at:] if header.form != "ascii" else b""
    if len(rest) >= _LOOSE and rest.strip(b"\0 \r\n\t"):
        raise Malformed(f"{len(rest)} bytes follow what its header declares")
    return found, {"bytes behind the last element": len(rest)} if rest.strip() else {}


def _polygons(vertices: np.ndarray, rows: Rows, corners: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Triangulate polygons: triangles [T, 3] int64, the row of each [T] int64, and notes."""
    lengths = rows.lengths[:, rows.element.lists.index(corners)]
    if lengths.max(initial=0) > MAX_CORNERS:
        raise Malformed(f"a face has {lengths.max()} corners; at most {MAX_CORNERS} are read")
    groups, order = rows.groups(corners)
    cut = cut_polygons(vertices, groups)
    return cut.faces, order[cut.owners], cut.notes


def _strips(vertices: np.ndarray, rows: Rows, corners: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Triangulate strips, which a corner of -1 ends; -> as _polygons."""
    groups, order = rows.groups(corners)
    lengths = rows.lengths[:, rows.element.lists.index(corners)][order]
    sequence = np.concatenate([np.pad(group, ((0, 0), (0, 1)), constant_values=-1).reshape(-1) for group in groups])
    owners = np.repeat(order, lengths + 1)
    wrong = sequence[(sequence < -1) | (sequence >= len(vertices))]
    if len(wrong):
        raise Malformed(f"a strip refers to vertex {wrong[0]}; there are {len(vertices)} vertices")
    places = np.arange(len(sequence))
    begins = np.maximum.accumulate(np.where(sequence == -1, places + 1, 0))  # of the strip that each corner is in
    triples = np.stack([sequence[:-2], sequence[1:-1], sequence[2:]], axis=1)
    whole = (triples >= 0).all(axis=1)
    odd = ((places - begins)[:-2] % 2 == 1)[:, None]  # every other triangle turns the other way
    triples = np.where(odd, triples[:, [1, 0, 2]], triples)
    a, b, c = triples.T
    seams = whole & ((a == b) | (b == c) | (a == c))  # how a strip turns a corner
    kept = whole & ~seams
    return triples[kept], owners[:-2][kept], {}


def _labels(rows: Rows, parts: str, beside: Element | None = None) -> np.ndarray | None:
    """Return part labels [R] int64 from the plain property ``parts``; None if none is asked for."""
    if not parts:
        return None
    names = [prop.name for prop in rows.element.properties if prop.length is None]
    if names.count(parts) != 1:
        held = names + [prop.name for prop in beside.properties if prop.length is None] if beside else names
        raise Malformed(f"parts={parts} was requested; its properties are {', '.join(held)[:80]}")
    return whole_parts(rows.column(_only(rows.element, parts)), parts)


def _of_most(labels: np.ndarray | None, triangles: np.ndarray) -> tuple[np.ndarray | None, int]:
    """Return the label of most corners of each triangle [T, 3], and how many triangles are mixed.

    Where all corners differ, the first one's.
    """
    if labels is None:
        return None, 0
    a, b, c = labels[triangles].T
    return np.where(b == c, b, a), int(((a != b) | (b != c)).sum())
