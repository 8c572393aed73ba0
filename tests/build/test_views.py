"""What must hold for the images of any cloud. That they are the reference's is compared in tests/parity."""

import torch

from pipeline.config import ProjectionConfig
from pipeline.views import MOMENTS, VIEWS, render_views


def cloud(count=200, seed=0):
    points = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(seed))
    return points / points.norm(dim=-1).amax(dim=-1)[:, None, None]


def test_views_of_a_cloud_stand_together_with_three_equal_channels_before_normalisation():
    points = cloud()
    views = render_views(points, ProjectionConfig(image_side=32, patch_side=8))
    assert views.depth.shape == (2, VIEWS, 32, 32)
    assert views.images.shape == (2 * VIEWS, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in MOMENTS["imagenet"])
    grey = views.images * std + mean
    assert torch.allclose(grey, views.depth.flatten(0, 1)[:, None].expand_as(grey), atol=1e-6)


def test_clip_normalisation_changes_images_and_not_depth():
    points = cloud()
    imagenet = render_views(points, ProjectionConfig(image_side=32, patch_side=8))
    clip = render_views(points, ProjectionConfig(image_side=32, patch_side=8, normalisation="clip"))
    assert torch.equal(imagenet.depth, clip.depth)
    assert not torch.allclose(imagenet.images, clip.images)


def test_drawing_the_first_points_is_drawing_that_prefix():
    points = cloud()
    part = render_views(points, ProjectionConfig(image_side=32, patch_side=8, points=50))
    prefix = render_views(points[:, :50], ProjectionConfig(image_side=32, patch_side=8))
    assert torch.equal(part.depth, prefix.depth)
    assert torch.equal(part.geometry.lo, prefix.geometry.lo)


def test_a_cloud_without_extent_gives_finite_images():
    views = render_views(torch.zeros(1, 64, 3), ProjectionConfig(image_side=32, patch_side=8))
    assert torch.isfinite(views.images).all()
    assert torch.isfinite(views.geometry.cell).all()
