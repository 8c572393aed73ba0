"""Find the patch tokens that no back-projection lookup reads."""

import numpy as np
import torch

from cuda.backproject import bicubic_taps, pixels
from cuda.geometry import ViewGeometry

__all__ = ["untouched_tokens"]


def untouched_tokens(points: np.ndarray, geometry: ViewGeometry, *, image_side: int, side: int) -> np.ndarray:
    """Find the tokens that no point's bicubic window reads.

    points    [B, N, 3] float32, all stored points of each cloud: a lookup happens at some of them, whatever the student
              draws, because its centres are points of the cloud.
    geometry  of the same clouds' projection.
    side      tokens along an edge of a view.
    ->        [B, V, T] bool, T = side * side.

    A window is the 4 x 4 tokens around a point's pixel, clamped at the borders as `backproject` clamps it. Tokens whose
    weight in it happens to be zero count as read.
    """
    pixel = pixels(torch.from_numpy(points), geometry, image_side).numpy()  # [B, V, N, 2]
    first, _ = bicubic_taps(image_side, side)
    taps = (first[pixel][..., None] + np.arange(4)).clip(0, side - 1)  # [B, V, N, 2, 4]
    tokens = taps[..., 0, :, None] * side + taps[..., 1, None, :]  # [B, V, N, 4, 4]
    B, V = pixel.shape[:2]
    untouched = np.ones((B, V, side * side), dtype=bool)
    np.put_along_axis(untouched, tokens.reshape(B, V, -1), False, axis=2)
    return untouched
