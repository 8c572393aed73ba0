"""What a file can hold: a cloud of points or a surface of triangles; and the limits that every reader keeps.

A reader takes bytes that nobody promised anything about. It either returns a geometry or raises ``Malformed`` with a
reason; it never allocates more than the bytes at hand can justify, whatever their header says, and never unpickles.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.corpora.base import ShapeError, shape_generator
from pipeline.corpora.check import check_shape, fit_points
from pipeline.corpora.surface import sample_surface

__all__ = ["Cloud", "Malformed", "Surface", "sample_geometry"]


class Malformed(Exception):
    """The bytes are not what their extension says, or are damaged. Readers raise it; ``files.read_geometry`` names the
    file.
    """


@dataclass(frozen=True)
class Cloud:
    """Points as stored: [M, 3], any number type."""

    points: np.ndarray


@dataclass(frozen=True)
class Surface:
    """Triangles: vertices [M, 3] float64, faces [F, 3] int64 into them."""

    vertices: np.ndarray
    faces: np.ndarray


def sample_geometry(
    geometry: Cloud | Surface, *, count: int, seed: int, id: str, source: str, repeat: bool
) -> np.ndarray:
    """Exactly ``count`` checked points: a surface sampled by area, a cloud cut to size; by numbers that depend on
    (seed, id) only.

    ->  [count, 3] float32 in random order. Raises ShapeError.
    """
    if isinstance(geometry, Cloud):
        return fit_points(geometry.points, None, count=count, seed=seed, id=id, source=source, repeat=repeat)[0]
    vertices, faces = geometry.vertices, geometry.faces
    if len(faces) == 0 or len(vertices) == 0:
        raise ShapeError(source, "the mesh has no triangles")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ShapeError(source, f"a face names vertex {int(faces.max())}; there are {len(vertices)}")
    used = np.abs(vertices[faces]).max()
    if not used < np.finfo(np.float32).max:
        raise ShapeError(source, "some vertices are not finite in float32")
    scale = float(used) or 1.0  # areas of the scaled mesh neither overflow nor vanish
    uniform = shape_generator(seed, id, "surface").random((count, 3))
    try:
        points, _ = sample_surface(vertices / scale, faces, uniform)
    except ValueError as error:
        raise ShapeError(source, f"the mesh cannot be sampled: {error}") from error
    cloud = (points * scale).astype(np.float32)
    check_shape(cloud, source)
    return cloud
