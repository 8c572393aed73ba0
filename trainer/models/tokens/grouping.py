"""Groups of a cloud at every level: centres by farthest point sampling, members by nearest neighbours.

All of it is geometry: float32, no gradient, exact indices.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cuda.fps import farthest_point_sample
from cuda.gather import gather, group
from cuda.knn import knn
from trainer.models.config import ModelConfig

__all__ = ["Level", "gather", "neighbourhoods", "tokenise"]


class Level(NamedTuple):
    """The groups of one level.

    centres  [B, G, 3] float32
    members  [B, G, K] int64, each group's neighbours, nearest first, into the centres of the level below (level 0:
             into the cloud's points)
    """

    centres: Tensor
    members: Tensor


@torch.no_grad()
def tokenise(points: Tensor, config: ModelConfig) -> tuple[list[Level], Tensor]:
    """Group a cloud at every level, finest first.

    points  [B, N, 3] float32, N at least groups[0] and neighbours[0].
    ->      the levels, and the centres' points: [B, groups[0]] int64 into axis N. The centres of level l are the first
            groups[l] of these, because greedy sampling from the first point, run over its own result, returns a prefix
            of it (with the near-origin rule too: it only ever excludes points that are not in the result).

    Raises ValueError where the cloud has too few points. Source: Point-M2AE (Zhang et al. 2022), 3.1.
    """
    chosen = farthest_point_sample(points, config.groups[0], skip_near_origin=config.fps_skip_near_origin)
    finest = gather(points, chosen)  # [B, G, 3]
    levels: list[Level] = []
    below = points
    for groups, k in zip(config.groups, config.neighbours, strict=True):
        centres = finest[:, :groups]
        members = knn(below, centres, k)[1]
        levels.append(Level(centres, members))
        below = centres
    return levels, chosen


def neighbourhoods(below: Tensor, level: Level) -> Tensor:
    """Compute the members' coordinates relative to their group's centre.

    below  [B, N, 3] float32, the centres of the level below (level 0: the cloud).
    ->     [B, G, K, 3] float32.
    """
    return group(below, level.centres, level.members)
