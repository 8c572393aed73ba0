"""Inspection of one shape: the few numbers that a report needs, so that the shape need not be kept."""

import hashlib

import numpy as np

from pipeline.corpora.base import Inspection
from pipeline.corpora.formats.geometry import Cloud, Surface
from pipeline.corpora.surface import triangle_areas

__all__ = ["inspect_cloud", "inspect_mesh", "standing"]

DIGEST_BYTES = 16  # of a SHA-256: among 10^9 shapes, two that differ share one by a chance of 10^-21
SLAB = 0.01  # of the longest side: what lies this near to a face of the box touches it
LEAST = 0.3  # by which the difference of one axis' two ends must exceed those of the others, to count as a vote


def inspect_mesh(surface: Surface, *, file: bytes | None = None, size: int = 0) -> Inspection:
    """Inspect a surface that passed the checks of `sample_geometry`."""
    used = surface.vertices[np.unique(surface.faces)]
    low, high = used.min(axis=0), used.max(axis=0)
    corners = surface.vertices[surface.faces].astype(np.float32)
    return Inspection(
        kind="mesh",
        stored=len(used),
        faces=len(surface.faces),
        area=float(triangle_areas(surface.vertices, surface.faces).sum()),
        low=low,
        high=high,
        stands=standing(used),
        content=_digest(corners),
        notes=surface.notes,
        file=file,
        size=size,
    )


def inspect_cloud(cloud: Cloud, *, file: bytes | None = None, size: int = 0) -> Inspection:
    """Inspect a cloud that passed the checks of `sample_geometry`."""
    points = cloud.points.astype(np.float64)
    return Inspection(
        kind="cloud",
        stored=len(points),
        faces=0,
        area=0.0,
        low=points.min(axis=0),
        high=points.max(axis=0),
        stands=standing(points),
        content=_digest(points.astype(np.float32)),
        notes=cloud.notes,
        file=file,
        size=size,
    )


def standing(points: np.ndarray) -> int:
    """Guess the upward direction from what touches the faces of the box around a shape.

    points  [M, 3] float64, vertices or points.
    ->      +3 for z up, -3 for z down, and so on; 0 where nothing tells.

    For each of the six faces: the share of it that a rectangle around the points within 1 % of it covers. Legs, wheels
    and bases cover most of the ground; left and right of an object are mostly alike. So the axis whose two ends differ
    most is up, away from the end that is covered more; unless another axis' ends differ nearly as much.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    extent = high - low
    near = SLAB * extent.max()
    cover = np.zeros((3, 2))
    for axis in range(3):
        others = [k for k in range(3) if k != axis]
        whole = extent[others].prod()
        if not whole > 0:  # a flat shape has no such face
            continue
        for end, distance in enumerate((points[:, axis] - low[axis], high[axis] - points[:, axis])):
            cover[axis, end] = np.ptp(points[distance <= near][:, others], axis=0).prod() / whole
    difference = cover[:, 0] - cover[:, 1]
    *_, second, most = np.sort(np.abs(difference))
    if not most - second > LEAST:
        return 0
    axis = int(np.abs(difference).argmax())
    return (axis + 1) * (1 if difference[axis] > 0 else -1)


def _digest(values: np.ndarray) -> bytes:
    """Hash float32 values; -0 counts as 0."""
    return hashlib.sha256(np.ascontiguousarray(values + np.float32(0), dtype="<f4").tobytes()).digest()[:DIGEST_BYTES]
