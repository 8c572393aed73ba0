"""Wavefront OBJ."""

import io
from pathlib import Path

from pipeline.corpora.formats.by_trimesh import load_by_trimesh
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface

__all__ = ["read_obj"]


def read_obj(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Wavefront OBJ: v and f lines, any f form; materials are not looked at."""
    if b"\0" in data:
        raise Malformed("is binary; an OBJ is text")
    return load_by_trimesh(io.StringIO(data.decode("latin-1")), "obj", None)
