"""Back-projection: pixels of points in each view, and bicubic values of token maps at these pixels."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cuda import _backend
from cuda._check import check_clouds
from cuda._operator import operator
from cuda.geometry import VIEW_AXES, ViewGeometry
from cuda.twins.backproject import backproject as _twin
from cuda.twins.backproject import backproject_half as _twin_half
from cuda.twins.backproject import pixels as _twin_pixels
from cuda.twins.threads import for_each

__all__ = ["BICUBIC_A", "backproject", "bicubic_taps", "pixels"]

BICUBIC_A = -0.75
"""Keys' cubic parameter; torch's bicubic interpolation and OpenCV use the same."""

_VIEWS = len(VIEW_AXES)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # in the order of the kernel's FORMAT
_THREADS = 256


def pixels(points: Tensor, geometry: ViewGeometry, image_side: int = 224) -> Tensor:
    """Compute the pixel of each point in each view.

    points    [B, Q, 3] float32 in the frame that was projected; they need not be among the projected ones.
    geometry  of `project`: lo [B, V, 2], cell [B, V], offset [B, V, 2].
    ->        [B, V, Q, 2] int32 (row, column), clamped to 0..image_side - 1.

    Raises TypeError for a dtype, ValueError for a shape.
    """
    _check_queries("pixels", points, geometry)
    return _pixels(points.contiguous(), *(part.contiguous() for part in geometry), image_side)


def backproject(maps: Tensor, points: Tensor, geometry: ViewGeometry, *, image_side: int = 224) -> Tensor:
    """Read each view's token map, as if resized to the image, at the pixel of each point.

    maps      [B, V, T, C] float32, float16 or bfloat16; T = side * side tokens, row-major; side divides image_side.
    points    [B, Q, 3] float32 in the frame that was projected. Q may be 0.
    geometry  of `project` for the same clouds and image_side.
    ->        [B, Q, V, C] float32.

    The value is torch's bicubic interpolation (a = -0.75, align_corners false, borders clamped) from side x side to
    image_side x image_side at that pixel, computed as a 4 x 4 weighted sum: the resized map is never made. It can
    overshoot the map's range. Differentiable in maps only.

    Raises TypeError for a dtype, ValueError for a shape. Source: I2P-MAE (Zhang et al. 2023). O(16 Q C) per view.
    """
    _check_queries("backproject", points, geometry)
    if maps.dtype not in _DTYPES:
        raise TypeError(
            f"backproject: maps must be float32, float16 or bfloat16, got {maps.dtype}; convert with maps.float()"
        )
    B = points.shape[0]
    if maps.ndim != 4 or maps.shape[0] != B or maps.shape[1] != _VIEWS:
        raise ValueError(
            f"backproject: maps must be [B, V, T, C] with B = {B} (as points) and V = {_VIEWS}, got "
            f"{list(maps.shape)}; flatten the tokens of a view into one row-major axis"
        )
    side = round(maps.shape[2] ** 0.5)
    if side * side != maps.shape[2] or side == 0 or image_side % side:
        raise ValueError(
            f"backproject: maps have T = {maps.shape[2]} tokens per view, which is not side * side with a side that "
            f"divides image_side = {image_side}; drop the class token, or pass the image_side of the projection"
        )
    if maps.device != points.device:
        raise ValueError(
            f"backproject: maps are on {maps.device} and points on {points.device}; move both to one device"
        )
    pixel = pixels(points, geometry, image_side)
    return _backproject(maps.contiguous(), pixel, image_side)


@cache
def bicubic_taps(image_side: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the four map rows that each image row reads, and their weights.

    ->  first [image_side] int32, the first of the four before clamping to 0..side - 1; weights [image_side, 4] float32.

    The image row's centre lies at ``(pixel + 0.5) * side / image_side - 0.5`` in map rows. For a patch side that is a
    power of two up to 64 every weight is exact.
    """
    patch = image_side // side
    doubled = 2 * np.arange(image_side) + 1 - patch  # centre * 2 * patch, a whole number
    base = doubled // (2 * patch)
    t = (doubled - base * 2 * patch) / (2.0 * patch)
    a = BICUBIC_A
    inner = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    outer = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1 + t, 2 - t)]
    weights = np.stack([outer[0], inner[0], inner[1], outer[1]], axis=1).astype(np.float32)
    return (base - 1).astype(np.int32), weights


def _check_queries(function: str, points: Tensor, geometry: ViewGeometry) -> None:
    check_clouds(function, "points", points, may_be_empty=True)
    B = points.shape[0]
    wanted = (("lo", (B, _VIEWS, 2), torch.float32), ("cell", (B, _VIEWS), torch.float32))
    for (name, shape, dtype), part in zip((*wanted, ("offset", (B, _VIEWS, 2), torch.int32)), geometry, strict=True):
        if part.dtype != dtype:
            raise TypeError(
                f"{function}: geometry.{name} must be {dtype}, got {part.dtype}; pass the geometry that project "
                "returned"
            )
        if part.shape != shape or part.device != points.device:
            raise ValueError(
                f"{function}: geometry.{name} must be {list(shape)} on {points.device}, got {list(part.shape)} on "
                f"{part.device}; pass the geometry of these clouds, on their device"
            )


