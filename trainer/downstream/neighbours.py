"""Nearest neighbours among features: which shapes an encoder takes for alike."""

from typing import NamedTuple

import numpy as np

__all__ = ["Neighbours", "agreement", "nearest"]

ROWS = 1024  # queries compared at a time: 1024 x 100,000 similarities take 0.4 GB


class Neighbours(NamedTuple):
    """The nearest of each shape, most similar first.

    idx         [n, k] int64 of other shapes
    similarity  [n, k] float32, cosine of the features after subtracting their mean, -1..1
    """

    idx: np.ndarray
    similarity: np.ndarray


def nearest(features: np.ndarray, k: int) -> Neighbours:
    """Find the k other shapes with the largest cosine similarity of mean-centred features.

    features  [n, D] float, finite, n > k >= 1. Ties go to the lowest index. Raises ValueError.
    """
    n = len(features)
    if features.ndim != 2 or not 1 <= k < n:
        raise ValueError(f"features have shape {features.shape}, k is {k}; expected [n, D] and 1 <= k < n")
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = (centred / np.where(length > 0, length, 1)).astype(np.float32)
    idx, similarity = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    for start in range(0, n, ROWS):
        rows = np.arange(start, min(start + ROWS, n))
        found = unit[rows] @ unit.T
        found[rows - start, rows] = -np.inf  # not itself
        order = np.argsort(-found, axis=1, kind="stable")[:, :k]
        idx[rows], similarity[rows] = order, np.take_along_axis(found, order, axis=1)
    return Neighbours(idx, similarity)


def agreement(idx: np.ndarray, labels: np.ndarray) -> float | None:
    """Share of neighbours [n, k] with the label of their shape, among labelled shapes (label >= 0); None for none."""
    known = labels >= 0
    return float(np.mean(labels[idx[known]] == labels[known][:, None])) if known.any() else None
