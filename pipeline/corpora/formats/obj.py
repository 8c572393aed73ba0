"""Wavefront OBJ: vertices and polygons. The format: Wavefront, Advanced Visualizer manual, appendix B1 (1995)."""

import re
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.obj_blocks import face_rows, line_blocks, vertex_rows
from pipeline.corpora.formats.polygons import cut_polygons
from pipeline.corpora.formats.text import decode_text

__all__ = ["read_obj"]


class _Elements(NamedTuple):
    xyz: np.ndarray  # [M, 3] float64
    sizes: np.ndarray  # [F] int64, corners of each polygon
    corners: np.ndarray  # [sum of sizes] int64, vertices from 0
    points: np.ndarray  # [P] int64, vertices that p lines name
    owners: np.ndarray  # [F] int64 index into names
    names: tuple[str, ...]
    notes: dict[str, int]


_PARTS = {"object": "o", "group": "g", "material": "usemtl"}
_COUNTED = {
    "l": "lines",
    "curv": "free-form curves",
    "curv2": "free-form curves",
    "f": "faces of fewer than three corners",
}
_SURFACES = frozenset({"surf", "bzp", "bsp", "cdc"})  # the last three are those of the format's first version


def read_obj(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Read v and f lines, any f form.

    A file without f lines is a cloud: of the vertices that p lines name, or of all if nothing names any. Negative
    indices count back from the vertex last read. Texture, normals, weights and materials are ignored; lines and curves
    are counted. Free-form surfaces are refused, and files of nothing but lines.
    """
    if options.parts not in ("", *_PARTS):
        raise Malformed(f"parts={options.parts} was requested; an OBJ has parts by object, group and material")
    found = _elements(_text(data), _PARTS.get(options.parts, ""))
    if not len(found.sizes):
        if not len(found.xyz) or (found.notes and not len(found.points)):
            held = ", ".join(f"{count} {what}" for what, count in found.notes.items())
            raise Malformed(f"holds neither triangles nor points{f' ({held})' if held else ''}")
        points = found.xyz[np.unique(found.points)] if len(found.points) else found.xyz
        return Cloud(points, notes=found.notes)
    starts = np.cumsum(found.sizes) - found.sizes
    groups, order = [], []
    for k in np.unique(found.sizes):
        polygons = np.flatnonzero(found.sizes == k)
        groups.append(found.corners[starts[polygons, None] + np.arange(k)])
        order.append(polygons)
    cut = cut_polygons(found.xyz, groups)
    notes = {**found.notes, **cut.notes}
    if len(found.points):
        notes["points beside the faces, not sampled"] = len(found.points)
    if not options.parts:
        return Surface(found.xyz, cut.faces, notes=notes)
    parts = found.owners[np.concatenate(order)][cut.owners]
    return Surface(found.xyz, cut.faces, parts=parts, part_names=found.names, notes=notes)


def _text(data: bytes) -> str:
    """Decode the text with LF line ends, continued lines joined."""
    text = decode_text(data).replace("\r\n", "\n").replace("\r", "\n")
    # a joined line leaves its line ends behind it, so that numbers of lines stay those of the file
    return re.sub(r"(?:[^\n]*\\[ \t]*\n)+[^\n]*", _joined, text) if "\\" in text else text


def _joined(match: re.Match[str]) -> str:
    return re.sub(r"\\[ \t]*\n", " ", match[0]) + "\n" * match[0].count("\n")


def _elements(text: str, part_word: str) -> _Elements:
    vertices, sizes, corners, points, owners = array("d"), array("q"), array("q"), array("q"), array("q")
    names: dict[str, int] = {}
    owner = "none"
    notes: dict[str, int] = {}
    last = (0, 0)  # the greatest index that was named, and the line that named it: its vertex may come later

    def indices(words: list[str]) -> list[int]:
        """Parse the vertices, from 0, that a line names. Raises ValueError."""
        count = len(vertices) // 3
        found = []
        for text in words:
            at = int(text.split("/", 1)[0])
            at = at - 1 if at > 0 else count + at
            if at < 0 or at >= 2**53 or text.startswith("0") or "_" in text or not text.isascii():
                raise ValueError
            found.append(at)
        return found

    def take(number: int, line: str) -> None:
        nonlocal last, owner
        words = line.split("#", 1)[0].split()
        if not words:
            return
        word = "f" if words[0] == "fo" else words[0]  # as the format's first version calls it
        try:
            if word == "v":
                if len(words) < 4 or "_" in line or not all(word.isascii() for word in words[1:4]):
                    raise ValueError
                vertices.extend((float(words[1]), float(words[2]), float(words[3])))
            elif word == "p" or (word == "f" and len(words) > 3):
                named = indices(words[1:])
                last = max(last, (max(named, default=-1) + 1, number))
                if word == "p":
                    points.extend(named)
                else:
                    corners.extend(named)
                    sizes.append(len(named))
                    owners.append(names.setdefault(owner, len(names)))
            elif word in _COUNTED:
                notes[_COUNTED[word]] = notes.get(_COUNTED[word], 0) + 1
            elif word in _SURFACES:
                raise Malformed(f"line {number}: holds free-form surfaces ({word}); export it as polygons")
            elif word == part_word:
                owner = " ".join(words[1:]) or "none"
        except (ValueError, OverflowError):
            what = "is not three numbers" if word == "v" else "refers to a vertex that cannot exist"
            raise Malformed(f"line {number}: {line.strip()[:60]!r} {what}") from None

    for block in line_blocks(text):
        if block.kind == "v" and (rows := vertex_rows(block)) is not None:
            vertices.frombytes(rows.tobytes())
        elif block.kind == "f" and (found := face_rows(block)) is not None:
            last = max(last, (found.highest, found.line))
            corners.frombytes(found.corners.tobytes())
            sizes.frombytes(found.sizes.tobytes())
            owners.extend([names.setdefault(owner, len(names))] * len(found.sizes))
        elif block.kind != "vn" and block.kind != "vt":
            for number, line in enumerate(block.text.split("\n"), block.first):
                take(number, line)
    if last[0] > len(vertices) // 3:
        raise Malformed(f"line {last[1]} refers to vertex {last[0]}; there are {len(vertices) // 3} vertices")
    return _Elements(
        np.array(vertices, np.float64).reshape(-1, 3),
        np.array(sizes, np.int64),
        np.array(corners, np.int64),
        np.array(points, np.int64),
        np.array(owners, np.int64),
        tuple(names),
        notes,
    )
