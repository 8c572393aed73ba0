"""GLB and GLTF."""

import io
import json
from pathlib import Path

from pipeline.corpora.formats.by_trimesh import Beside, load_by_trimesh
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface

__all__ = ["read_gltf"]


def read_gltf(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """GLB, or GLTF with its buffers inside it or in files beside it; all nodes of the scene, placed."""
    if path.suffix.lower() == ".gltf":
        try:
            json.loads(data)  # trimesh would look for another file when this one is not JSON
        except (ValueError, RecursionError) as error:
            raise Malformed(f"cannot be parsed as JSON: {error}") from error
        return load_by_trimesh(io.BytesIO(data), "gltf", Beside(path.parent))
    if len(data) < 12 or data[:4] != b"glTF":
        raise Malformed("does not start with glTF")
    size = int.from_bytes(data[8:12], "little")
    if size != len(data):
        raise Malformed(f"the header promises {size} bytes, the file has {len(data)}")
    return load_by_trimesh(io.BytesIO(data), "glb", None)
