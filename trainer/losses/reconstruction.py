"""The losses of tokens, as sums: coordinates of hidden neighbourhoods, and the teacher's features of visible ones."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cuda.chamfer import chamfer

__all__ = ["chamfer_root_sum", "chamfer_sum", "squared_error_sum"]


def chamfer_sum(predicted: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Sum squared Chamfer distances, both ways, [] float32.

    predicted, target  [M, K, 3] any float dtype; compared in float32.
    weight             [M] float32 zeros and ones, or None for all ones.
    """
    # float32 under autocast too: differences of nearby points cancel in half precision.
    forth, back = chamfer(predicted.float(), target.float())
    both = forth + back  # [M, K]
    return both.sum() if weight is None else (both.sum(1) * weight).sum()


def chamfer_root_sum(predicted: Tensor, target: Tensor) -> Tensor:
    """Sum Chamfer distances, not squared, half of each way, [] float32: Point-MAE's "cdl1".

    predicted, target  [M, K, 3] any float dtype; compared in float32.
    """
    forth, back = chamfer(predicted.float(), target.float())
    tiny = torch.finfo(torch.float32).tiny  # a root has no gradient at 0
    return (forth.clamp(min=tiny).sqrt() + back.clamp(min=tiny).sqrt()).sum() / 2


def squared_error_sum(predicted: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Sum squared differences, [] float32.

    predicted, target  [M, D] any float dtype; compared in float32.
    weight             [M] float32 zeros and ones, or None for all ones.
    """
    if weight is None:
        return F.mse_loss(predicted.float(), target.float(), reduction="sum")
    return (torch.square(predicted.float() - target.float()).sum(1) * weight).sum()
