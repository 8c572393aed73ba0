"""Stereolithography, binary or ASCII."""

from pathlib import Path

import numpy as np

from pipeline.corpora.formats.geometry import Malformed, ReadOptions, Surface
from pipeline.corpora.formats.tokens import table

__all__ = ["read_stl"]


def read_stl(data: bytes, path: Path, options: ReadOptions) -> Surface:
    """Stereolithography, binary or ASCII."""
    if len(data) >= 84:
        count = int.from_bytes(data[80:84], "little")
        if len(data) == 84 + 50 * count:
            record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
            vertices = np.frombuffer(data, dtype=record, offset=84)["corners"].astype(np.float64).reshape(-1, 3)
            return Surface(vertices, np.arange(len(vertices)).reshape(-1, 3))
        if not data.lstrip()[:5].lower() == b"solid":
            raise Malformed(
                f"the header promises {count} triangles ({84 + 50 * count} bytes), the file has {len(data)} bytes"
            )
    text = data.decode("latin-1").lower()
    if not text.lstrip().startswith("solid") or "endsolid" not in text:
        raise Malformed("neither a binary STL nor a whole ASCII one (solid ... endsolid)")
    corners = [
        line.split(None, 1)[1]
        for line in map(str.strip, text.splitlines())
        if line.startswith("vertex ") and len(line) > 7
    ]
    if not corners or len(corners) % 3:
        raise Malformed(f"holds {len(corners)} vertex lines; expected three a triangle")
    return Surface(table(corners, 3, "vertex"), np.arange(len(corners)).reshape(-1, 3))
