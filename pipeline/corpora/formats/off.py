"""Object File Format, ASCII."""

from pathlib import Path

import numpy as np

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.polygons import MAX_CORNERS, cut_polygons
from pipeline.corpora.formats.tokens import table, whole

__all__ = ["read_off"]


def read_off(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Object File Format, ASCII: OFF, COFF or NOFF, with counts on a line of their own or (ModelNet) right behind the
    word.
    """
    lines = [line for line in (raw.split("#", 1)[0].strip() for raw in data.decode("latin-1").splitlines()) if line]
    if not lines:
        raise Malformed("the file is empty")
    head = lines[0]
    word = next((w for w in ("COFF", "NOFF", "OFF") if head.upper().startswith(w)), None)
    if word is None:
        raise Malformed(f"starts with {head[:20]!r}; expected OFF")
    rest = head[len(word) :].split()
    body = 1
    if not rest and len(lines) > 1:
        rest, body = lines[1].split(), 2
    try:
        counts = [int(text) for text in rest[:2]]
    except ValueError:
        counts = []
    if len(counts) < 2 or min(counts) < 0:
        raise Malformed(f"the counts after OFF are {' '.join(rest[:3])[:40]!r}; expected two whole numbers")
    M, F = counts
    if len(lines) - body < M + F:
        raise Malformed(
            f"the header promises {M} vertices and {F} faces, {len(lines) - body} lines follow; the file is truncated"
        )
    vertices = table(lines[body : body + M], 3, "vertex")
    faces = lines[body + M : body + M + F]
    if not faces:
        return Cloud(vertices)
    sizes = table(faces, 1, "face")[:, 0]
    polygons = []
    for k in np.unique(sizes):
        if not 0 <= k <= MAX_CORNERS or k != int(k):
            raise Malformed(f"a face has {k:g} corners")
        rows = [faces[j] for j in np.flatnonzero(sizes == k)]
        polygons.append(whole(table(rows, int(k) + 1, "face")[:, 1:]))
    cut = cut_polygons(vertices, polygons)
    return Surface(vertices, cut.faces, notes=cut.notes)
