"""The teacher's saliency at tokens' centres."""

from torch import Tensor

from cuda.backproject import backproject
from cuda.token_maps import TokenMaps

__all__ = ["top_saliency"]


def top_saliency(maps: TokenMaps, centres_canonical: Tensor) -> Tensor:
    """Look up the teacher's attention at centres [B, G, 3], mean over views, [B, G] float32."""
    at = backproject(maps.saliency[..., None], centres_canonical, maps.geometry, image_side=maps.image_side)
    return at[..., 0].mean(2)
