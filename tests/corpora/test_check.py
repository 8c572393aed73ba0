"""Checks and normalisation, by literal cases and by laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpora import ShapeError, check_shape, normalise
from pipeline.corpora.check import fit_points
from tests.support.corpora import ball


def test_normalise_by_hand():
    points = np.array([[1, 0, 0], [3, 0, 0], [2, 2, 0], [2, -2, 0]], np.float32)  # mean (2, 0, 0), largest norm 2
    assert normalise(points).tolist() == [[-0.5, 0, 0], [0.5, 0, 0], [0, 1, 0], [0, -1, 0]]
    assert normalise(points).dtype == np.float32


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), power=st.integers(-20, 20), shift=st.floats(-3, 3))
def test_normalise_laws(seed, power, shift):
    points = ball(200, seed)
    canonical = normalise(points)
    assert np.linalg.norm(canonical.astype(np.float64), axis=1).max() == pytest.approx(1, abs=2e-7)
    assert np.abs(canonical.astype(np.float64).mean(axis=0)).max() < 1e-7
    assert (
        normalise(points * np.float32(2.0**power)).tobytes() == canonical.tobytes()
    )  # a power of two changes no digit
    # 1e-6: shifting float32 points rounds them, by at most half of 2**-22 of a size of 6.
    assert np.allclose(normalise(points + np.float32(shift)), canonical, atol=1e-6)


def test_normalise_refuses_what_has_no_size():
    with pytest.raises(ValueError, match="the largest distance from the mean is 0"):
        normalise(np.ones((40, 3), np.float32))
    with pytest.raises(ValueError, match=r"shape \(40, 2\); expected \[N, 3\]"):
        normalise(np.ones((40, 2), np.float32))


LINE = np.linspace(0, 1, 64, dtype=np.float32)[:, None] * np.array([1, 2, 3], np.float32)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (np.zeros((64, 3), np.float32), "1 distinct points; expected at least 32"),
        (np.repeat(ball(31), 4, axis=0), "31 distinct points; expected at least 32"),
        (LINE, "all points lie on one line"),
        (np.where(np.arange(192).reshape(64, 3) == 5, np.nan, ball(64)), "some points are not finite"),
        (ball(64) + np.float32(1e6), "too far for float32 to resolve its shape"),
        (ball(64)[:, :2], r"shape \(64, 2\); expected \(n, 3\)"),
    ],
)
def test_degenerate_clouds_are_refused_with_the_reason(points, reason):
    with pytest.raises(ShapeError, match=reason) as caught:
        check_shape(points, "here.ply")
    assert caught.value.source == "here.ply"


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_flat_clouds_and_odd_scales_pass(scale):
    check_shape((ball(64) * (1, 1, 0) * scale).astype(np.float32), "plane")
    check_shape(np.repeat(ball(32), 4, axis=0) * np.float32(scale), "exactly 32 distinct")


def test_fit_takes_a_random_prefix_and_keeps_parts_with_their_points():
    points, parts = ball(500), np.arange(500)
    many, labels = fit_points(points, parts, count=400, seed=1, id="x", source="x")
    few, _ = fit_points(points, parts, count=100, seed=1, id="x", source="x")
    other, _ = fit_points(points, parts, count=100, seed=2, id="x", source="x")
    assert many[:100].tobytes() == few.tobytes()
    assert few.tobytes() != other.tobytes()
    assert (points[labels] == many).all()
    assert labels.dtype == np.int16
    assert abs(float(np.mean(labels[:100])) - 250) < 75  # five standard deviations of a mean of 100


def test_a_small_cloud_is_refused_unless_repeating_is_asked_for():
    points = ball(50)
    with pytest.raises(ShapeError, match=r"has 50 points, 64 were requested; .*pad=repeat"):
        fit_points(points, None, count=64, seed=0, id="x", source="x")
    cloud, _ = fit_points(points, None, count=64, seed=0, id="x", source="x", repeat=True)
    assert len(cloud) == 64
    assert {p.tobytes() for p in cloud} == {p.tobytes() for p in points}  # every point is kept
