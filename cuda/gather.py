"""Rows of each cloud's array at indices, and groups of points relative to their centres."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cuda import _backend
from cuda._check import check_same_batch
from cuda._operator import operator
from cuda.twins.gather import gather as _twin
from cuda.twins.gather import gather_backward as _twin_backward
from cuda.twins.gather import group as _twin_group
from cuda.twins.threads import for_each

__all__ = ["gather", "group"]

_WIDTHS = {torch.float32: 4, torch.float64: 8, torch.float16: 2, torch.bfloat16: 2}
_SUMMED = (torch.float32, torch.float64)  # others are summed in float32
_THREADS = 256
_FEW_CHANNELS = 4  # up to so many, 4 threads share a row; with more, a warp does


def gather(values: Tensor, idx: Tensor) -> Tensor:
    """Gather the rows of each cloud's array at its indices.

    values  [B, N, D] float32, float64, float16 or bfloat16.
    idx     [B, ...] int64 into axis N.
    ->      [B, ..., D], values' dtype.

    Differentiable once, in values: the gradient of a row is summed over the places it went to, in their order (for half
    types in float32), so it is bitwise reproducible.

    Raises TypeError for a dtype, ValueError for a shape or device, IndexError on the CPU for an index outside 0..N-1. A
    GPU cannot raise without waiting: there such a row is NaN.
    """
    _check("gather", "values", values, idx, tuple(_WIDTHS))
    if idx.ndim < 2:
        raise ValueError(f"gather: idx must be [B, ...], got {list(idx.shape)}; one index per cloud is idx[:, None]")
    rows = _gather(values.contiguous(), idx.flatten(1).contiguous())
    return rows.view(*idx.shape, values.shape[2])


def group(points: Tensor, centres: Tensor, idx: Tensor) -> Tensor:
    """Gather the members of each group relative to its centre.

    points   [B, N, D] float32 or float64.
    centres  [B, G, D], points' dtype.
    idx      [B, G, K] int64 into axis N.
    ->       [B, G, K, D], points' dtype.

    Differentiable once, in points (as in `gather`) and in centres. Raises as `gather` does.
    """
    _check("group", "points", points, idx, _SUMMED)
    _check("group", "centres", centres, idx, (points.dtype,))
    check_same_batch("group", "points", points, "centres", centres)
    B, G, D = centres.shape
    if idx.ndim != 3 or idx.shape[1] != G or points.shape[2] != D:
        raise ValueError(
            f"group: with centres {list(centres.shape)}, points must be [{B}, N, {D}] and idx [{B}, {G}, K], got "
            f"{list(points.shape)} and {list(idx.shape)}; use the indices that knn found for these centres"
        )
    return _group(points.contiguous(), centres.contiguous(), idx.contiguous())


def _check(function: str, name: str, values: Tensor, idx: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if values.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{function}: {name} must be {wanted}, got {values.dtype}; convert it with {name}.float()")
    if idx.dtype != torch.int64:
        raise TypeError(f"{function}: idx must be int64, got {idx.dtype}; convert it with idx.long()")
    if values.ndim != 3:
        raise ValueError(f"{function}: {name} must be [B, N, D], got {list(values.shape)}; it needs all three axes")
    check_same_batch(function, name, values, "idx", idx)


def gather_on(launch: _backend.Launch, values: Tensor, idx: Tensor) -> Tensor:
    """Compute rows [B, P, D] by the kernel, through ``launch``."""
    B, N, D = values.shape
    P = idx.shape[1]
    rows = values.new_empty(B, P, D)
    defines = _defines(D, _WIDTHS[values.dtype])
    launch("gather", "gather", _row_blocks(B * P, D), _THREADS, (values, idx, rows, B, N, P, D), defines)
    return rows


def group_on(launch: _backend.Launch, points: Tensor, centres: Tensor, idx: Tensor) -> Tensor:
    """Compute rows [B, G, K, D] by the kernel, through ``launch``."""
    B, G, K = idx.shape
    N, D = points.shape[1:]
    rows = points.new_empty(B, G, K, D)
    arguments = (points, centres, idx, rows, B, N, G, K, D)
    launch("gather", "group", _row_blocks(B * G * K, D), _THREADS, arguments, _defines(D, _WIDTHS[points.dtype]))
    return rows


def gather_backward_on(launch: _backend.Launch, grad: Tensor, idx: Tensor, N: int) -> Tensor:
    """Compute sums [B, N, D] by the kernel, through ``launch``."""
    B, P, D = grad.shape
    sums = grad.new_empty(B, N, D)
    blocks = _backend.blocks_for(B * N, _THREADS // 32)
    launch(
        "gather", "gather_backward", blocks, _THREADS, (grad, idx, sums, B, N, P, D), _defines(D, _WIDTHS[grad.dtype])
    )
    return sums


def _lanes(channels: int) -> int:
    return 4 if channels <= _FEW_CHANNELS else 32


def _row_blocks(rows: int, channels: int) -> int:
    return _backend.blocks_for(rows, _THREADS // _lanes(channels))


def _defines(channels: int, width: int) -> dict[str, int]:
    return {"THREADS": _THREADS, "LANES": _lanes(channels), "WIDTH": width}


def _parts(clouds: int, pieces: int) -> int:
    """Return the number of work items to cut a cloud's pieces into: just enough that every thread has one."""
    return max(1, min(pieces, -(-2 * torch.get_num_threads() // max(clouds, 1))))


def _refuse(function: str, wrong: np.ndarray, idx: Tensor, N: int) -> None:
    if wrong.any():
        raise IndexError(
            f"{function}: idx has values in {idx.min().item()}..{idx.max().item()}, but the clouds have points "
            f"0..{N - 1}; use indices into the same array"
        )


@operator("gather")
def _gather(values: Tensor, idx: Tensor) -> Tensor:
    B, N, D = values.shape
    P = idx.shape[1]
    rows = values.new_empty(B, P, D)
    parts = _parts(B, P)
    wrong = np.zeros(B * parts, np.bool_)
    stored, found = values.detach(), rows
    if values.dtype not in _SUMMED:
        stored, found = stored.view(torch.uint16), rows.view(torch.uint16)
    for_each(B * parts, _twin, stored.numpy(), idx.numpy(), parts, found.numpy(), wrong)
    _refuse("gather", wrong, idx, N)
    return rows


@_gather.register_kernel("cuda")
def _(values: Tensor, idx: Tensor) -> Tensor:
    return gather_on(_backend.launch, values, idx)


@_gather.register_fake
def _(values: Tensor, idx: Tensor) -> Tensor:
    return values.new_empty(values.shape[0], idx.shape[1], values.shape[2])


@operator("group")
def _group(points: Tensor, centres: Tensor, idx: Tensor) -> Tensor:
    B, G, K = idx.shape
    rows = points.new_empty(B, G, K, points.shape[2])
    parts = _parts(B, G)
    wrong = np.zeros(B * parts, np.bool_)
    arrays = (points.detach().numpy(), centres.detach().numpy(), idx.numpy())
    for_each(B * parts, _twin_group, *arrays, parts, rows.numpy(), wrong)
    _refuse("group", wrong, idx, points.shape[1])
    return rows


@_group.register_kernel("cuda")
def _(points: Tensor, centres: Tensor, idx: Tensor) -> Tensor:
    return group_on(_backend.launch, points, centres, idx)


@_group.register_fake
def _(points: Tensor, centres: Tensor, idx: Tensor) -> Tensor:
    return points.new_empty(*idx.shape, points.shape[2])


@operator("gather_backward")
def _gather_backward(grad: Tensor, idx: Tensor, N: int) -> Tensor:
    B, _, D = grad.shape
    sums = grad.new_empty(B, N, D)
    parts = _parts(B, D)
    for_each(B * parts, _twin_backward, grad.detach().numpy(), idx.numpy(), parts, sums.numpy())
    return sums


@_gather_backward.register_kernel("cuda")
def _(grad: Tensor, idx: Tensor, N: int) -> Tensor:
    return gather_backward_on(_backend.launch, grad, idx, N)


@_gather_backward.register_fake
def _(grad: Tensor, idx: Tensor, N: int) -> Tensor:
    return grad.new_empty(grad.shape[0], N, grad.shape[2])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[-1])
    ctx.rows, ctx.dtype = inputs[0].shape[1], inputs[0].dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (idx,) = ctx.saved_tensors
    summed = grad if grad.dtype in _SUMMED else grad.float()
    return _gather_backward(summed.contiguous(), idx, ctx.rows).to(ctx.dtype), None


def _backward_of_group(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    (idx,) = ctx.saved_tensors
    of_points = of_centres = None
    if ctx.needs_input_grad[0]:
        of_points = _gather_backward(grad.flatten(1, 2).contiguous(), idx.flatten(1), ctx.rows)
    if ctx.needs_input_grad[1]:
        of_centres = -grad.sum(2)
    return of_points, of_centres, None


_gather.register_autograd(_backward, setup_context=_keep)
_group.register_autograd(_backward_of_group, setup_context=_keep)
