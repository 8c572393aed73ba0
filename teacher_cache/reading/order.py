"""Shuffled order of an epoch, as a pure function, and a measure of how uniform it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ShuffleQuality", "epoch_order", "shuffle_quality"]


def epoch_order(
    counts: Sequence[int] | NDArray[np.int64], *, seed: int, epoch: int, window: int = 32
) -> NDArray[np.int64]:
    """Return every record of a cache once, shuffled so that nearby reads are close on disk.

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


@dataclass(frozen=True, kw_only=True)
class ShuffleQuality:
    """Statistics of shuffled orders, compared with uniform permutations of the same records.

    displacement   mean |place in the epoch - place in the cache|, over that of a uniform permutation.
    spread         mean distance in the epoch between two records of one shard, over that of a uniform permutation.
    same_shard     of two neighbours in a batch, how often they come from one shard; `same_shard_uniform`: how often
                   they would.
    class_entropy  of the labels in a batch, in bits, mean over batches; `class_entropy_uniform`: the same for uniform
                   permutations. None without labels.
    """

    displacement: float
    spread: float
    same_shard: float
    same_shard_uniform: float
    class_entropy: float | None
    class_entropy_uniform: float | None


def shuffle_quality(
    counts: Sequence[int] | NDArray[np.int64],
    *,
    window: int,
    batch_size: int,
    seed: int = 0,
    epochs: int = 4,
    labels: Sequence[int] | NDArray[np.int64] | None = None,
) -> ShuffleQuality:
    """Measure ``epoch_order`` for a cache, a window and a batch size: means over epochs 0..epochs - 1.

    counts  records of each shard; at least one shard has two.
    labels  [sum(counts)] integers >= 0, to measure how the classes of a sorted corpus mix; ``Cache.labels``.

    Raises ValueError where there is no pair or no full batch of two to measure, or for labels that do not fit.
    """
    sizes = np.asarray(counts, np.int64)
    n, pairs = int(sizes.sum()), int((sizes * (sizes - 1)).sum()) // 2
    classes = None if labels is None else np.asarray(labels, np.int64)
    if pairs == 0 or not 2 <= batch_size <= n or epochs < 1:
        raise ValueError(
            f"shuffle_quality: {n} records, {pairs} pairs in one shard, batch_size = {batch_size}, epochs = {epochs}; "
            "expected a pair, whole batches of two or more, and an epoch"
        )
    if classes is not None and (classes.shape != (n,) or classes.min() < 0):
        raise ValueError(f"shuffle_quality: labels have shape {list(classes.shape)}; expected [{n}], all >= 0")
    shard_of = np.repeat(np.arange(sizes.size), sizes)
    measured = []
    for epoch in range(epochs):
        order = epoch_order(sizes, seed=seed, epoch=epoch, window=window)
        uniform = epoch_order(sizes, seed=seed, epoch=epoch, window=max(1, sizes.size))
        shards = _batches(shard_of[order], batch_size)
        measured.append(
            (
                np.abs(order - np.arange(n)).mean() / ((n * n - 1) / (3 * n)),
                _distance_within(shard_of, order) / pairs / ((n + 1) / 3),
                (shards[:, 1:] == shards[:, :-1]).mean(),
                0.0 if classes is None else _entropy(_batches(classes[order], batch_size)),
                0.0 if classes is None else _entropy(_batches(classes[uniform], batch_size)),
            )
        )
    displacement, spread, same, entropy, entropy_uniform = np.mean(measured, axis=0).tolist()
    return ShuffleQuality(
        displacement=displacement,
        spread=spread,
        same_shard=same,
        same_shard_uniform=2 * pairs / (n * (n - 1)),
        class_entropy=None if classes is None else entropy,
        class_entropy_uniform=None if classes is None else entropy_uniform,
    )


def _batches(values: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Return the full batches of an epoch. [steps, batch_size]"""
    return values[: values.size // batch_size * batch_size].reshape(-1, batch_size)


def _distance_within(shard_of: NDArray[np.int64], order: NDArray[np.int64]) -> float:
    """Sum |place a - place b| over all pairs of records of one shard."""
    places = np.empty_like(order)
    places[order] = np.arange(order.size)
    places = places[np.lexsort((places, shard_of))]  # ascending within each shard
    sizes = np.bincount(shard_of)[shard_of]
    rank = np.arange(order.size) - np.searchsorted(shard_of, shard_of)  # within its shard
    return float((places * (2 * rank - sizes + 1)).sum())


def _entropy(classes: NDArray[np.int64]) -> float:
    """Return the mean over rows of the entropy of the values in a row, in bits."""
    steps, batch_size = classes.shape
    known, dense = np.unique(classes, return_inverse=True)
    rows = np.arange(steps)[:, None] * known.size + dense.reshape(steps, batch_size)
    share = np.bincount(rows.reshape(-1), minlength=steps * known.size) / batch_size
    return float(-(share * np.log2(np.where(share > 0, share, 1))).sum() / steps)
