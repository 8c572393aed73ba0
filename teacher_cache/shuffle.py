"""The order of an epoch, as a pure function."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["epoch_order"]


def epoch_order(
    counts: Sequence[int] | NDArray[np.int64], *, seed: int, epoch: int, window: int = 32
) -> NDArray[np.int64]:
    """Every record of a cache once, shuffled, with nearby reads close on disk.

    counts  records of each shard, in cache order (``Cache.counts``).
    seed    any integer >= 0.   epoch  any integer >= 0.
    window  shards that are mixed with one another, >= 1: the most shards in use at a time. len(counts) or more is a
            uniform shuffle of all records.
    ->      [sum(counts)] int64, record indices.

    Shards are permuted; then each run of ``window`` shards has its records permuted. The result depends on the
    arguments alone, on any machine and NumPy version: keys are raw output of PCG64, a stream NumPy guarantees, sorted
    stably. Raises ValueError. O(n log n).
    """
    sizes = np.asarray(counts, dtype=np.int64)
    if sizes.ndim != 1 or (sizes < 0).any():
        raise ValueError(f"epoch_order: counts must be a list of numbers >= 0, found shape {list(sizes.shape)}")
    if seed < 0 or epoch < 0 or window < 1:
        raise ValueError(f"epoch_order: expected seed, epoch >= 0 and window >= 1, found {seed}, {epoch}, {window}")
    stream = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    starts = np.cumsum(sizes) - sizes
    shards = _order(stream, sizes.size)
    pieces = []
    for first in range(0, shards.size, window):
        group = shards[first : first + window]
        records = np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in group])
        pieces.append(records[_order(stream, records.size)])
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def _order(stream: np.random.PCG64, size: int) -> NDArray[np.int64]:
    keys = np.asarray(stream.random_raw(size), np.uint64)
    return np.argsort(keys, kind="stable")
