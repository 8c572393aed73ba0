"""Files that trimesh reads."""

import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.corpora.formats.geometry import Cloud, Malformed, Surface

__all__ = ["Beside", "load_by_trimesh"]

logger = logging.getLogger(__name__)


class Beside(Mapping[str, bytes]):
    """The files in one folder, by plain name, for a GLTF that keeps its buffers in them; no other folder, no device."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, name: str) -> bytes:
        path = self._folder / name
        if Path(name).name != name or not path.is_file():
            raise Malformed(f"wants {name!r}, which is not a file beside it")
        return path.read_bytes()

    def __iter__(self) -> Iterator[str]:
        return (path.name for path in sorted(self._folder.iterdir()) if path.is_file())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def load_by_trimesh(file: io.StringIO | io.BytesIO, kind: str, resolver: Beside | None) -> Surface | Cloud:
    """What trimesh reads, as one surface; or as one cloud when there is no surface in it."""
    import trimesh

    try:
        loaded = trimesh.load(file, file_type=kind, process=False, skip_materials=True, resolver=resolver)
        pieces = loaded.dump() if isinstance(loaded, trimesh.Scene) else [loaded]
    except (Malformed, MemoryError):
        raise
    except Exception as error:
        # On damaged input trimesh raises whatever its first broken assumption leads to (KeyError, IndexError,
        # struct.error and more), so no list of classes is complete. Only parsing happens here: the file is at fault.
        logger.debug("trimesh failed on a %s file", kind, exc_info=True)
        raise Malformed(f"cannot be parsed as {kind}: {type(error).__name__}: {error}"[:300]) from error
    meshes = [piece for piece in pieces if isinstance(piece, trimesh.Trimesh) and len(piece.faces)]
    clouds = [piece for piece in pieces if isinstance(piece, trimesh.points.PointCloud) and len(piece.vertices)]
    for piece in meshes or clouds:
        if piece.vertices.ndim != 2 or piece.vertices.shape[1] != 3:
            raise Malformed(f"its vertices have shape {piece.vertices.shape}; expected (n, 3)")
    if not meshes:
        if not clouds:
            raise Malformed("holds neither triangles nor points")
        return Cloud(np.concatenate([np.asarray(cloud.vertices) for cloud in clouds]))
    vertices, faces, offset = [], [], 0
    for mesh in meshes:
        corners = np.asarray(mesh.faces, dtype=np.int64)
        if corners.ndim != 2 or corners.shape[1] != 3:
            raise Malformed(f"its faces have shape {corners.shape}; expected (n, 3)")
        if corners.min() < 0 or corners.max() >= len(mesh.vertices):
            raise Malformed(f"a face names vertex {int(corners.max())}; there are {len(mesh.vertices)}")
        vertices.append(np.asarray(mesh.vertices, dtype=np.float64))
        faces.append(corners + offset)
        offset += len(mesh.vertices)
    return Surface(np.concatenate(vertices), np.concatenate(faces))
