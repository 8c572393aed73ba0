"""Polygons cut into triangles: as fans where that covers them, else by ear clipping (mapbox_earcut)."""

from collections.abc import Sequence
from typing import NamedTuple

import mapbox_earcut
import numpy as np

from pipeline.corpora.formats.geometry import Malformed
from pipeline.corpora.surface import triangle_areas

__all__ = ["MAX_CORNERS", "Cut", "cut_polygons"]

MAX_CORNERS = 10_000  # of one polygon
# Corners squared, over the polygons that no fan covers: ear clipping takes up to quadratic time, 2 s for this many.
_WORK = 10**9
_STARTS = 8  # corners that fans are tried from: one of a quadrangle's covers it, and clipping one takes 0.1 ms
_ROUNDING = 1e-6  # share of a polygon's area by which coordinates of single precision may turn a thin triangle over
_CROSSING = 0.01  # share of the whole area that polygons without a right cut may have


class Cut(NamedTuple):
    """Triangles [T, 3] int64, the polygon each is of [T] int64 (counted over all groups), and notes."""

    faces: np.ndarray
    owners: np.ndarray
    notes: dict[str, int]


def cut_polygons(vertices: np.ndarray, groups: Sequence[np.ndarray]) -> Cut:
    """Cut polygons that may be concave and not quite flat, with holes that a bridge of two edges joins to the rim.

    vertices  [M, 3] float64.
    groups    polygons of k corners each, [F, k] int64 into vertices; those of fewer than three are left out and noted.

    A cut is right where all its triangles turn the way their polygon does: the number of them over any place is then
    the polygon's winding number there, one inside and none outside of a polygon that does not cross itself. What has
    no such cut (it crosses itself) is fanned and noted, up to 1 % of the area. Raises Malformed beyond that, for
    corners that are no vertices, and for more than MAX_CORNERS.
    """
    faces: list[np.ndarray] = [np.empty((0, 3), np.int64)]
    owners: list[np.ndarray] = [np.empty(0, np.int64)]
    notes: dict[str, int] = {}
    begin = work = 0
    area = crossing = 0.0
    for polygons in groups:
        count, k = polygons.shape
        if k > MAX_CORNERS:
            raise Malformed(f"a face has {k} corners; at most {MAX_CORNERS} are cut")
        if polygons.size and (polygons.min() < 0 or polygons.max() >= len(vertices)):
            wrong = polygons[(polygons < 0) | (polygons >= len(vertices))][0]
            raise Malformed(f"a face refers to vertex {wrong}; there are {len(vertices)} vertices")
        numbers = np.arange(begin, begin + count)
        begin += count
        if k < 3:
            _add(notes, "faces of fewer than three corners", count)
            continue
        polygons, covered, sizes = _turned(vertices, polygons)
        corners = np.arange(1, k - 1)[:, None] * (0, 1, 1) + (0, 0, 1)  # 0, j, j + 1
        fans = polygons[:, corners].transpose(1, 0, 2)  # [k - 2, F, 3]
        area += float(np.nansum(sizes))
        faces.append(fans[:, covered].reshape(-1, 3))
        owners.append(np.tile(numbers[covered], k - 2))
        work += int((~covered).sum()) * k * k
        if work > _WORK:
            raise Malformed(f"its concave faces have too many corners to be cut, one of them {k}; triangulate it first")
        for at in np.flatnonzero(~covered):
            cut = _clipped(vertices, polygons[at])
            if cut is None:
                cut = fans[:, at]
                crossing += float(sizes[at])
                _add(notes, "faces that cross themselves", 1)
            faces.append(cut)
            owners.append(np.full(len(cut), numbers[at]))
    if crossing > _CROSSING * area:
        raise Malformed(
            f"{notes['faces that cross themselves']} of its faces cross themselves, {crossing / area:.0%} of its "
            "area; triangulate it in the program that exported it"
        )
    return Cut(np.concatenate(faces), np.concatenate(owners), notes)


def _add(notes: dict[str, int], reason: str, count: int) -> None:
    if count:
        notes[reason] = notes.get(reason, 0) + count


def _turned(vertices: np.ndarray, polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotate polygons [F, k] to begin at a corner whose fan covers them, if there is one.

    ->  the polygons, whether the fan covers them [F], and the area of that fan [F] float64.
    """
    if polygons.shape[1] == 3:  # covers itself; nearly all faces there are
        with np.errstate(all="ignore"):
            return polygons, np.ones(len(polygons), bool), triangle_areas(vertices, polygons)
    covered, sizes = _are_covered(vertices, polygons)
    if covered.all():
        return polygons, covered, sizes
    polygons = polygons.copy()
    for start in range(1, min(polygons.shape[1], _STARTS)):
        left = np.flatnonzero(~covered)
        turned = np.roll(polygons[left], -start, axis=1)
        good, areas = _are_covered(vertices, turned)
        polygons[left[good]], covered[left[good]], sizes[left[good]] = turned[good], True, areas[good]
    return polygons, covered, sizes


def _are_covered(vertices: np.ndarray, polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check whether the fan of each polygon [F, k] covers it [F]; -> that, and the area of that fan [F] float64."""
    with np.errstate(all="ignore"):  # what is not finite is refused when it is sampled
        arms = vertices[polygons[:, 1:]] - vertices[polygons[:, :1]]
        crosses = np.cross(arms[:, :-1], arms[:, 1:])  # [F, k - 2, 3]: twice the area vectors of the fan's triangles
        normals = crosses.sum(axis=1)  # Newell: twice the polygon's own
        sizes = np.sqrt((crosses**2).sum(axis=2)).sum(axis=1)
        turned = (crosses * normals[:, None]).sum(axis=2) / np.sqrt((normals**2).sum(axis=1))[:, None]
        flat = (normals**2).sum(axis=1) <= (_ROUNDING * sizes) ** 2  # no way to turn: two equal loops of a bow tie
        wrong = (turned < -_ROUNDING * sizes[:, None]).any(axis=1) | (flat & (sizes > 0))
    return ~wrong, sizes / 2


def _clipped(vertices: np.ndarray, polygon: np.ndarray) -> np.ndarray | None:
    """Cut one polygon [k] correctly into triangles [T, 3], or return None."""
    points = vertices[polygon] - vertices[polygon[0]]
    with np.errstate(all="ignore"):
        normal = np.cross(points[1:-1], points[2:]).sum(axis=0)
        size = np.sqrt((normal**2).sum())
    if not 0 < size < np.inf:
        return None
    normal = normal / size
    across = np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))])
    across /= np.sqrt((across**2).sum())
    flat = np.ascontiguousarray(points @ np.stack([across, np.cross(normal, across)], axis=1))  # [k, 2]
    found = mapbox_earcut.triangulate_float64(flat, np.array([len(polygon)], np.uint32)).reshape(-1, 3).astype(np.int64)
    if not len(found):
        return None
    a, b, c = flat[found].transpose(1, 0, 2)
    covers = np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).sum()
    return polygon[found] if abs(covers - size) <= _ROUNDING * size else None
