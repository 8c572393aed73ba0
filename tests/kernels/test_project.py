"""Projection: the reference's pixels, exact sums, finite whatever the cloud."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda import plain
from cuda.backproject import pixels
from cuda.geometry import VIEW_AXES
from cuda.project import REDUCTIONS, project
from tests.support.kernels import CLOUDS, KERNELS, SIZES, cloud, implementations
from tests.support.reference import reference_arrays

MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


@pytest.mark.parametrize("impl", implementations("project"))
def test_two_points_by_hand(impl):
    # S = 8: the longer axis spans 5 cells. View 0: row 0 and 10 -> cell 2, rows 0 and 5; columns 0 and 0.
    points = np.array([[[0, 0, 1], [10, 0, -3]]], np.float32)
    depth, lo, cell, offset = impl(points, image_side=8, splat=1)
    assert lo[0].tolist() == [[0, 0], [-3, 0], [0, -3]]
    assert cell[0].tolist() == [2, 2, np.float32(4) / np.float32(5)]
    # Row: splatted 1 and 6, middle 3, offset 4 - 3 - 1 = 0. Column: 1, middle 1, offset 4 - 1 - 1 = 2.
    assert offset[0, 0].tolist() == [0, 2]
    expected = np.zeros((8, 8))
    expected[1, 3], expected[6, 3] = 1, -3
    assert depth[0, 0].tolist() == expected.tolist()
    # View 1 sees (z, x, y): rows 1 and -3 -> 4 / 2 = 2 and 0; columns 0 and 5; depth 0 everywhere.
    assert offset[0, 1].tolist() == [1, 0]
    assert not depth[0, 1].any()


@pytest.mark.parametrize("impl", implementations("project"))
@pytest.mark.parametrize(
    ("reduction", "value"), [("sum", -0.5), ("mean", -0.125), ("max", 2.0), ("nearest", -1.5)], ids=lambda x: str(x)
)
def test_reductions_of_one_pixel(impl, reduction, value):
    depths = np.array([-1.5, 2.0, 0.5, -1.5], np.float32)
    points = np.stack([np.zeros(4), np.zeros(4), depths], axis=-1).astype(np.float32)[None]
    depth, *_ = impl(points, image_side=8, splat=1, reduction=reduction)
    assert depth[0, 0, 3, 3] == value
    assert np.count_nonzero(depth[0, 0]) == 1


@pytest.mark.parametrize("impl", implementations("project"))
def test_splats_past_the_border_are_written_on_it(impl):
    points = np.array([[[0, 0, 1], [1, 1, 1]]], np.float32)
    depth, *_ = impl(points, image_side=8, splat=5)
    assert depth[0, 0].sum() == 50
    assert depth[0, 0, 0, 0] == 4  # rows -1 and 0, columns -1 and 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("n", SIZES)
def test_all_equal_the_definition(n, reduction):
    arguments = {"image_side": 32, "splat": 3, "reduction": reduction}
    for kind in CLOUDS:
        points = np.stack([cloud(kind, n, seed=seed) for seed in range(2)])
        expected = plain.project(points, **arguments)
        for impl in (p for p in implementations("project", "numba", *KERNELS) if not p.marks):
            for got, wanted in zip(impl.values[0](points, **arguments), expected, strict=True):
                assert np.isfinite(got).all()
                np.testing.assert_array_equal(got, wanted, err_msg=f"{kind}, {impl.id}")
                assert not np.signbit(got[got == 0]).any(), "a zero is never negative: views are stored by their bytes"


@pytest.mark.parametrize("image_side", [8, 30, 224])
@pytest.mark.parametrize("splat", [1, 5, 7])
@pytest.mark.parametrize("impl", implementations("project")[1:])
def test_any_side_and_splat(impl, image_side, splat):
    points = cloud("ball", 300)[None]
    arguments = {"image_side": image_side, "splat": splat}
    for got, expected in zip(impl(points, **arguments), plain.project(points, **arguments), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["ball", "plate", "rod", "far", "shape1024", "shape2048"])
@pytest.mark.parametrize("impl", implementations("project"))
def test_recorded_clouds(impl, name):
    recorded = {key.removeprefix(f"{name}__"): value for key, value in reference_arrays("projection").items()}
    depth, lo, cell, offset = (result[0] for result in impl(recorded["pts"][None]))
    np.testing.assert_array_equal(lo, recorded["pc_min"])
    np.testing.assert_array_equal(cell, recorded["grid_size"])
    np.testing.assert_array_equal(offset, np.stack([recorded["offset_x"], recorded["offset_y"]], axis=-1))
    image = torch.sigmoid(torch.from_numpy(depth)).numpy()
    # The recording's own tolerance; what is seen is 7e-7, its float32 order of summing (ours is exact).
    np.testing.assert_allclose((image[:, None] - MEAN) / STD, recorded["img"], rtol=0, atol=1e-5)
    if "sum" in recorded and name == "shape1024":
        np.testing.assert_allclose(depth, recorded["sum"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(image, recorded["sigmoid"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["ball", "plate", "rod", "far", "shape1024", "shape2048"])
@pytest.mark.parametrize("impl", implementations("pixels"))
def test_recorded_pixel_indices(impl, name):
    recorded = {key.removeprefix(f"{name}__"): value for key, value in reference_arrays("projection").items()}
    offset = np.stack([recorded["offset_x"], recorded["offset_y"]], axis=-1).astype(np.int32)[None]
    pixel = impl(recorded["pts"][None], recorded["pc_min"][None], recorded["grid_size"][None], offset, 224)
    np.testing.assert_array_equal(pixel[0] - 1 - offset[0][:, None], recorded["idx"])


@pytest.mark.parametrize("impl", implementations("project"))
def test_recorded_pair(impl):
    recorded = {key.removeprefix("pair__"): value for key, value in reference_arrays("projection").items()}
    depth, lo, cell, offset = (result[:, 0] for result in impl(recorded["pts"]))
    np.testing.assert_array_equal(lo, recorded["pc_min"])
    np.testing.assert_array_equal(cell, recorded["grid_size"])
    np.testing.assert_array_equal(offset, np.stack([recorded["offset_x"], recorded["offset_y"]], axis=-1))
    image = (torch.sigmoid(torch.from_numpy(depth)).numpy() - MEAN[0]) / STD[0]
    np.testing.assert_allclose(image, recorded["img0"], rtol=0, atol=1e-5)  # as above


@given(st.integers(1, 120), st.integers(0, 2**31), st.sampled_from(sorted(CLOUDS)), st.sampled_from(sorted(REDUCTIONS)))
@settings(deadline=None, max_examples=60)
def test_laws(n, seed, kind, reduction):
    points = cloud(kind, n, seed=seed)
    tensor = torch.from_numpy(points)[None]
    depth, geometry = project(tensor, image_side=64, reduction=reduction)
    assert depth.isfinite().all()
    assert (geometry.cell > 0).all()

    order = np.random.default_rng(seed).permutation(n)
    shuffled, _ = project(torch.from_numpy(points[order])[None], image_side=64, reduction=reduction)
    assert torch.equal(depth, shuffled), "the order of points changes no bit"

    if reduction == "sum":
        depths = torch.stack([tensor[0, :, axes[2]].double().sum() for axes in VIEW_AXES])
        size = tensor.abs().max().item()
        # Each written value is rounded to 2^-36 of the largest, each pixel to float32; n * 25 of them add up.
        torch.testing.assert_close(depth[0].double().sum((1, 2)), 25 * depths, rtol=1e-5, atol=2e-6 * 25 * n * size)

    pixel = pixels(tensor, geometry, 64)[0]
    for v, axes in enumerate(VIEW_AXES):
        cells = pixel[v] - 1 - geometry.offset[0, v]
        back = geometry.lo[0, v] + cells * geometry.cell[0, v]
        slack = geometry.cell[0, v] * 1.01 + 2e-7 * tensor.abs().max()  # one cell, and rounding of far coordinates
        assert ((tensor[0][:, axes[:2]] - back).abs() <= slack).all(), "a pixel maps back within one cell"


@pytest.mark.parametrize("kind", CLOUDS)
def test_centred_and_inside(kind):
    depth, geometry = project(torch.from_numpy(cloud(kind, 500)[None]), splat=5)
    pixel = pixels(torch.from_numpy(cloud(kind, 500)[None]), geometry)
    low, high = pixel.amin(2), pixel.amax(2)
    assert (low >= 0).all()
    assert (high <= 223).all()
    assert ((low + high - 223).abs() <= 2).all()


@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("impl", implementations("project", "numba", "host", "cuda"))
def test_a_cloud_that_is_not_finite_does_not_harm_its_neighbours(impl, bad, reduction):
    """Such clouds are refused where data enters; if one comes through, the damage ends at its own images."""
    points = np.stack([cloud("ball", 40, seed=seed) for seed in range(3)])
    expected = impl(points, image_side=32, reduction=reduction)
    points[1, 3:6] = bad
    points[1, 7] = -3e38
    for got, wanted in zip(impl(points, image_side=32, reduction=reduction), expected, strict=True):
        np.testing.assert_array_equal(got[[0, 2]], wanted[[0, 2]])


def test_empty_batch():
    depth, geometry = project(torch.zeros(0, 5, 3))
    assert depth.shape == (0, 3, 224, 224)
    assert [tuple(part.shape) for part in geometry] == [(0, 3, 2), (0, 3), (0, 3, 2)]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"image_side": 225}, "image_side = 225 must be even and at least 8"),
        ({"image_side": 4}, "image_side = 4 must be even and at least 8"),
        ({"splat": 4}, r"splat = 4 must be odd and in 1\.\.image_side \(224\); the reference's is 5"),
        ({"reduction": "median"}, "reduction = 'median' is not known; choose one of sum, mean, max, nearest"),
    ],
)
def test_wrong_settings_are_named(settings_, message):
    with pytest.raises(ValueError, match=f"project: {message}"):
        project(torch.zeros(1, 4, 3), **settings_)