def pixels_on(
    launch: _backend.Launch, points: Tensor, lo: Tensor, cell: Tensor, offset: Tensor, image_side: int
) -> Tensor:
    """Compute pixel [B, V, Q, 2] int32 by the kernel, through ``launch``."""
    B, Q, _ = points.shape
    pixel = points.new_empty(B, _VIEWS, Q, 2, dtype=torch.int32)
    blocks = _backend.blocks_for(B * _VIEWS * Q, _THREADS)
    arguments = (points, lo, cell, offset, pixel, B, Q, image_side)
    launch("backproject", "pixels", blocks, _THREADS, arguments, {"THREADS": _THREADS, "FORMAT": 0})
    return pixel


def backproject_on(launch: _backend.Launch, maps: Tensor, pixel: Tensor, image_side: int) -> Tensor:
    """Compute values [B, Q, V, C] float32 by the kernel, through ``launch``."""
    B, V, T, C = maps.shape
    Q = pixel.shape[2]
    side = round(T**0.5)
    first, weights = _taps_on(maps.device, image_side, side)
    values = maps.new_empty(B, Q, V, C, dtype=torch.float32)
    blocks = _backend.blocks_for(B * Q * V, _THREADS // 32)
    arguments = (maps, pixel, first, weights, values, B, Q, side, C)
    defines = {"THREADS": _THREADS, "FORMAT": _DTYPES.index(maps.dtype)}
    launch("backproject", "backproject", blocks, _THREADS, arguments, defines)
    return values


@cache
def _taps_on(device: torch.device, image_side: int, side: int) -> tuple[Tensor, Tensor]:
    first, weights = bicubic_taps(image_side, side)
    return torch.tensor(first, device=device), torch.tensor(weights, device=device)


@operator("pixels")
def _pixels(points: Tensor, lo: Tensor, cell: Tensor, offset: Tensor, image_side: int) -> Tensor:
    B, Q, _ = points.shape
    pixel = points.new_empty(B, _VIEWS, Q, 2, dtype=torch.int32)
    arrays = [tensor.detach().numpy() for tensor in (points, lo, cell, offset)]
    for_each(B * _VIEWS, _twin_pixels, *arrays, image_side, pixel.numpy())
    return pixel


@_pixels.register_kernel("cuda")
def _(points: Tensor, lo: Tensor, cell: Tensor, offset: Tensor, image_side: int) -> Tensor:
    return pixels_on(_backend.launch, points, lo, cell, offset, image_side)


@_pixels.register_fake
def _(points: Tensor, lo: Tensor, cell: Tensor, offset: Tensor, image_side: int) -> Tensor:
    return points.new_empty(points.shape[0], _VIEWS, points.shape[1], 2, dtype=torch.int32)


@operator("backproject")
def _backproject(maps: Tensor, pixel: Tensor, image_side: int) -> Tensor:
    B, V, T, C = maps.shape
    Q = pixel.shape[2]
    side = round(T**0.5)
    values = maps.new_empty(B, Q, V, C, dtype=torch.float32)
    # Splitting a view costs a half-precision map a second widening, so it is done only to occupy the threads.
    parts = max(1, min(Q, -(-2 * torch.get_num_threads() // max(B * V, 1))))
    first, weights = bicubic_taps(image_side, side)
    rest = (side, pixel.numpy(), first, weights, parts, values.numpy())
    if maps.dtype == torch.float32:
        for_each(B * V * parts, _twin, maps.detach().numpy(), *rest)
    else:
        bits = maps.detach().view(torch.uint16).numpy()
        for_each(B * V * parts, _twin_half, bits, maps.dtype == torch.bfloat16, *rest)
    return values


@_backproject.register_kernel("cuda")
def _(maps: Tensor, pixel: Tensor, image_side: int) -> Tensor:
    return backproject_on(_backend.launch, maps, pixel, image_side)


@_backproject.register_fake
def _(maps: Tensor, pixel: Tensor, image_side: int) -> Tensor:
    B, V, _, C = maps.shape
    return maps.new_empty(B, pixel.shape[2], V, C, dtype=torch.float32)


@operator("backproject_backward", device="default")
def _backproject_backward(grad: Tensor, pixel: Tensor, image_side: int, side: int) -> Tensor:
    first, weights = _taps_on(grad.device, image_side, side)
    taps = (first[:, None] + torch.arange(4, device=first.device)).clamp(0, side - 1)
    # One row a pixel coordinate: its weight on each map row (column). Borders collect several taps.
    dense = torch.zeros_like(weights[:, :1]).repeat(1, side).scatter_add_(1, taps, weights)
    rows, columns = dense[pixel[..., 0].long()], dense[pixel[..., 1].long()]  # [B, V, Q, side]
    spread = (rows[..., :, None] * columns[..., None, :]).flatten(3)  # [B, V, Q, T]
    with torch.autocast(grad.device.type, enabled=False):  # where it is on, it reaches into this function
        return torch.einsum("bvqt,bqvc->bvtc", spread, grad).contiguous()


@_backproject_backward.register_fake
def _(grad: Tensor, pixel: Tensor, image_side: int, side: int) -> Tensor:
    B, _, V, C = grad.shape
    return grad.new_empty(B, V, side * side, C)


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    maps, pixel, ctx.image_side = inputs
    ctx.side, ctx.dtype = round(maps.shape[2] ** 0.5), maps.dtype
    ctx.save_for_backward(pixel)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (pixel,) = ctx.saved_tensors
    return _backproject_backward(grad, pixel, ctx.image_side, ctx.side).to(ctx.dtype), None, None


_backproject.register_autograd(_backward, setup_context=_keep_for_backward)
