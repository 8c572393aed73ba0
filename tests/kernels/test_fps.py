"""Farthest point sampling: exact, greedy, lowest index first."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda import plain
from cuda.fps import farthest_point_sample, fps_on
from tests.support.kernels import CLOUDS, FAST, KERNELS, SIZES, TELLING_CLOUDS, cloud, host_launch, implementations
from tests.support.reference import reference_arrays


@pytest.mark.parametrize("impl", implementations("fps"))
def test_corners_before_centre_and_ties_low(impl):
    points = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0.5, 0.5, 0]]], np.float32)
    assert impl(points, 4).tolist() == [[0, 3, 1, 2]]
    assert impl(points, 5).tolist() == [[0, 3, 1, 2, 4]]


@pytest.mark.parametrize("impl", implementations("fps"))
def test_points_in_one_place_repeat_index_0(impl):
    assert impl(cloud("one place", 5)[None], 4).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("impl", implementations("fps"))
def test_near_origin_rule_keeps_the_start_and_drops_the_rest(impl):
    # Squared norms 0, 1, 1.0e-3 (inside in double precision, though float32(1e-3) is above 1e-3), 0.0016, 4.
    inside = np.nextafter(np.float32(np.sqrt(np.float32(1e-3))), np.float32(0))
    points = np.array([[[0, 0, 0], [1, 0, 0], [0, inside, 0], [0, 0.04, 0], [0, 0, 2]]], np.float32)
    assert impl(points, 4, skip_near_origin=True).tolist() == [[0, 4, 1, 3]]
    # Nothing is left to choose but what was chosen: the lowest index that is not excluded, as in the reference.
    assert impl(points, 5, skip_near_origin=True).tolist() == [[0, 4, 1, 3, 1]]
    assert impl(points, 5).tolist() == [[0, 4, 1, 3, 2]]


@pytest.mark.parametrize("impl", implementations("fps"))
def test_a_cloud_of_excluded_points_repeats_index_0(impl):
    assert impl(cloud("tiny", 40)[None], 3, skip_near_origin=True).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("impl", implementations("fps", *KERNELS))
def test_kernel_equals_the_definition(impl, n):
    for kind in TELLING_CLOUDS:
        points = np.stack([cloud(kind, n, seed=seed) for seed in range(2)])
        for skip in (False, True):
            got = impl(points, min(n, 9), skip_near_origin=skip)
            expected = plain.farthest_point_sample(points, min(n, 9), skip_near_origin=skip)
            np.testing.assert_array_equal(got, expected, err_msg=kind)


@pytest.mark.parametrize("kind", CLOUDS)
@pytest.mark.parametrize("n", SIZES)
def test_twin_equals_the_definition_to_the_last_point(kind, n):
    points = np.stack([cloud(kind, n, seed=seed) for seed in range(2)])
    k = min(n, 1000)
    for skip in (False, True):
        got = farthest_point_sample(torch.from_numpy(points), k, skip_near_origin=skip)
        np.testing.assert_array_equal(got, plain.farthest_point_sample(points, k, skip_near_origin=skip))


@pytest.mark.parametrize("n", [5, 257, 600])
def test_register_path_equals_the_general_path(n):
    points = torch.from_numpy(cloud("grid", n)[None])
    one, other = (fps_on(host_launch(), points, 20, False, registers=registers) for registers in (True, False))
    assert torch.equal(one, other)


@pytest.mark.parametrize("impl", implementations("fps", *FAST))
@pytest.mark.parametrize("rule", ["skip", "plain"])
def test_recorded_levels(impl, rule):
    recorded = reference_arrays("grouping")
    points = recorded["pts"]
    for level, groups in enumerate((512, 256, 64)):
        idx = impl(points, groups, skip_near_origin=rule == "skip")
        np.testing.assert_array_equal(idx, recorded[f"{rule}__fps_l{level}"])
        points = np.take_along_axis(points, idx[..., None], axis=1)


@pytest.mark.parametrize("impl", implementations("fps"))
def test_recorded_top_level(impl):
    recorded = reference_arrays("grouping")
    coarse = np.take_along_axis(recorded["skip__center_l0"], recorded["skip__fps_l1"][..., None].astype(int), axis=1)
    np.testing.assert_array_equal(impl(coarse, 64, skip_near_origin=True), recorded["skip__fps_l2"])


@given(st.integers(1, 200), st.integers(0, 2**31), st.sampled_from(sorted(CLOUDS)), st.integers(-20, 20))
@settings(deadline=None, max_examples=60)
def test_laws(n, seed, kind, power):
    points = torch.from_numpy(cloud(kind, n, seed=seed)[None])
    idx = farthest_point_sample(points, n)
    assert torch.equal(farthest_point_sample(points, (n + 1) // 2), idx[:, : (n + 1) // 2]), "prefix"
    distinct = len(np.unique(points[0].numpy(), axis=0))
    if kind not in ("tiny", "subnormal", "origin"):  # squares of tiny differences underflow to distance 0
        assert len(set(idx[0, :distinct].tolist())) == distinct, "distinct while distances are positive"
    if kind not in ("tiny", "subnormal", "huge"):
        assert torch.equal(farthest_point_sample(points * 2.0**power, n), idx), "a power of two changes nothing"


def test_prefix_is_farthest_point_sampling_of_itself():
    """What lets one run serve all levels: sampling the sampled points returns a prefix."""
    points = torch.from_numpy(cloud("ball", 500)[None])
    centres = points[:, farthest_point_sample(points, 128)[0]]
    assert farthest_point_sample(centres, 32).tolist() == [list(range(32))]


def test_strided_input_and_empty_batch():
    points = torch.from_numpy(cloud("ball", 64)).repeat(1, 2).view(1, 64, 6)[:, ::2, :3]
    assert torch.equal(farthest_point_sample(points, 9), farthest_point_sample(points.contiguous(), 9))
    assert farthest_point_sample(torch.zeros(0, 5, 3), 2).shape == (0, 2)


@pytest.mark.parametrize(
    ("points", "k", "error", "message"),
    [
        (torch.zeros(1, 4, 3).double(), 2, TypeError, "points must be float32, got torch.float64; convert it with"),
        (np.zeros((1, 4, 3), np.float32), 2, TypeError, "must be a torch.Tensor .* got ndarray; .* torch.as_tensor"),
        (torch.zeros(4, 3), 2, ValueError, r"must be \[B, N, 3\], got \[4, 3\]; .* points\[None\]"),
        (torch.zeros(1, 4, 2), 2, ValueError, r"must be \[B, N, 3\], got \[1, 4, 2\]"),
        (torch.zeros(1, 0, 3), 1, ValueError, r"at least one point per cloud, got \[1, 0, 3\]"),
        (torch.zeros(1, 4, 3), 5, ValueError, r"k = 5 is outside 1\.\.4 \(points in a cloud\); ask for fewer"),
        (torch.zeros(1, 4, 3), 0, ValueError, r"k = 0 is outside 1\.\.4"),
    ],
)
def test_wrong_arguments_are_named(points, k, error, message):
    with pytest.raises(error, match=f"farthest_point_sample: .*{message}"):
        farthest_point_sample(points, k)
