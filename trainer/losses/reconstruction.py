"""The two losses, as sums and counts so that a mean can be taken over more than one process sees.

`LossOutput.total` is the loss of one process. Under data parallelism or gradient accumulation the mean must be over all
masked tokens of the whole batch, not a mean of means: add up `count_3d` and `count_2d` over the parts (they carry no
gradient), and differentiate `normalised(count_3d, count_2d)`, whose sum over the parts is the loss of the whole batch.
(DistributedDataParallel averages gradients over ranks: multiply by the number of ranks before the backward pass.)
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cuda.chamfer import chamfer

__all__ = ["LossOutput", "chamfer_sum", "squared_error_sum"]


class LossOutput(NamedTuple):
    """What a forward pass of the student yields; four scalars, float32.

    sum_3d    squared Chamfer distances, both ways, over every point of every hidden token's neighbourhood
    count_3d  points that sum is over, one way: hidden tokens x K; 0 where the 3D target is off
    sum_2d    squared errors over every predicted number
    count_2d  numbers that sum is over: visible tokens x K x V x C; 0 where the 2D target is off
    """

    sum_3d: Tensor
    count_3d: Tensor
    sum_2d: Tensor
    count_2d: Tensor

    @property
    def loss_3d(self) -> Tensor:
        """Mean Chamfer distance, [] float32: the mean one way plus the mean the other way; 0 where it is off."""
        return self.sum_3d / self.count_3d.clamp(min=1)

    @property
    def loss_2d(self) -> Tensor:
        """Mean squared error, [] float32; 0 where it is off."""
        return self.sum_2d / self.count_2d.clamp(min=1)

    @property
    def total(self) -> Tensor:
        """loss_3d + loss_2d, the loss when this is the whole batch."""
        return self.loss_3d + self.loss_2d

    def normalised(self, count_3d: Tensor, count_2d: Tensor, weight_2d: float = 1.0) -> Tensor:
        """This part's share of the loss of a batch whose counts, over all parts, are the given ones.

        weight_2d  factor of the 2D loss in the sum; the reference adds the two as they are.
        """
        return self.sum_3d / count_3d.clamp(min=1) + weight_2d * self.sum_2d / count_2d.clamp(min=1)


def chamfer_sum(predicted: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Sum of squared Chamfer distances, both ways, [] float32.

    predicted, target  [M, K, 3] any float dtype; compared in float32.
    weight             [M] float32 zeros and ones, or None for all ones.
    """
    forth, back = chamfer(predicted.float(), target.float())
    both = forth + back  # [M, K]
    return both.sum() if weight is None else (both.sum(1) * weight).sum()


def squared_error_sum(predicted: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Sum of squared differences, [] float32.

    predicted, target  [M, D] any float dtype; compared in float32.
    weight             [M] float32 zeros and ones, or None for all ones.
    """
    if weight is None:
        return F.mse_loss(predicted.float(), target.float(), reduction="sum")
    return (torch.square(predicted.float() - target.float()).sum(1) * weight).sum()
