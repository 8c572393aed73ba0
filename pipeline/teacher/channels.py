"""Features of the teacher in the channels of a cache's basis."""

import torch
from torch import Tensor

from teacher_cache.format.basis import Basis

__all__ = ["in_basis"]


def in_basis(features: Tensor, basis: Basis) -> Tensor:
    """Features of the teacher [..., F] float32 -> as a cache with this basis stores them, [..., C], on their device."""
    mean, components = (torch.from_numpy(array).to(features.device) for array in (basis.mean, basis.components))
    return (features - mean) @ components.T
