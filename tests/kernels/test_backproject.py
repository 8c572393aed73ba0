"""Back-projection: torch's bicubic resize, read at pixels, without the resize."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda import plain
from cuda.backproject import backproject, backproject_on, bicubic_taps, pixels
from cuda.geometry import ViewGeometry
from cuda.project import project
from tests.support.kernels import SIZES, cloud, host_launch, implementations
from tests.support.reference import reference_arrays


def views_of(points: np.ndarray, image_side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """lo, cell, offset of the projected points."""
    _, lo, cell, offset = plain.project(points, image_side=image_side, splat=1)
    return lo, cell, offset


def resized_and_read(maps: torch.Tensor, pixel: torch.Tensor, image_side: int) -> torch.Tensor:
    """What the reference does: resize every map, gather at the pixels. [B, V, T, C], [B, V, Q, 2] -> [B, Q, V, C]."""
    B, V, T, C = maps.shape
    side = round(T**0.5)
    grid = maps.float().view(B * V, side, side, C).permute(0, 3, 1, 2)
    large = torch.nn.functional.interpolate(grid, size=(image_side, image_side), mode="bicubic", align_corners=False)
    where = (pixel[..., 0] * image_side + pixel[..., 1]).long().view(B * V, 1, -1).expand(-1, C, -1)
    return large.flatten(2).gather(2, where).view(B, V, C, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("impl", implementations("backproject"))
def test_one_cell_by_hand(impl):
    # One point in the middle of a 16-pixel image over 4 x 4 cells: pixel 7, 1/8 before the edge between cells 1 and 2.
    points = np.zeros((1, 1, 3), np.float32)
    lo, cell, offset = views_of(points, 16)
    assert plain.pixels(points, lo, cell, offset, 16).tolist() == [[[[7, 7]]] * 3]
    t = 3 / 8  # (7.5 / 4 - 0.5) - 1, from the centre of cell 1
    weight = 1.25 * t**3 - 2.25 * t**2 + 1
    maps = np.zeros((1, 3, 16, 2), np.float32)
    maps[0, :, 5, 1] = [1, 2, -4]  # cell (1, 1)
    values = impl(maps, points, lo, cell, offset, 16)
    assert values[0, 0, :, 0].tolist() == [0, 0, 0]
    np.testing.assert_allclose(values[0, 0, :, 1], np.array([1, 2, -4]) * weight**2, rtol=1e-6)  # float32 rounding


@pytest.mark.parametrize("image_side", [8, 16, 224])
@pytest.mark.parametrize("side", [1, 2, 4])
def test_taps_are_torchs_bicubic(image_side, side):
    identity = torch.eye(side).view(side, 1, 1, side).repeat(1, 1, 2, 1)
    weights = torch.nn.functional.interpolate(identity, size=(2, image_side), mode="bicubic")[:, 0, 0].T
    first, taps = bicubic_taps(image_side, side)
    dense = np.zeros((image_side, side))
    for j in range(4):
        np.add.at(dense, (np.arange(image_side), np.clip(first + j, 0, side - 1)), taps[:, j])
    np.testing.assert_allclose(dense, weights, rtol=0, atol=2e-6)  # torch rounds the position to float32; seen 7e-7


def test_weights_of_the_reference_size_are_exact():
    first, weights = bicubic_taps(224, 14)
    assert (weights.astype(np.float64).sum(1) == 1).all()
    assert first[0] == -2
    assert first[223] == 12
    assert (weights * 2**17 == np.round(weights * 2**17)).all()


@pytest.mark.parametrize("n", SIZES[:-1])
@pytest.mark.parametrize("channels", [1, 5, 33])
@pytest.mark.parametrize("impl", implementations("backproject")[1:])
def test_equals_the_definition(impl, n, channels):
    points = np.stack([cloud("ball", n, seed=seed) for seed in range(2)])
    maps = np.random.default_rng(n).normal(size=(2, 3, 49, channels)).astype(np.float32)
    geometry = views_of(points, 28)
    expected = plain.backproject(maps, plain.pixels(points, *geometry, 28), 28)
    np.testing.assert_array_equal(impl(maps, points, *geometry, 28), expected)


@pytest.mark.parametrize("impl", implementations("pixels"))
def test_queries_outside_the_cloud_are_clamped(impl):
    points = cloud("ball", 50)[None]
    queries = np.array([[[-1e30, 1e30, 5], [0, 0, 0], [3e38, -3e38, 0]]], np.float32)
    pixel = impl(queries, *views_of(points, 32), 32)
    assert pixel.dtype == np.int32
    assert pixel.min() == 0
    assert pixel.max() == 31
    assert pixel[0, 0, 0].tolist() == [0, 31]


@pytest.mark.parametrize(("name", "tolerance"), [("feats", 1e-5), ("sal", 1e-7)])
@pytest.mark.parametrize("impl", implementations("backproject"))
def test_recorded_values(impl, name, tolerance):
    """To the recording's tolerances; seen: 7e-7 and 7e-9 (its order of summing differs)."""
    recorded = reference_arrays("backprojection")
    lo, cell = recorded["pc_min"].swapaxes(0, 1).copy(), recorded["grid_size"].T.copy()
    offset = np.stack([recorded["offset_x"].T, recorded["offset_y"].T], axis=-1).astype(np.int32)
    V, B, C, H, W = recorded[name].shape
    maps = np.ascontiguousarray(recorded[name].transpose(1, 0, 3, 4, 2).reshape(B, V, H * W, C))
    values = impl(maps, recorded["query"], lo, cell, offset, 224)
    np.testing.assert_allclose(values.transpose(2, 0, 1, 3), recorded[f"out_{name}"], rtol=0, atol=tolerance)


