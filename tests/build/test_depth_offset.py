"""A depth offset makes every point stand out from the background and moves nothing else."""

import torch

from pipeline.build.recipe import recipe_for
from pipeline.config import ProjectionConfig
from pipeline.corpora import open_corpus
from pipeline.views import render_views
from teacher_cache import CacheConfig


def clouds(count=4, points=200):
    points = torch.randn(count, points, 3, generator=torch.Generator().manual_seed(0))
    return points / points.norm(dim=2).amax(dim=1)[:, None, None]


def test_every_point_is_brighter_than_the_background():
    plain = render_views(clouds(), ProjectionConfig(reduction="nearest"))
    moved = render_views(clouds(), ProjectionConfig(reduction="nearest", depth_offset=1.5))
    assert (plain.depth < 0.5).any()
    background = moved.depth == 0.5
    assert (moved.depth[~background] > 0.6).all()
    # pixels may differ where rounding moves a point over a pixel's edge
    assert (background != (plain.depth == 0.5)).float().mean() < 1e-3
    for ours, theirs in zip(moved.geometry, plain.geometry, strict=True):
        assert torch.equal(ours, theirs)


def test_depth_is_the_plain_depth_moved():
    plain = render_views(clouds(), ProjectionConfig(reduction="mean")).depth.logit()
    moved = render_views(clouds(), ProjectionConfig(reduction="mean", depth_offset=1.5)).depth.logit()
    both = (plain != 0) & (moved != 0)
    close = (moved[both] - plain[both] - 1.5).abs() < 1e-4
    assert close.float().mean() > 0.999


def test_a_recipe_without_an_offset_is_what_it_was():
    def projection(**settings):
        source = open_corpus("synthetic:?count=2", points=64)
        return recipe_for(source, ProjectionConfig(**settings), {}, CacheConfig(), points=64).projection

    assert "depth_offset" not in projection()
    assert projection(depth_offset=1.5)["depth_offset"] == 1.5
    assert list(ProjectionConfig(depth_offset=5.0).problems()) == ["depth_offset = 5.0 is outside 0..4"]
