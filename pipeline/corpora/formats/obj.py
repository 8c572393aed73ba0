"""Wavefront OBJ: vertices and polygons. The format: Wavefront, Advanced Visualizer manual, appendix B1 (1995)."""

import re
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.polygons import fan_triangles

__all__ = ["read_obj"]


class _Elements(NamedTuple):
    xyz: np.ndarray  # [M, 3] float64
    sizes: np.ndarray  # [F] int64, corners of each polygon
    corners: np.ndarray  # [sum of sizes] int64, vertices from 0
    owners: np.ndarray  # [F] int64 index into names
    names: tuple[str, ...]
    notes: dict[str, int]


_PARTS = {"object": "o", "group": "g", "material": "usemtl"}


def read_obj(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """v and f lines, any f form; a file without f lines is a cloud. Indices that count back do so from the vertex last
    read. Texture, normals, curves and materials are not looked at; lines and points are counted.
    """
    if options.parts not in ("", *_PARTS):
        raise Malformed(f"parts={options.parts} is asked for; an OBJ has parts by object, group and material")
    xyz, sizes, corners, owners, names, notes = _elements(_lines(data), _PARTS.get(options.parts, ""))
    if not len(sizes):
        if not len(xyz):
            raise Malformed("holds neither triangles nor points")
        return Cloud(xyz, notes=notes)
    if corners.max() >= len(xyz):
        raise Malformed(f"a face names vertex {int(corners.max()) + 1}; there are {len(xyz)}")
    starts = np.cumsum(sizes) - sizes
    triangles, parts = [], []
    for k in np.unique(sizes):
        polygons = np.flatnonzero(sizes == k)
        triangles.append(fan_triangles(corners[starts[polygons, None] + np.arange(k)]))
        parts.append(np.tile(owners[polygons], k - 2))
    if not options.parts:
        return Surface(xyz, np.concatenate(triangles), notes=notes)
    return Surface(xyz, np.concatenate(triangles), parts=np.concatenate(parts), part_names=names, notes=notes)


def _lines(data: bytes) -> list[str]:
    """Lines of text, continued ones joined."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise Malformed(f"is UTF-16 by its mark and cannot be decoded: {error}"[:200]) from error
    else:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("latin-1")
    if "\0" in text:
        raise Malformed("is binary; an OBJ is text")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # a joined line leaves its line ends behind it, so that numbers of lines stay those of the file
    text = re.sub(r"(?:[^\n]*\\[ \t]*\n)+[^\n]*", _joined, text) if "\\" in text else text
    return text.split("\n")


def _joined(match: re.Match[str]) -> str:
    return re.sub(r"\\[ \t]*\n", " ", match[0]) + "\n" * match[0].count("\n")


def _elements(lines: list[str], part_word: str) -> _Elements:
    vertices, sizes, corners, owners = array("d"), array("q"), array("q"), array("q")
    names: dict[str, int] = {}
    owner = "none"
    notes: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        word = words[0]
        try:
            if word == "v":
                if len(words) < 4 or "_" in line:
                    raise ValueError
                vertices.extend((float(words[1]), float(words[2]), float(words[3])))
            elif word in ("f", "fo"):  # fo is what the first version called it
                if len(words) < 4:
                    notes["faces of fewer than three corners"] = notes.get("faces of fewer than three corners", 0) + 1
                    continue
                count = len(vertices) // 3
                for text in words[1:]:
                    at = int(text.split("/", 1)[0])
                    at = at - 1 if at > 0 else count + at
                    if at < 0 or at >= 2**53 or text.startswith("0") or "_" in text:
                        raise ValueError
                    corners.append(at)
                sizes.append(len(words) - 1)
                owners.append(names.setdefault(owner, len(names)))
            elif word in ("l", "p"):
                kind = "lines" if word == "l" else "points named beside the faces"
                notes[kind] = notes.get(kind, 0) + 1
            elif word == part_word:
                owner = " ".join(words[1:]) or "none"
        except (ValueError, OverflowError):
            what = "is not three numbers" if word == "v" else "names a vertex that cannot be"
            raise Malformed(f"line {number}: {line.strip()[:60]!r} {what}") from None
    return _Elements(
        np.array(vertices, np.float64).reshape(-1, 3),
        np.array(sizes, np.int64),
        np.array(corners, np.int64),
        np.array(owners, np.int64),
        tuple(names),
        notes,
    )
