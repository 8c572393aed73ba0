"""Depth views of a cloud."""

import torch
from torch import Tensor

from cuda import _backend
from cuda._check import check_choice, check_clouds
from cuda._operator import operator
from cuda.geometry import VIEW_AXES, ViewGeometry
from cuda.twins.project import MAX, MEAN, NEAREST, SUM
from cuda.twins.project import project as _twin
from cuda.twins.threads import for_each

__all__ = ["REDUCTIONS", "project"]

REDUCTIONS = {"sum": SUM, "mean": MEAN, "max": MAX, "nearest": NEAREST}

_VIEWS = len(VIEW_AXES)
_THREADS = 256


def project(
    points: Tensor, *, image_side: int = 224, splat: int = 5, reduction: str = "sum"
) -> tuple[Tensor, ViewGeometry]:
    """Render each point's depth into three axis-aligned views.

    points      [B, N, 3] float32, finite, coordinates below 1e38 in magnitude.
    image_side  S, even, at least 8.
    splat       odd; each point is written to splat x splat pixels around its own, those outside pulled to the border.
    reduction   how a pixel reduces the raw, signed depths written to it: "sum" (the reference), "mean", "max" (the
                largest), "nearest" (the least: the viewer looks along the growing depth axis). 0 where none was.
    ->          depth [B, V, S, S] float32; ViewGeometry of the grids.

    A view without extent in its plane gets a cell of 1 and is finite. Sums are accumulated in fixed point (exact to
    about 2^-36 of the view's largest depth), so they do not depend on the order of the points.

    Raises TypeError for a dtype, ValueError for a shape or setting. Source: I2P-MAE (Zhang et al. 2023), after
    PointCLIP V2's projection. O(N splat^2 + S^2) per view.
    """
    check_clouds("project", "points", points)
    check_choice("project", "reduction", reduction, tuple(REDUCTIONS))
    if image_side < 8 or image_side % 2:
        raise ValueError(f"project: image_side = {image_side} must be even and at least 8; the reference's is 224")
    if splat < 1 or splat % 2 == 0 or splat > image_side:
        raise ValueError(
            f"project: splat = {splat} must be odd and in 1..image_side ({image_side}); the reference's is 5"
        )
    depth, lo, cell, offset = _project(points.contiguous(), image_side, splat, reduction)
    return depth, ViewGeometry(lo, cell, offset)


def sum_exponent(points: int, splat: int) -> int:
    """Return the bits left for a depth if ``points * splat^2`` of them must add up to less than 2^53."""
    return 53 - (points * splat * splat - 1).bit_length()


def project_on(
    launch: _backend.Launch, points: Tensor, image_side: int, splat: int, reduction: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute depth, lo, cell and offset by the kernels, through ``launch``."""
    B, N, _ = points.shape
    depth, lo, cell, offset = _outputs(points, image_side)
    code = REDUCTIONS[reduction]
    scale = points.new_empty(B, _VIEWS, dtype=torch.float64)
    # Fixed point in int64: integer atomics commute, so sums do not depend on the order of threads.
    total = points.new_zeros(depth.shape if code in (SUM, MEAN) else 0, dtype=torch.int64)
    mark = points.new_zeros(depth.shape if code != SUM else 0, dtype=torch.int32)
    defines = {"THREADS": _THREADS}

    of_view = (points, lo, cell, offset, scale, N, image_side, sum_exponent(N, splat))
    launch("project", "bounds", B * _VIEWS, _THREADS, of_view, defines)
    of_point = (points, lo, cell, offset, scale, total, mark, B, N, image_side, splat, code)
    launch("project", "splat", _backend.blocks_for(B * _VIEWS * N, _THREADS), _THREADS, of_point, defines)
    of_pixel = (scale, total, mark, depth, B, image_side, code)
    launch("project", "resolve", _backend.blocks_for(depth.numel(), _THREADS), _THREADS, of_pixel, defines)
    return depth, lo, cell, offset


def _outputs(points: Tensor, image_side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B = points.shape[0]
    return (
        points.new_empty(B, _VIEWS, image_side, image_side),
        points.new_empty(B, _VIEWS, 2),
        points.new_empty(B, _VIEWS),
        points.new_empty(B, _VIEWS, 2, dtype=torch.int32),
    )


@operator("project")
def _project(points: Tensor, image_side: int, splat: int, reduction: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, N, _ = points.shape
    outputs = _outputs(points, image_side)
    exponent = sum_exponent(N, splat)
    arrays = (output.numpy() for output in outputs)
    for_each(B * _VIEWS, _twin, points.detach().numpy(), splat, REDUCTIONS[reduction], exponent, *arrays)
    return outputs


@_project.register_kernel("cuda")
def _(points: Tensor, image_side: int, splat: int, reduction: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return project_on(_backend.launch, points, image_side, splat, reduction)


@_project.register_fake
def _(points: Tensor, image_side: int, splat: int, reduction: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(points, image_side)
