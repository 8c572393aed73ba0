"""Teacher maps of a batch as the student reads them, from a cache or from a live teacher."""

from typing import NamedTuple

import torch
from torch import Tensor

from cuda.backproject import backproject
from cuda.geometry import ViewGeometry

__all__ = ["TeacherMaps", "top_saliency"]


class TeacherMaps(NamedTuple):
    """Patch maps of B shapes in V views, and the geometry that maps points to pixels.

    features    [B, V, T, C] float16, bfloat16 or float32, T = side * side patch tokens, row-major
    saliency    [B, V, T] float32, the class token's attention to each patch
    geometry    of the views, in the canonical frame
    image_side  S, pixels along an image's side
    """

    features: Tensor
    saliency: Tensor
    geometry: ViewGeometry
    image_side: int

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "TeacherMaps":
        """Return the same maps on another device."""
        return self._replace(
            features=self.features.to(device, non_blocking=non_blocking),
            saliency=self.saliency.to(device, non_blocking=non_blocking),
            geometry=ViewGeometry(*(part.to(device, non_blocking=non_blocking) for part in self.geometry)),
        )


def top_saliency(maps: TeacherMaps, centres_canonical: Tensor) -> Tensor:
    """Look up the teacher's attention at centres [B, G, 3], mean over views, [B, G] float32."""
    at = backproject(maps.saliency[..., None], centres_canonical, maps.geometry, image_side=maps.image_side)
    return at[..., 0].mean(2)
