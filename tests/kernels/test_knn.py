"""Nearest neighbours: exact, ascending, lowest index first."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda import plain
from cuda.knn import knn
from tests.support.kernels import CLOUDS, FAST, KERNELS, SIZES, TELLING_CLOUDS, cloud, implementations
from tests.support.reference import reference_arrays


@pytest.mark.parametrize("impl", implementations("knn"))
def test_ascending_with_ties_low(impl):
    points = np.array([[[2, 0, 0], [1, 0, 0], [0, 0, 0], [-1, 0, 0], [0, 1, 0]]], np.float32)
    dist2, idx = impl(points, np.zeros((1, 1, 3), np.float32), 5)
    assert idx.tolist() == [[[2, 1, 3, 4, 0]]]
    assert dist2.tolist() == [[[0, 1, 1, 1, 4]]]


def around(points: np.ndarray) -> np.ndarray:
    """A few queries: some of the points, and some elsewhere."""
    return np.concatenate([points[:, :2], np.stack([cloud("ball", 2, seed=9)] * len(points))], axis=1)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("impl", implementations("knn", *KERNELS))
def test_kernel_equals_the_definition(impl, n):
    for kind in TELLING_CLOUDS:
        points = np.stack([cloud(kind, n, seed=seed) for seed in range(2)])
        for k in {1, min(n, 20)} if n > 1000 else {1, min(n, 16), min(n, 33), min(n, 64)}:
            expected = plain.knn(points, around(points), k)
            for got, wanted in zip(impl(points, around(points), k), expected, strict=True):
                np.testing.assert_array_equal(got, wanted, err_msg=f"{kind}, k = {k}")


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", CLOUDS)
def test_twin_equals_the_definition(kind, n):
    points = np.stack([cloud(kind, n, seed=seed) for seed in range(2)])
    for k in {1, min(n, 16), min(n, 33), min(n, 64)}:
        got = knn(torch.from_numpy(points), torch.from_numpy(around(points)), k)
        for one, other in zip(got, plain.knn(points, around(points), k), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("m", [1, 7, 8, 9, 32, 33, 65])
@pytest.mark.parametrize("impl", implementations("knn")[1:])
def test_any_number_of_queries(impl, m):
    points, queries = cloud("grid", 50)[None].repeat(3, 0), cloud("ball", 3 * m, seed=1).reshape(3, m, 3)
    for got, expected in zip(impl(points, queries, 5), plain.knn(points, queries, 5), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("n", [4096, 8192])
def test_twin_equals_the_definition_on_large_clouds(n):
    points, queries = cloud("ball", n)[None], cloud("grid", 50, seed=1)[None]
    got = knn(torch.from_numpy(points), torch.from_numpy(queries), 64)
    for one, other in zip(got, plain.knn(points, queries, 64), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("impl", implementations("knn", *FAST))
@pytest.mark.parametrize("rule", ["skip", "plain"])
def test_recorded_levels(impl, rule):
    recorded = reference_arrays("grouping")
    points = recorded["pts"]
    for level in range(3):
        idx = recorded[f"{rule}__fps_l{level}"].astype(int)
        centres = np.take_along_axis(points, idx[..., None], axis=1)
        neighbours = recorded[f"{rule}__knn_l{level}"]
        np.testing.assert_array_equal(impl(points, centres, neighbours.shape[2])[1], neighbours)
        points = centres


@pytest.mark.parametrize("impl", implementations("knn"))
def test_recorded_top_level(impl):
    recorded = reference_arrays("grouping")
    _, idx = impl(recorded["skip__center_l1"], recorded["skip__center_l2"], 8)
    np.testing.assert_array_equal(idx, recorded["skip__knn_l2"])


@given(st.integers(1, 100), st.integers(0, 2**31), st.sampled_from(sorted(CLOUDS)), st.data())
@settings(deadline=None, max_examples=60)
def test_laws(n, seed, kind, data):
    points = cloud(kind, n, seed=seed)[None]
    k = data.draw(st.integers(1, min(n, 64)))
    dist2, idx = knn(torch.from_numpy(points), torch.from_numpy(points), k)
    assert (dist2.diff(dim=-1) >= 0).all(), "ascending"
    assert (dist2[..., 0] == 0).all(), "a point is its own nearest"
    for got, expected in zip((dist2, idx), plain.knn(points, points, k), strict=True):
        np.testing.assert_array_equal(got, expected)
    if n <= 64:
        _, every = knn(torch.from_numpy(points), torch.from_numpy(points), n)
        assert torch.equal(every.sort(-1).values, torch.arange(n).expand(1, n, n)), "K = N is a permutation"


def test_no_queries_and_no_clouds():
    dist2, idx = knn(torch.zeros(2, 4, 3), torch.zeros(2, 0, 3), 3)
    assert dist2.shape == idx.shape == (2, 0, 3)
    assert knn(torch.zeros(0, 4, 3), torch.zeros(0, 5, 3), 3)[1].shape == (0, 5, 3)


@pytest.mark.parametrize(
    ("points", "queries", "k", "error", "message"),
    [
        (torch.zeros(1, 4, 3), torch.zeros(1, 4, 3), 5, ValueError, r"k = 5 is outside 1\.\.4 \(points in a cloud\)"),
        (torch.zeros(1, 99, 3), torch.zeros(1, 4, 3), 65, ValueError, r"k = 65 is outside 1\.\.64 \(the most"),
        (
            torch.zeros(2, 4, 3),
            torch.zeros(1, 4, 3),
            1,
            ValueError,
            "points has 2 clouds and queries has 1; both must have the same batch size",
        ),
        (torch.zeros(1, 4, 3), torch.zeros(1, 4, 3).half(), 1, TypeError, "queries must be float32, got torch.float16"),
        (
            torch.zeros(1, 4, 3),
            torch.zeros(1, 4, 3, device="meta"),
            1,
            ValueError,
            "points is on cpu and queries on me",
        ),
    ],
)
def test_wrong_arguments_are_named(points, queries, k, error, message):
    with pytest.raises(error, match=f"knn: .*{message}"):
        knn(points, queries, k)
