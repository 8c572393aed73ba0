"""View geometry of a cloud: fixed by projection, needed by every later pixel lookup."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["PLANE_MARGIN", "VIEW_AXES", "ViewGeometry"]

VIEW_AXES = ((0, 1, 2), (2, 0, 1), (1, 2, 0))
"""View v sees ``points[..., VIEW_AXES[v]]``: pixel row, pixel column, depth."""

PLANE_MARGIN = 3
"""The longer plane axis spans ``image_side - PLANE_MARGIN`` cells, which leaves room for a splat of 5 but one pixel."""


class ViewGeometry(NamedTuple):
    """The pixel grid of each view of each cloud.

    lo      [B, V, 2] float32  least plane coordinates (row, column) of the cloud's points.
    cell    [B, V]    float32  plane units per pixel; 1 where a view has no extent, so nothing divides by zero.
    offset  [B, V, 2] int32    centring offset (row, column), in pixels.

    The pixel of point p in view v is ``floor((p_plane - lo) / cell) + 1 + offset`` in float32, in that order.
    """

    lo: Tensor
    cell: Tensor
    offset: Tensor
