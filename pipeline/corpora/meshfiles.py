"""Readers of surfaces: OFF, STL, OBJ, GLB and GLTF. PLY has a file of its own, for it may hold a cloud.

OFF and STL are read here and not by trimesh: ModelNet's OFF files carry their counts on the first line, and a truncated
file must be an error, never a smaller mesh.
"""

import io
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.corpora.geometry import Cloud, Malformed, Surface

__all__ = ["fan_triangles", "read_gltf", "read_obj", "read_off", "read_stl"]

logger = logging.getLogger(__name__)


def fan_triangles(polygons: np.ndarray) -> np.ndarray:
    """Polygons of k corners [F, k] as fans of triangles [F * (k - 2), 3]."""
    k = polygons.shape[1]
    if k < 3:
        return np.empty((0, 3), dtype=np.int64)
    fans = [np.stack([polygons[:, 0], polygons[:, j], polygons[:, j + 1]], axis=-1) for j in range(1, k - 1)]
    return np.concatenate(fans).astype(np.int64)


def read_off(data: bytes, path: Path) -> Surface | Cloud:
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
    vertices = _table(lines[body : body + M], 3, "vertex")
    faces = lines[body + M : body + M + F]
    if not faces:
        return Cloud(vertices)
    sizes = _table(faces, 1, "face")[:, 0]
    triangles = []
    for k in np.unique(sizes):
        if not 1 <= k <= 10_000 or k != int(k):
            raise Malformed(f"a face has {k:g} corners")
        rows = [faces[j] for j in np.flatnonzero(sizes == k)]
        triangles.append(fan_triangles(_whole(_table(rows, int(k) + 1, "face")[:, 1:])))
    return Surface(vertices, np.concatenate(triangles))


def read_stl(data: bytes, path: Path) -> Surface:
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
    return Surface(_table(corners, 3, "vertex"), np.arange(len(corners)).reshape(-1, 3))


def read_obj(data: bytes, path: Path) -> Surface | Cloud:
    """Wavefront OBJ: v and f lines, any f form; materials are not looked at."""
    if b"\0" in data:
        raise Malformed("is binary; an OBJ is text")
    return _by_trimesh(io.StringIO(data.decode("latin-1")), "obj", None)


def read_gltf(data: bytes, path: Path) -> Surface | Cloud:
    """GLB, or GLTF with its buffers inside it or in files beside it; all nodes of the scene, placed."""
    if path.suffix.lower() == ".gltf":
        try:
            json.loads(data)  # trimesh would look for another file when this one is not JSON
        except (ValueError, RecursionError) as error:
            raise Malformed(f"cannot be parsed as JSON: {error}") from error
        return _by_trimesh(io.BytesIO(data), "gltf", _Beside(path.parent))
    if len(data) < 12 or data[:4] != b"glTF":
        raise Malformed("does not start with glTF")
    size = int.from_bytes(data[8:12], "little")
    if size != len(data):
        raise Malformed(f"the header promises {size} bytes, the file has {len(data)}")
    return _by_trimesh(io.BytesIO(data), "glb", None)


class _Beside(Mapping[str, bytes]):
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


def _by_trimesh(file: io.StringIO | io.BytesIO, kind: str, resolver: _Beside | None) -> Surface | Cloud:
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


def _table(lines: list[str], columns: int, what: str) -> np.ndarray:
    """The first columns of some lines as numbers: [len(lines), columns] float64."""
    if not lines:
        return np.empty((0, columns))
    try:
        return np.loadtxt(lines, usecols=range(columns), ndmin=2, comments=None)
    except ValueError as error:
        raise Malformed(f"a {what} line is not {columns} numbers: {error}") from error


def _whole(numbers: np.ndarray) -> np.ndarray:
    if not (np.isfinite(numbers).all() and (numbers == np.floor(numbers)).all() and np.abs(numbers).max() < 2**53):
        raise Malformed("a face names a vertex by something that is not a whole number")
    return numbers.astype(np.int64)
