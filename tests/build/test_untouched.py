"""Zeroed patch tokens: no lookup at a stored point changes, and the rest of a cache is what it was."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import teacher_cache
from cuda.backproject import backproject
from cuda.geometry import ViewGeometry
from cuda.untouched import untouched_tokens
from pipeline.config import ProjectionConfig
from pipeline.corpora import normalise
from pipeline.views import render_views
from tests.support.builds import small_build

SIDES = st.sampled_from([(32, 8), (32, 16), (48, 8), (224, 16)])


@given(sides=SIDES, points=st.integers(1, 200), spread=st.floats(0.0, 1.0), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_zeroing_changes_no_lookup_and_keeps_no_more_than_windows(sides, points, spread, seed):
    image_side, patch_side = sides
    rng = np.random.default_rng(seed)
    around = rng.normal(size=(2, points + 2, 3)) * np.array([1.0, spread, 0.1])  # flat and stretched clouds too
    clouds = torch.from_numpy(np.stack([normalise(cloud.astype(np.float32)) for cloud in around]))
    views = render_views(clouds, ProjectionConfig(image_side=image_side, patch_side=patch_side))
    side = image_side // patch_side
    untouched = untouched_tokens(clouds.numpy(), views.geometry, image_side=image_side, side=side)
    maps = torch.randn(2, 3, side * side, 5, generator=torch.Generator().manual_seed(seed))
    zeroed = maps.clone()
    zeroed[torch.from_numpy(untouched)] = 0
    before = backproject(maps, clouds, views.geometry, image_side=image_side)
    assert torch.equal(backproject(zeroed, clouds, views.geometry, image_side=image_side), before)
    # Kept is what some point reads, and nothing else. Patch sides are even, so no pixel's centre is a token's, and none
    # of a point's 16 weights is zero: a map that is 1 in one kept token is seen by a point.
    impulse = torch.eye(side * side).expand(2, 3, -1, -1).contiguous()
    seen = backproject(impulse, clouds, views.geometry, image_side=image_side).abs().amax(1) > 0  # [B, V, T]
    assert (seen.numpy() == ~untouched).all()


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_build_zeroes_what_is_not_looked_up_and_nothing_else(tmp_path, format):
    kept = teacher_cache.open(small_build(tmp_path / "keep", format=format).path)
    zeroed = teacher_cache.open(small_build(tmp_path / "zero", format=format, cache={"untouched": "zero"}).path)
    assert kept.recipe.differences(zeroed.recipe) == ['storage.untouched: not set here, "zero" there']
    everything = range(len(kept))
    a, b = kept.read(everything, depth=True), zeroed.read(everything, depth=True)
    for name in ("points", "saliency", "lo", "cell", "offset", "depth", "label"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    geometry = ViewGeometry(*(torch.from_numpy(array) for array in (b.lo, b.cell, b.offset)))
    S, P = kept.schema.image_side, kept.schema.patch_side
    untouched = untouched_tokens(a.points, geometry, image_side=S, side=S // P)
    assert 0 < untouched.sum() < untouched.size
    assert not b.features[untouched].any()
    assert a.features[untouched].any(axis=-1).all()
    np.testing.assert_array_equal(a.features[~untouched], b.features[~untouched])
