"""Exact k-nearest-neighbour search."""

import torch
from torch import Tensor

from cuda import _backend
from cuda._check import check_clouds, check_count, check_same_batch
from cuda._operator import operator
from cuda.twins.knn import knn as _twin

__all__ = ["MAX_NEIGHBOURS", "knn"]

MAX_NEIGHBOURS = 64

_WARPS = 8  # a block: so many queries share the points it loads


def knn(points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k points of its cloud nearest to each query.

    points   [B, N, 3] float32, finite, squared distances below float32's largest.
    queries  [B, M, 3] float32, M may be 0.
    k        1..min(N, 64).
    ->       dist2 [B, M, k] float32 squared distances, ascending; idx [B, M, k] int64 into axis N. Ties go to the
             lowest index. Differences are taken before squaring, so no distance is negative. No gradient.

    Raises TypeError for a dtype, ValueError for a shape or k. O(N M) per cloud.
    """
    check_clouds("knn", "points", points)
    check_clouds("knn", "queries", queries, may_be_empty=True)
    check_same_batch("knn", "points", points, "queries", queries)
    check_count("knn", "k", k, limit=points.shape[1], limit_name="points in a cloud")
    check_count("knn", "k", k, limit=MAX_NEIGHBOURS, limit_name="the most this kernel keeps")
    return _knn(points.contiguous(), queries.contiguous(), k)


def knn_on(launch: _backend.Launch, points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Compute dist2 [B, M, k] f32 and idx [B, M, k] i32 by the kernel, through ``launch``."""
    B, M, _ = queries.shape
    dist2, idx = queries.new_empty(B, M, k), queries.new_empty(B, M, k, dtype=torch.int32)
    arguments = (points, queries, dist2, idx, points.shape[1], M, k)
    launch("knn", "knn", B * _backend.blocks_for(M, _WARPS), 32 * _WARPS, arguments, {"WARPS": _WARPS})
    return dist2, idx


@operator("knn")
def _knn(points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    B, M, _ = queries.shape
    dist2, idx = queries.new_empty(B, M, k), queries.new_empty(B, M, k, dtype=torch.int32)
    _twin(points.detach().numpy(), queries.detach().numpy(), k, dist2.numpy(), idx.numpy())
    return dist2, idx.long()


@_knn.register_kernel("cuda")
def _(points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    dist2, idx = knn_on(_backend.launch, points, queries, k)
    return dist2, idx.long()


@_knn.register_fake
def _(points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    B, M, _ = queries.shape
    return queries.new_empty(B, M, k), queries.new_empty(B, M, k, dtype=torch.int64)
