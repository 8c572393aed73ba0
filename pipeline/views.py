"""Rendering of clouds to the teacher's input images: projection, sigmoid, three equal channels, normalisation."""

from typing import NamedTuple

import torch
from torch import Tensor

from cuda.geometry import VIEW_AXES, ViewGeometry
from cuda.project import project
from pipeline.config import ProjectionConfig

__all__ = ["MOMENTS", "VIEWS", "RenderedViews", "normalise_depth", "render_views"]

VIEWS = len(VIEW_AXES)

MOMENTS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation of each channel; the reference feeds CLIP images in ImageNet's."""


class RenderedViews(NamedTuple):
    """The views of B clouds.

    depth     [B, V, S, S] float32 in 0..1: sigmoid of the reduced depth, 0.5 where no point fell
    images    [B * V, 3, S, S] float32, normalised, views of a cloud together: what a teacher encodes
    geometry  the pixel grids, for every later lookup
    """

    depth: Tensor
    images: Tensor
    geometry: ViewGeometry


def render_views(points_canonical: Tensor, config: ProjectionConfig) -> RenderedViews:
    """Render each cloud from three sides.

    points_canonical  [B, N, 3] float32, finite; config.points of them are drawn (0: all).

    Raises TypeError and ValueError as `cuda.project.project` does. Source: I2P-MAE (Zhang et al. 2023), 3.2.
    """
    drawn = points_canonical[:, : config.points] if config.points else points_canonical
    raw, geometry = project(drawn, image_side=config.image_side, splat=config.splat, reduction=config.reduction)
    if config.depth_offset:
        # Moving the cloud along all three axes moves it along each view's depth; pixels stay, to rounding, and the
        # geometry is that of the unmoved cloud, which later lookups use.
        raw, _ = project(
            drawn + config.depth_offset, image_side=config.image_side, splat=config.splat, reduction=config.reduction
        )
    depth = torch.sigmoid(raw)
    return RenderedViews(depth, normalise_depth(depth.flatten(0, 1), config.normalisation), geometry)


def normalise_depth(depth: Tensor, normalisation: str) -> Tensor:
    """Repeat depth images [M, S, S] to three channels, normalised by `MOMENTS[normalisation]` -> [M, 3, S, S]."""
    mean, std = (torch.tensor(values, device=depth.device)[:, None, None] for values in MOMENTS[normalisation])
    return (depth[:, None] - mean) / std