def test_recorded_upsampled_map_everywhere():
    recorded = reference_arrays("backprojection")
    maps = torch.from_numpy(recorded["feats"][0, 0, 0]).reshape(1, 1, 196, 1).repeat(1, 3, 1, 1)
    pixel = torch.stack(torch.meshgrid(torch.arange(224), torch.arange(224), indexing="ij"), -1).int()
    values = torch.ops.i2p.backproject(maps, pixel.view(1, 1, -1, 2).repeat(1, 3, 1, 1), 224)[0, :, 0, 0]
    np.testing.assert_allclose(values.view(224, 224), recorded["upsampled_0_0_0"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_maps_equal_their_float32_copies(dtype):
    points = torch.from_numpy(cloud("ball", 200)[None])
    _, geometry = project(points, image_side=64)
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 3, 16, 300, generator=generator).mul(10).to(dtype)
    maps[..., :3] = maps[..., :3] * 1e-7  # subnormal in float16
    expected = backproject(maps.float(), points, geometry, image_side=64)
    assert torch.equal(backproject(maps, points, geometry, image_side=64), expected)
    pixel = pixels(points, geometry, 64)
    assert torch.equal(backproject_on(host_launch(), maps, pixel, 64), expected)
    if torch.cuda.is_available():
        moved = ViewGeometry(*(part.cuda() for part in geometry))
        assert torch.equal(backproject(maps.cuda(), points.cuda(), moved, image_side=64).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["twin", "host"])
def test_every_half_value_widens_exactly(backend, dtype):
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)
    maps = every.expand(1, 3, 1, -1).contiguous()
    pixel = torch.zeros(1, 3, 1, 2, dtype=torch.int32)
    run = torch.ops.i2p.backproject if backend == "twin" else lambda *a: backproject_on(host_launch(), *a)
    # One cell: the clamped taps all read it, and each term is weight * value, so compare through the same sum.
    assert torch.equal(run(maps, pixel, 8)[every.isfinite().expand(1, 1, 3, -1)],
                       run(maps.float(), pixel, 8)[every.isfinite().expand(1, 1, 3, -1)])  # fmt: skip
    assert not run(maps, pixel, 8)[~every.isfinite().expand(1, 1, 3, -1)].isfinite().any()


