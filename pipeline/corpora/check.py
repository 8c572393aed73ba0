"""Checks of clouds, cut to size and normalisation to the canonical frame, all in one place.

Values are checked here, where data enters, and nowhere else: whatever passes is finite, has at least 32 distinct points
and is not flat to a line or a point. A cloud that is flat to a plane is a shape like any other.
"""

import numpy as np

from pipeline.corpora.base import ShapeError, shape_generator

__all__ = ["MIN_DISTINCT", "check_shape", "finite_points", "fit_points", "normalise"]

MIN_DISTINCT = 32  # fewer distinct points than this are not a shape
LINE_RATIO = 1e-5  # second to first singular value, below which a cloud is flat to a line
FLOAT32_LOSS = 1e-3  # float32 spacing at the cloud's place, as a share of its extent, above which it lost its form


def normalise(points: np.ndarray) -> np.ndarray:
    """Bring a cloud to the canonical frame: minus its mean, divided by its largest norm.

    points  [N, 3] float, finite.
    ->      [N, 3] float32; the mean is 0 and the largest norm is 1, both to float32 rounding.

    Computed in float64 (mean over the points in their order, subtract, largest Euclidean norm, divide) and rounded once
    at the end, so the result is a function of the points and their order alone. Raises ValueError for another shape or
    when all points coincide.
    """
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise ValueError(f"points have shape {points.shape}; expected [N, 3] with N >= 1")
    centred = points.astype(np.float64)
    centred -= centred.mean(axis=0)
    largest = np.sqrt((centred * centred).sum(axis=1).max())
    if not largest > 0 or not np.isfinite(largest):
        raise ValueError(f"the largest distance from the mean is {largest}; expected a positive number")
    return (centred / largest).astype(np.float32)


def finite_points(array: np.ndarray, source: str) -> np.ndarray:
    """Convert a stored cloud to [M, 3] float32.

    Raises ShapeError for another shape, no number, or a value that float32 cannot hold.
    """
    if array.ndim != 2 or array.shape[1] != 3:
        raise ShapeError(source, f"points have shape {array.shape}; expected (n, 3)")
    if len(array) == 0:
        raise ShapeError(source, "holds no points")
    if array.dtype.kind not in "fiu":
        raise ShapeError(source, f"points are of type {array.dtype}; expected numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        points = np.ascontiguousarray(array, dtype=np.float32)
    bad = len(points) - int(np.isfinite(points).all(axis=1).sum())
    if bad:
        raise ShapeError(source, f"{bad} of {len(points)} points are not finite in float32")
    return points


def check_shape(points: np.ndarray, source: str) -> None:
    """Raise ShapeError unless points [N, 3] float32 are finite, not too few, and not flat to a line or a point."""
    if points.ndim != 2 or points.shape[1] != 3:
        raise ShapeError(source, f"points have shape {points.shape}; expected (n, 3)")
    if not np.isfinite(points).all():
        raise ShapeError(source, "some points are not finite")
    distinct = _distinct(points)
    if distinct < MIN_DISTINCT:
        raise ShapeError(source, f"{distinct} distinct points; expected at least {MIN_DISTINCT}")
    wide = points.astype(np.float64)
    extent = float(np.ptp(wide, axis=0).max())
    spacing = float(np.spacing(np.abs(points).max()))
    if spacing > FLOAT32_LOSS * extent:
        reason = f"an object of extent {extent:.3g} at distance {np.abs(wide).max():.3g} from the origin"
        raise ShapeError(
            source,
            (
                f"{reason}: too far for float32 to resolve its shape; subtract an offset from the coordinates in the "
                "file"
            ),
        )
    wide = (wide - wide.mean(axis=0)) / extent
    spread = np.sqrt(np.maximum(np.linalg.eigvalsh(wide.T @ wide), 0))  # ascending
    if spread[1] <= LINE_RATIO * spread[2]:
        raise ShapeError(source, "all points lie on one line")


def fit_points(
    points: np.ndarray,
    part_labels: np.ndarray | None,
    *,
    count: int,
    seed: int,
    id: str,
    source: str,
    repeat: bool = False,
    stored_order: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Cut a stored cloud to ``count`` points in random order, drawn by (seed, id) only, and check the result.

    points       [M, 3] float, as stored; part_labels [M] or None.
    repeat       what to do with fewer points than asked: False raises ShapeError; True keeps every point and draws the
                 missing ones again at random, with replacement.
    stored_order  True: the first ``count`` points as they are stored; repeated ones come after them.
    ->           [count, 3] float32, [count] int16 or None. For M >= count the result for a smaller count is a prefix of
                 a larger one's.
    """
    points = finite_points(points, source)
    M = len(points)
    generator = shape_generator(seed, id, "order")
    shuffled = np.argsort(generator.random(M), kind="stable")
    order = (np.arange(M) if stored_order else shuffled)[:count]
    if count > M:
        if not repeat:
            raise ShapeError(
                source, f"has {M} points, {count} were requested; lower corpus.points, or repeat some with pad=repeat"
            )
        extra = (generator.random(count - M) * M).astype(np.int64)
        order = np.concatenate([order, extra])
        if not stored_order:
            order = order[np.argsort(generator.random(count), kind="stable")]
    chosen = points[order]
    check_shape(chosen, source)
    if part_labels is None:
        return chosen, None
    return chosen, part_labels[order].astype(np.int16)


def _distinct(points: np.ndarray) -> int:
    """Count distinct points; any number >= MIN_DISTINCT may stand for more."""
    for axis in range(3):  # one coordinate nearly always settles it, at a tenth of the cost
        count = len(np.unique(points[:, axis]))
        if count >= MIN_DISTINCT:
            return count
    return len(np.unique(points + np.float32(0), axis=0))  # + 0 makes -0 equal 0
