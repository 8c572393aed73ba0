"""Local attention: a mask of the tokens of a level that are within a radius of each other."""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["within_radius"]

_CDIST_MODE = {"direct": "donot_use_mm_for_euclid_dist", "expanded": "use_mm_for_euclid_dist_if_necessary"}


@torch.no_grad()
def within_radius(centres: Tensor, radius: float, *, distance: Literal["direct", "expanded"]) -> Tensor:
    """Find the pairs of tokens nearer than a radius.

    centres   [B, G, 3] float32.
    radius    the bound, excluded; in the centres' units.
    distance  "direct": differences first. "expanded": torch.cdist's own choice, which above 25 tokens is
              |a|^2 + |b|^2 - 2ab by a matrix product. On the unit sphere that is off by 1e-7 at usual radii, and by up
              to 4e-4 between centres that coincide (measured on recorded clouds).
    ->        [B, 1, G, G] bool, symmetric up to that rounding; a token is always near itself, whatever the radius.

    Source: Point-M2AE (Zhang et al. 2022), 3.4, "local spatial self-attention".
    """
    near = torch.cdist(centres, centres, compute_mode=_CDIST_MODE[distance]) < radius  # [B, G, G]
    near.diagonal(dim1=1, dim2=2).fill_(True)  # softmax over no token at all is not defined
    return near[:, None]
