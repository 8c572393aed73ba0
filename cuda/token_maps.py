"""A batch of patch-token maps with its view geometry: what a cache or a live teacher hands to the student."""

from typing import NamedTuple

import torch
from torch import Tensor

from cuda.geometry import ViewGeometry

__all__ = ["TokenMaps"]


class TokenMaps(NamedTuple):
    """Teacher features and saliency of B shapes in V views, and the geometry that maps points to pixels.

    features    [B, V, T, C] float16, bfloat16 or float32, T = side * side patch tokens, row-major
    saliency    [B, V, T] float32, the class token's attention to each patch
    geometry    of the views, in the canonical frame
    image_side  S, pixels along an image's side
    """

    features: Tensor
    saliency: Tensor
    geometry: ViewGeometry
    image_side: int

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "TokenMaps":
        """Return the same maps on another device."""
        return self._replace(
            features=self.features.to(device, non_blocking=non_blocking),
            saliency=self.saliency.to(device, non_blocking=non_blocking),
            geometry=ViewGeometry(*(part.to(device, non_blocking=non_blocking) for part in self.geometry)),
        )
