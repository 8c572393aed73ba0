"""Chamfer: squared distances to the nearest neighbour, both ways."""

from typing import Any

import torch
from torch import Tensor

from cuda import _backend
from cuda._check import check_clouds, check_same_batch
from cuda._operator import operator
from cuda.twins.chamfer import nearest as _twin
from cuda.twins.chamfer import nearest_backward as _twin_backward
from cuda.twins.threads import for_each

__all__ = ["chamfer"]

_THREADS = 128


def chamfer(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the squared distance of each point to the nearest point of the other set, both ways.

    a  [M, P, 3] float32, finite.
    b  [M, Q, 3] float32, finite.
    -> a to b [M, P] float32, b to a [M, Q] float32. The nearest is the lowest index among equals.

    Differentiable once in both: the gradient flows through the chosen pairs and is summed in a fixed order, so it is
    bitwise reproducible. Under autocast pass float32 (``a.float()``).

    Raises TypeError for a dtype, ValueError for a shape. O(P Q) per pair of sets; made for many small sets.
    """
    check_clouds("chamfer", "a", a)
    check_clouds("chamfer", "b", b)
    check_same_batch("chamfer", "a", a, "b", b)
    a_to_b, b_to_a, _, _ = _chamfer(a.contiguous(), b.contiguous())
    return a_to_b, b_to_a


def nearest_on(launch: _backend.Launch, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute dist2 [M, P] f32 and idx [M, P] i32 by the kernel, through ``launch``."""
    M, P, _ = a.shape
    dist2, idx = a.new_empty(M, P), a.new_empty(M, P, dtype=torch.int32)
    blocks = _backend.blocks_for(M * P, _THREADS)
    launch("chamfer", "nearest", blocks, _THREADS, (a, b, dist2, idx, M, P, b.shape[1]), {"THREADS": _THREADS})
    return dist2, idx


def nearest_backward_on(
    launch: _backend.Launch, a: Tensor, b: Tensor, from_a: Tensor, from_b: Tensor, grad_a: Tensor, grad_b: Tensor
) -> Tensor:
    """Compute the gradient with respect to a by the kernel, through ``launch``."""
    M, P, _ = a.shape
    grad = torch.empty_like(a)
    blocks = _backend.blocks_for(M * P, _THREADS)
    arguments = (a, b, from_a, from_b, grad_a, grad_b, grad, M, P, b.shape[1])
    launch("chamfer", "nearest_backward", blocks, _THREADS, arguments, {"THREADS": _THREADS})
    return grad


@operator("chamfer")
def _chamfer(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    M, P, _ = a.shape
    Q = b.shape[1]
    first, second = a.detach().numpy(), b.detach().numpy()
    a_to_b, from_a = a.new_empty(M, P), a.new_empty(M, P, dtype=torch.int32)
    b_to_a, from_b = a.new_empty(M, Q), a.new_empty(M, Q, dtype=torch.int32)
    for_each(M, _twin, first, second, a_to_b.numpy(), from_a.numpy())
    for_each(M, _twin, second, first, b_to_a.numpy(), from_b.numpy())
    return a_to_b, b_to_a, from_a, from_b


@_chamfer.register_kernel("cuda")
def _(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a_to_b, from_a = nearest_on(_backend.launch, a, b)
    b_to_a, from_b = nearest_on(_backend.launch, b, a)
    return a_to_b, b_to_a, from_a, from_b


@_chamfer.register_fake
def _(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a_shape, b_shape = a.shape[:2], b.shape[:2]
    i32 = torch.int32
    return a.new_empty(a_shape), a.new_empty(b_shape), a.new_empty(a_shape, dtype=i32), a.new_empty(b_shape, dtype=i32)


@operator("chamfer_backward")
def _chamfer_backward(
    a: Tensor, b: Tensor, from_a: Tensor, from_b: Tensor, grad_a_to_b: Tensor, grad_b_to_a: Tensor
) -> tuple[Tensor, Tensor]:
    grad_a, grad_b = torch.empty_like(a), torch.empty_like(b)
    tensors = (a, b, from_a, from_b, grad_a_to_b, grad_b_to_a)
    first, second, i, j, g, h = (tensor.detach().numpy() for tensor in tensors)
    for_each(a.shape[0], _twin_backward, first, second, i, j, g, h, grad_a.numpy())
    for_each(a.shape[0], _twin_backward, second, first, j, i, h, g, grad_b.numpy())
    return grad_a, grad_b


@_chamfer_backward.register_kernel("cuda")
def _(
    a: Tensor, b: Tensor, from_a: Tensor, from_b: Tensor, grad_a_to_b: Tensor, grad_b_to_a: Tensor
) -> tuple[Tensor, Tensor]:
    return (
        nearest_backward_on(_backend.launch, a, b, from_a, from_b, grad_a_to_b, grad_b_to_a),
        nearest_backward_on(_backend.launch, b, a, from_b, from_a, grad_b_to_a, grad_a_to_b),
    )


@_chamfer_backward.register_fake
def _(
    a: Tensor, b: Tensor, from_a: Tensor, from_b: Tensor, grad_a_to_b: Tensor, grad_b_to_a: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(b)


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
    # The chosen pairs are kept, so that the gradient needs no second search.
    _, _, from_a, from_b = output
    ctx.mark_non_differentiable(from_a, from_b)
    ctx.save_for_backward(*inputs, from_a, from_b)


def _backward(ctx: Any, grad_a_to_b: Tensor, grad_b_to_a: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    # The gradient of a sum is expanded (stride 0), and the kernels index contiguous memory.
    return _chamfer_backward(*ctx.saved_tensors, grad_a_to_b.contiguous(), grad_b_to_a.contiguous())


_chamfer.register_autograd(_backward, setup_context=_keep_for_backward)