@given(st.integers(1, 60), st.integers(0, 2**31), st.sampled_from([(8, 2), (28, 7), (224, 14)]))
@settings(deadline=None, max_examples=40)
def test_laws(n, seed, sides):
    image_side, side = sides
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(1, n, 3, generator=generator)
    _, geometry = project(points, image_side=image_side, splat=1)
    maps = torch.randn(1, 3, side * side, 3, generator=generator)

    constant = backproject(torch.full_like(maps, 0.7), points, geometry, image_side=image_side)
    torch.testing.assert_close(constant, torch.full_like(constant, 0.7), rtol=2e-6, atol=0)  # 16 roundings

    pixel = pixels(points, geometry, image_side)
    values = torch.ops.i2p.backproject(maps, pixel, image_side)
    # The resize differs by its order of summing; seen 1e-6 on values of size 4.
    torch.testing.assert_close(values, resized_and_read(maps, pixel, image_side), rtol=0, atol=1e-5)

    flipped = maps.view(1, 3, side, side, 3).flip(2).reshape(maps.shape)
    mirrored = pixel.clone()
    mirrored[..., 0] = image_side - 1 - pixel[..., 0]
    torch.testing.assert_close(torch.ops.i2p.backproject(flipped, mirrored, image_side), values, rtol=0, atol=1e-5)


def test_gradient_in_maps_is_that_of_the_resize():
    points = torch.from_numpy(cloud("ball", 40)[None])
    _, geometry = project(points, image_side=32)
    maps = torch.randn(1, 3, 16, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    seed = torch.randn(1, 40, 3, 4, generator=torch.Generator().manual_seed(1))
    (ours,) = torch.autograd.grad(backproject(maps, points, geometry, image_side=32), maps, seed)
    (theirs,) = torch.autograd.grad(resized_and_read(maps, pixels(points, geometry, 32), 32), maps, seed)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # sums of up to 40 terms of size 1


def test_few_views_split_over_threads_give_the_same(monkeypatch):
    points = torch.from_numpy(cloud("ball", 333)[None])
    _, geometry = project(points)
    maps = torch.randn(1, 3, 196, 8, generator=torch.Generator().manual_seed(0)).half()
    results = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(backproject(maps, points, geometry))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_no_queries():
    _, geometry = project(torch.zeros(2, 4, 3))
    assert backproject(torch.zeros(2, 3, 196, 7), torch.zeros(2, 0, 3), geometry).shape == (2, 0, 3, 7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"maps": torch.zeros(1, 3, 196, 8).double()},
            TypeError,
            "maps must be float32, float16 or bfloat16, got torch",
        ),
        ({"maps": torch.zeros(1, 2, 196, 8)}, ValueError, r"maps must be \[B, V, T, C\] with B = 1 .* got \[1, 2, 196"),
        ({"maps": torch.zeros(1, 3, 197, 8)}, ValueError, "T = 197 tokens per view, .* drop the class token"),
        ({"maps": torch.zeros(1, 3, 25, 8)}, ValueError, "divides image_side = 224"),
        ({"points": torch.zeros(2, 4, 3)}, ValueError, r"geometry.lo must be \[2, 3, 2\] on cpu, got \[1, 3, 2\]"),
        ({"points": torch.zeros(1, 4, 3).half()}, TypeError, "points must be float32, got torch.float16"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    _, geometry = project(torch.zeros(1, 4, 3))
    arguments = {"maps": torch.zeros(1, 3, 196, 8), "points": torch.zeros(1, 4, 3)} | change
    with pytest.raises(error, match=f"backproject: .*{message}"):
        backproject(arguments["maps"], arguments["points"], geometry)
    with pytest.raises(
        TypeError, match=r"geometry.offset must be torch.int32, got torch.int64; pass the geometry that project"
    ):
        pixels(torch.zeros(1, 4, 3), geometry._replace(offset=geometry.offset.long()))
