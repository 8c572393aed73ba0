"""Features of the teacher in the channels of a cache's basis."""

import torch
from torch import Tensor

from teacher_cache.format.basis import Basis

__all__ = ["in_basis"]


def in_basis(features: Tensor, basis: Basis) -> Tensor:
    """Project the teacher's features [..., F] float32 onto a cache's basis, [..., C], on their device."""
    mean, components = (torch.from_numpy(array).to(features.device) for array in (basis.mean, basis.components))
    return (features - mean) @ components.T
