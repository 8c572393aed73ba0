"""Geometries of files, a cloud of points or a surface of triangles, and the limits that every reader keeps.

A reader takes untrusted bytes. It either returns a geometry or raises ``Malformed`` with a reason; it never allocates
more than the bytes at hand can justify, whatever their header says, and never unpickles.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.corpora.base import ShapeError, shape_generator
from pipeline.corpora.check import check_shape, fit_points
from pipeline.corpora.surface import sample_surface

__all__ = ["Cloud", "Format", "Malformed", "ReadOptions", "ReaderMissing", "Surface", "sample_geometry"]


class Malformed(Exception):
    """Bytes that do not match their extension, or are damaged.

    Readers raise it; ``files.read_geometry`` names the file.
    """


class ReaderMissing(Malformed):
    """The library that reads such files is not installed; nothing is known to be wrong with the file."""


@dataclass(frozen=True)
class ReadOptions:
    """The user's options for the files of a corpus, for what readers cannot know from the bytes.

    columns  names or 1-based numbers of the columns that are x, y and z; empty: by the file's own header, or by a rule
             that is certain
    parts    what becomes the part label of a face or point: "" for nothing, "group", "object", "material", "node", or
             the name of an integer property
    up       the axis that is up, "y" or "z", which a file that names its own must not contradict; "file": as it says
    """

    columns: tuple[str, ...] = ()
    parts: str = ""
    up: str = "file"


@dataclass(frozen=True)
class Cloud:
    """Points as stored.

    points      [M, 3], any number type, finite or not.
    parts       [M] int64 index into part_names (or a label as stored, when part_names is empty), or None.
    part_names  names of the parts of this file.
    notes       what was skipped or repaired while reading, by reason, counted: {"points that are NaN": 12}.
    """

    points: np.ndarray
    parts: np.ndarray | None = None
    part_names: tuple[str, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Surface:
    """Triangles.

    vertices    [M, 3] float64; those that no triangle uses may be anything, and are never examined.
    faces       [F, 3] int64 into vertices.
    parts       [F] int64 index into part_names (or a label as stored, when part_names is empty), or None.
    part_names  names of the parts of this file.
    notes       what was skipped or repaired while reading, by reason, counted: {"degenerate faces": 3}.
    """

    vertices: np.ndarray
    faces: np.ndarray
    parts: np.ndarray | None = None
    part_names: tuple[str, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """The reader of one kind of file.

    read      takes the file's bytes, its path (to find files beside it) and options; returns a geometry or raises
              Malformed with a reason, whatever the bytes; never takes memory or time that they do not justify.
    name      of the reader; readers of several suffixes share one.
    version   incremented whenever the same bytes would give another geometry: it enters the identity of what was read.
    beside    files that a file names and that belong to the shape, such as the buffers of a glTF, by its path; opens it
              and reads no more of it than it has to. Raises Malformed, ShapeError and MachineFault.
    held      as `read`, of a file that lies nowhere on disk, with those beside it in memory by their relative paths.
              None: `read` itself opens nothing, or, with `beside`, only what is on disk can be read.
    """

    read: Callable[[bytes, Path, ReadOptions], Surface | Cloud]
    name: str
    version: int = 1
    beside: Callable[[Path], Sequence[Path]] | None = None
    held: Callable[[bytes, Path, Mapping[str, bytes], ReadOptions], Surface | Cloud] | None = None

    @property
    def needs_disk(self) -> bool:
        """Whether files of this kind can only be read from a disk."""
        return self.beside is not None and self.held is None


def sample_geometry(
    geometry: Cloud | Surface,
    *,
    count: int,
    seed: int,
    id: str,
    source: str,
    repeat: bool,
    stored_order: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return exactly ``count`` checked points of a geometry, drawn by (seed, id) only.

    A surface is sampled by area, a cloud is cut to size.

    stored_order  True: the first points of a cloud as they are stored, see `fit_points`; a surface has no order.
    ->  [count, 3] float32 in random order, and the part of each point [count] int, or None. Raises ShapeError.
    """
    if isinstance(geometry, Cloud):
        return fit_points(
            geometry.points,
            geometry.parts,
            count=count,
            seed=seed,
            id=id,
            source=source,
            repeat=repeat,
            stored_order=stored_order,
        )
    vertices, faces = geometry.vertices, geometry.faces
    if len(faces) == 0 or len(vertices) == 0:
        raise ShapeError(source, "the mesh has no triangles")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ShapeError(source, f"a face refers to vertex {int(faces.max())}; there are {len(vertices)} vertices")
    used = np.abs(vertices[faces]).max()
    if not used < np.finfo(np.float32).max:
        raise ShapeError(source, "some vertices are not finite in float32")
    scale = float(used) or 1.0  # areas of the scaled mesh neither overflow nor vanish
    uniform = shape_generator(seed, id, "surface").random((count, 3))
    try:
        points, chosen = sample_surface(vertices / scale, faces, uniform)
    except ValueError as error:
        raise ShapeError(source, f"the mesh cannot be sampled: {error}") from error
    cloud = (points * scale).astype(np.float32)
    check_shape(cloud, source)
    return cloud, None if geometry.parts is None else geometry.parts[chosen]
