"""Plain torch in place of the compiled extensions that the official implementation imports, where they are missing.

Each has the interface of what it stands for, as far as pre-training calls it. They are not fast, and need not be: they
take about a hundredth of the official step on a CPU, for which the extensions have no code.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor, nn

__all__ = [
    "KNN",
    "chamfer_backward",
    "chamfer_forward",
    "furthest_point_sample",
    "gather_operation",
    "put_in_place",
    "scatter",
    "without_gpu",
]


def furthest_point_sample(points: Tensor, k: int) -> Tensor:
    """``pointnet2_ops``: points [B, N, 3] -> [B, k] int32; points of squared norm <= 1e-3 are never chosen."""
    B, _, _ = points.shape
    norm2 = points.square().sum(-1)
    best = torch.full_like(norm2, float("inf")).masked_fill_(norm2.double() <= 1e-3, -1)
    idx = torch.zeros(B, k, dtype=torch.int32)
    rows = torch.arange(B)
    for j in range(1, k):
        last = points[rows, idx[:, j - 1].long(), None]
        best = torch.minimum(best, (points - last).square().sum(-1))
        idx[:, j] = best.argmax(-1)
    return idx


def gather_operation(features: Tensor, idx: Tensor) -> Tensor:
    """``pointnet2_ops``: features [B, C, N] at idx [B, M] -> [B, C, M]."""
    return features.gather(2, idx.long()[:, None].expand(-1, features.shape[1], -1))


class KNN(nn.Module):
    """``knn_cuda``: points [B, N, 3], queries [B, M, 3] -> distances and int64 indices [B, M, k], ascending."""

    def __init__(self, k: int, transpose_mode: bool = False) -> None:
        super().__init__()
        if not transpose_mode:
            raise ValueError("this stand-in for knn_cuda takes points [B, N, 3] only: transpose_mode=True")
        self.k = k

    def forward(self, points: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            found = torch.cdist(queries, points).topk(self.k, largest=False)
        return found.values, found.indices


def chamfer_forward(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``chamfer``: a [B, N, 3], b [B, M, 3] -> squared distances to the nearest, and its int32 index, of each."""
    every = (a[:, :, None] - b[:, None]).square().sum(-1)
    to_b, to_a = every.min(2), every.min(1)
    return to_b.values, to_a.values, to_b.indices.int(), to_a.indices.int()


def chamfer_backward(
    a: Tensor, b: Tensor, in_b: Tensor, in_a: Tensor, grad_a: Tensor, grad_b: Tensor
) -> tuple[Tensor, Tensor]:
    """``chamfer``: the gradients of both clouds from those of both distances."""
    in_b, in_a = (idx.long()[..., None].expand(-1, -1, 3) for idx in (in_b, in_a))
    from_a = 2 * grad_a[..., None] * (a - b.gather(1, in_b))
    from_b = 2 * grad_b[..., None] * (b - a.gather(1, in_a))
    return from_a.scatter_add(1, in_a, -from_b), from_b.scatter_add(1, in_b, -from_a)


def scatter(values: Tensor, idx: Tensor, dim: int, reduce: str) -> Tensor:
    """``torch_scatter``: sums of values [B, P, C] by idx [B, P] -> [B, largest idx + 1, C]."""
    if (dim, reduce) != (1, "sum"):
        raise ValueError(f"this stand-in for torch_scatter sums along axis 1 only; got axis {dim}, {reduce!r}")
    B, _, C = values.shape
    sums = values.new_zeros(B, int(idx.max()) + 1, C)
    return sums.scatter_add_(1, idx[..., None].expand_as(values), values)


def _packaging() -> ModuleType:
    import packaging.version

    return packaging


MODULES: dict[str, Callable[[], dict[str, object]]] = {
    "pointnet2_ops.pointnet2_utils": lambda: {
        "furthest_point_sample": furthest_point_sample,
        "gather_operation": gather_operation,
    },
    "knn_cuda": lambda: {"KNN": KNN},
    "chamfer": lambda: {"forward": chamfer_forward, "backward": chamfer_backward},
    "torch_scatter": lambda: {"scatter": scatter},
    "pkg_resources": lambda: {"packaging": _packaging()},  # no longer part of setuptools
}


@contextmanager
def put_in_place() -> Iterator[list[str]]:
    """Put a stand-in for each of these modules that is not installed; -> their names. They are gone afterwards."""
    missing = [name for name in MODULES if importlib.util.find_spec(name.partition(".")[0]) is None]
    modules: dict[str, ModuleType] = {}
    for name in missing:
        modules[name] = ModuleType(name)
        vars(modules[name]).update(MODULES[name]())
        package, _, inner = name.rpartition(".")
        if package:
            modules[package] = ModuleType(package)
            setattr(modules[package], inner, modules[name])
    with mock.patch.dict(sys.modules, modules):
        yield missing


@contextmanager
def without_gpu() -> Iterator[None]:
    """``.cuda()`` of tensors and modules returns them as they are."""
    with (
        mock.patch.object(Tensor, "cuda", lambda self, *_, **__: self),
        mock.patch.object(nn.Module, "cuda", lambda self, *_, **__: self),
    ):
        yield
