"""Statistics of the coordinates: the baseline that knows nothing of neighbourhoods."""

import numpy as np

__all__ = ["coordinate_statistics"]

_QUANTILES = np.linspace(0.05, 0.95, 9)
_CELLS = 4  # a side of the occupancy grid


def coordinate_statistics(points: np.ndarray) -> np.ndarray:
    """Compute statistics of the coordinates, a baseline without learning that an encoder has to beat.

    For each axis and the radius: 9 quantiles, standard deviation, skewness, kurtosis; the 6 second moments between axes
    and their eigenvalues; the share of points in each cell of a 4 x 4 x 4 grid over [-1, 1]^3.
    [B, N, 3] float32 -> [B, 121] float32.
    """
    B, N, _ = points.shape
    wide = points.astype(np.float64)
    radius = np.sqrt((wide**2).sum(axis=2, keepdims=True))
    columns = np.concatenate([wide, radius], axis=2)  # [B, N, 4]
    quantiles = np.quantile(columns, _QUANTILES, axis=1).transpose(1, 2, 0).reshape(B, -1)
    spread = columns.std(axis=1)
    standard = (columns - columns.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-9)[:, None]
    moments = np.concatenate([spread, (standard**3).mean(axis=1), (standard**4).mean(axis=1)], axis=1)
    covariance = np.einsum("bni,bnj->bij", wide, wide) / N
    eigenvalues = np.linalg.eigvalsh(covariance)
    upper = covariance[:, *np.triu_indices(3)]
    cell = np.clip(((wide + 1) * (_CELLS / 2)).astype(np.int64), 0, _CELLS - 1) @ np.array([_CELLS**2, _CELLS, 1])
    share = np.stack([np.bincount(row, minlength=_CELLS**3) for row in cell]) / N
    return np.concatenate([quantiles, moments, upper, eigenvalues, share], axis=1).astype(np.float32)
