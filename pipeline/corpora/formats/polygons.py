"""Polygons cut into triangles."""

import numpy as np

__all__ = ["fan_triangles"]


def fan_triangles(polygons: np.ndarray) -> np.ndarray:
    """Polygons of k corners [F, k] as fans of triangles [F * (k - 2), 3]."""
    k = polygons.shape[1]
    if k < 3:
        return np.empty((0, 3), dtype=np.int64)
    fans = [np.stack([polygons[:, 0], polygons[:, j], polygons[:, j + 1]], axis=-1) for j in range(1, k - 1)]
    return np.concatenate(fans).astype(np.int64)
