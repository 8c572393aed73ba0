"""Numbers out of lines of text."""

import numpy as np

from pipeline.corpora.formats.geometry import Malformed

__all__ = ["table", "whole"]


def table(lines: list[str], columns: int, what: str) -> np.ndarray:
    """The first columns of some lines as numbers: [len(lines), columns] float64."""
    if not lines:
        return np.empty((0, columns))
    try:
        return np.loadtxt(lines, usecols=range(columns), ndmin=2, comments=None)
    except ValueError as error:
        raise Malformed(f"a {what} line is not {columns} numbers: {error}") from error


def whole(numbers: np.ndarray) -> np.ndarray:
    if not (
        np.isfinite(numbers).all() and (numbers == np.floor(numbers)).all() and np.abs(numbers).max(initial=0) < 2**53
    ):
        raise Malformed("a face names a vertex by something that is not a whole number")
    return numbers.astype(np.int64)
