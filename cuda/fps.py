"""Farthest point sampling."""

import torch
from torch import Tensor

from cuda import _backend
from cuda._check import check_clouds, check_count
from cuda._operator import operator
from cuda.twins.fps import fps as _twin

__all__ = ["farthest_point_sample"]

_THREADS = (64, 128, 256, 512, 1024)  # of the one block a cloud has
_FEW_POINTS = 4  # a thread: a larger block before more of them, since a sample's cost is mostly latency
_MOST_POINTS = 8  # a thread, in registers (four numbers each, and no spills)


def farthest_point_sample(points: Tensor, k: int, *, skip_near_origin: bool = False) -> Tensor:
    """Choose k points of each cloud, each farthest from those already chosen.

    points  [B, N, 3] float32, finite, any scale.
    k       1..N.
    skip_near_origin
            the reference's rule: a point whose squared norm is <= 1e-3 is never chosen, except point 0 as the start.
            When no other point is left, index 0 repeats, as it does there.
    ->      [B, k] int64 into axis N. idx[:, 0] == 0. Ties go to the lowest index; asking for more only appends.

    Raises TypeError for a dtype, ValueError for a shape or k. Source: PointNet++ (Qi et al. 2017), 3.2.
    O(N k) per cloud at worst.
    """
    check_clouds("farthest_point_sample", "points", points)
    check_count("farthest_point_sample", "k", k, limit=points.shape[1], limit_name="points in a cloud")
    return _fps(points.contiguous(), k, skip_near_origin)


def fps_on(
    launch: _backend.Launch, points: Tensor, k: int, skip_near_origin: bool, *, registers: bool = True
) -> Tensor:
    """Compute idx [B, k] int32 by the kernel, through ``launch``.

    ``registers=False`` takes the kernel's path for clouds of any size.
    """
    B, N, _ = points.shape
    threads = next((size for size in _THREADS if size * _FEW_POINTS >= N), _THREADS[-1])
    per_thread = -(-N // threads)
    if not registers or per_thread > _MOST_POINTS:
        per_thread = 0
    idx = points.new_empty(B, k, dtype=torch.int32)
    best = points.new_empty(0 if per_thread else B * N)
    defines = {"THREADS": threads, "PER_THREAD": per_thread}
    launch("fps", "fps", B, threads, (points, idx, best, N, k, int(skip_near_origin)), defines)
    return idx


@operator("fps")
def _fps(points: Tensor, k: int, skip_near_origin: bool) -> Tensor:
    B, _, _ = points.shape
    idx = points.new_empty(B, k, dtype=torch.int32)
    _twin(points.detach().numpy(), k, skip_near_origin, idx.numpy())
    return idx.long()


@_fps.register_kernel("cuda")
def _(points: Tensor, k: int, skip_near_origin: bool) -> Tensor:
    return fps_on(_backend.launch, points, k, skip_near_origin).long()


@_fps.register_fake
def _(points: Tensor, k: int, skip_near_origin: bool) -> Tensor:
    return points.new_empty(points.shape[0], k, dtype=torch.int64)
