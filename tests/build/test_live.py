"""The live teacher gives what a cached record gives."""

import numpy as np
import pytest
import torch

import teacher_cache
from pipeline.config import ProjectionConfig
from pipeline.errors import TeacherError
from pipeline.teacher.live import LiveTeacher
from pipeline.teacher.tower import load_teacher
from tests.support.builds import small_build
from tests.support.teachers import TINY_PROJECTION, tiny_teacher


@pytest.fixture
def live(tmp_path):
    return LiveTeacher(TINY_PROJECTION, load_teacher(tiny_teacher(tmp_path)))


def test_live_maps_are_the_cached_ones(tmp_path, live):
    cache = teacher_cache.open(small_build(tmp_path, cache={"features": "float32"}).path)
    batch = cache.read(range(6))
    maps = live(torch.from_numpy(batch.points))
    assert maps.image_side == cache.schema.image_side
    for name in ("lo", "cell", "offset"):
        assert np.array_equal(getattr(maps.geometry, name).numpy(), getattr(batch, name))
    # The build taught three images at a time, this call all eighteen; float32 sums may differ in order.
    assert np.allclose(maps.features.numpy(), batch.features, rtol=0, atol=2e-6)
    assert np.allclose(maps.saliency.numpy(), batch.saliency, rtol=0, atol=2e-7)


def test_the_sizes_of_the_maps_are_told_before_the_first_call(live):
    maps = live(torch.rand(2, 64, 3))
    assert maps.features.shape == (2, live.views, 16, live.channels)
    assert maps.saliency.shape == (2, live.views, 16)
    assert live.image_side == maps.image_side == 32


def test_no_gradient_reaches_the_points(live):
    maps = live(torch.rand(1, 64, 3, requires_grad=True))
    assert not maps.features.requires_grad
    assert not maps.geometry.lo.requires_grad


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(TeacherError, match=r"projection.image_side = 64 is not the 32"):
        LiveTeacher(ProjectionConfig(image_side=64, patch_side=8), load_teacher(tiny_teacher(tmp_path)))
