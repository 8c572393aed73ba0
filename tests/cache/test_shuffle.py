"""epoch_order is a pure function whose laws hold for any cache; what a window costs in uniformity is known."""

from collections import Counter
from itertools import combinations, pairwise
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.reading.order import epoch_order, shuffle_quality

counts = st.lists(st.integers(0, 9), max_size=30)


def test_literal_order() -> None:
    """The stream is one NumPy guarantees: these numbers hold on every machine and version."""
    assert epoch_order([3, 2, 4], seed=0, epoch=0, window=2).tolist() == [5, 4, 8, 3, 6, 7, 2, 1, 0]


@given(counts, st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 12))
@settings(deadline=None, max_examples=80)
def test_every_record_once_and_windows_keep_together(sizes: list[int], seed: int, epoch: int, window: int) -> None:
    order = epoch_order(sizes, seed=seed, epoch=epoch, window=window)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[order]
    # Shards are met in runs of at most `window`: once more than that many have come, the first never comes again.
    last_seen = {int(shard): i for i, shard in enumerate(shard_of)}
    first_seen = {int(shard): i for i, shard in reversed(list(enumerate(shard_of)))}
    for i in range(len(shard_of)):
        open_now = [s for s in last_seen if first_seen[s] <= i <= last_seen[s]]
        assert len(open_now) <= window


def test_depends_on_seed_and_epoch_and_nothing_else() -> None:
    sizes = [64] * 20
    first = epoch_order(sizes, seed=1, epoch=2, window=4)
    np.testing.assert_array_equal(first, epoch_order(np.array(sizes), seed=1, epoch=2, window=4))
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 1}):
        assert (first != epoch_order(sizes, window=4, **other)).mean() > 0.9


def test_wide_window_is_uniform() -> None:
    """Every record is about equally often at every place: chi-square of 7 records over 2100 epochs."""
    places = np.zeros((7, 7))
    for epoch in range(2100):
        places[np.arange(7), epoch_order([3, 4], seed=9, epoch=epoch, window=2)] += 1
    # 36 degrees of freedom; 74 is passed once in 5000 seeds, and the seed is fixed
    assert ((places - 300) ** 2 / 300).sum() < 74


def test_refuses_what_makes_no_order() -> None:
    with pytest.raises(ValueError, match="window >= 1, found 0, 0, 0"):
        epoch_order([1], seed=0, epoch=0, window=0)
    with pytest.raises(ValueError, match="numbers >= 0"):
        epoch_order([-1], seed=0, epoch=0)
    assert epoch_order([], seed=0, epoch=0).tolist() == []


@given(counts.filter(lambda sizes: max(sizes, default=0) > 1), st.integers(1, 4), st.integers(2, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_quality_is_what_its_words_say(sizes: list[int], window: int, batch_size: int, seed: int) -> None:
    """Against the definitions, written out pair by pair and batch by batch."""
    n = sum(sizes)
    if batch_size > n:
        return
    labels = [(7 * i + seed) % 3 for i in range(n)]
    found = shuffle_quality(sizes, window=window, batch_size=batch_size, seed=seed, epochs=1, labels=labels)
    order = epoch_order(sizes, seed=seed, epoch=0, window=window).tolist()
    shard = np.repeat(np.arange(len(sizes)), sizes).tolist()
    uniform = [abs(a - b) for a in range(n) for b in range(n)]
    moved = [abs(place - record) for place, record in enumerate(order)]
    assert found.displacement == pytest.approx(np.mean(moved) / np.mean(uniform))
    pairs = [(a, b) for a, b in combinations(range(n), 2) if shard[order[a]] == shard[order[b]]]
    anywhere = [b - a for a, b in combinations(range(n), 2)]
    assert found.spread == pytest.approx(np.mean([b - a for a, b in pairs]) / np.mean(anywhere))
    assert found.same_shard_uniform == pytest.approx(len(pairs) / len(anywhere))
    batches = [order[i : i + batch_size] for i in range(0, n - batch_size + 1, batch_size)]
    neighbours = [shard[a] == shard[b] for batch in batches for a, b in pairwise(batch)]
    assert found.same_shard == pytest.approx(np.mean(neighbours))
    entropies = [
        -sum(k / batch_size * log2(k / batch_size) for k in Counter(labels[i] for i in batch).values())
        for batch in batches
    ]
    assert found.class_entropy == pytest.approx(np.mean(entropies), abs=1e-12)


SHARDS, SHARD, CLASSES = 656, 64, 55  # the training shapes of ShapeNet-55 in shards of the usual size


@pytest.mark.parametrize(
    ("window", "entropy"), [(1, (0.0, 0.05)), (4, (0.37, 0.44)), (16, (0.70, 0.75)), (32, (0.82, 0.86))]
)
def test_a_window_mixes_as_many_shards_as_it_says(window: int, entropy: tuple[float, float]) -> None:
    """A corpus sorted by class is the worst case: a batch of 64 sees the classes of `window` shards."""
    labels = np.arange(SHARDS * SHARD) * CLASSES // (SHARDS * SHARD)
    found = shuffle_quality([SHARD] * SHARDS, window=window, batch_size=64, epochs=2, labels=labels)
    # Within a window the order is uniform, so the share of neighbours of one shard follows: 64 w records, 63 of them.
    # Of 8e4 neighbours a share of 1/4 has a standard deviation of 0.0015.
    assert found.same_shard == pytest.approx((SHARD - 1) / (window * SHARD - 1), abs=0.006)
    assert found.spread == pytest.approx(window / SHARDS, rel=0.03)
    assert found.displacement == pytest.approx(1, abs=0.08)  # shards are permuted, so even one at a time moves far
    assert found.class_entropy is not None
    assert found.class_entropy_uniform == pytest.approx(5.08, abs=0.02)
    assert entropy[0] < found.class_entropy / found.class_entropy_uniform < entropy[1]


def test_a_window_of_all_shards_is_as_good_as_uniform() -> None:
    labels = np.arange(SHARDS * SHARD) * CLASSES // (SHARDS * SHARD)
    found = shuffle_quality([SHARD] * SHARDS, window=SHARDS, batch_size=64, seed=5, epochs=4, labels=labels)
    assert found.displacement == pytest.approx(1, abs=0.01)
    assert found.spread == pytest.approx(1, abs=0.01)
    assert found.same_shard == pytest.approx(found.same_shard_uniform, abs=5e-4)
    assert found.class_entropy == found.class_entropy_uniform


def test_quality_refuses_what_it_cannot_measure() -> None:
    for sizes, batch_size in (([1, 1], 2), ([4], 5), ([4], 1)):
        with pytest.raises(ValueError, match="expected a pair, whole batches of two or more"):
            shuffle_quality(sizes, window=1, batch_size=batch_size)
    with pytest.raises(ValueError, match=r"labels have shape \[3\]; expected \[4\]"):
        shuffle_quality([4], window=1, batch_size=2, labels=[0, 1, 2])
