"""Pictures of shapes for people: each cloud as small shaded discs seen from the front, above and to one side, many on
one sheet.

Nothing here is part of the method; the views that the teacher sees are made in ``pipeline.views``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.corpora.base import Shape
from pipeline.corpora.check import normalise

__all__ = ["contact_sheet", "render_cloud"]

Colour = Literal["part", "height", "depth"]

AZIMUTH, ELEVATION = np.radians(35.0), np.radians(22.0)  # the camera stands to the right of the front and above
SUPERSAMPLE = 2  # rendered this much larger, then averaged
SHADE = 6.0  # strength of the dark outline where depth changes, per unit of depth
PALETTE = np.array(  # parts, far apart in hue and readable in print
    [(78, 121, 167), (242, 142, 43), (89, 161, 79), (225, 87, 89), (118, 183, 178), (237, 201, 72), (176, 122, 161)],
    float,
)
RAMP = np.array(
    [(46, 52, 120), (42, 120, 160), (60, 170, 130), (190, 200, 80), (250, 180, 60), (220, 80, 60)], float
)  # low to high


def render_cloud(
    points: np.ndarray, colours: np.ndarray, *, side: int = 180, up: Literal["y", "z"] = "z"
) -> np.ndarray:
    """Draw one cloud: discs with hidden points removed, dark at depth edges (eye-dome lighting, Boucheny 2009), on
    white.

    points   [N, 3] float, finite; brought to the unit sphere first
    colours  [N, 3] float in 0..255
    up       which axis is vertical; with z the front looks along -y (ModelNet), with y along +z
    ->       [side, side, 3] uint8
    """
    cloud = normalise(points).astype(np.float64)
    if up == "y":
        cloud = cloud[:, [0, 2, 1]] * [1, -1, 1]
    x, y, z = cloud.T
    # Camera axes: to the right, up, and away from the camera.
    right = np.cos(AZIMUTH) * x + np.sin(AZIMUTH) * y
    away = -np.sin(AZIMUTH) * x + np.cos(AZIMUTH) * y
    height = np.cos(ELEVATION) * z + np.sin(ELEVATION) * away
    depth = np.cos(ELEVATION) * away - np.sin(ELEVATION) * z
    span = max(float(np.ptp(right)), float(np.ptp(height)))
    S = side * SUPERSAMPLE
    zoom = 0.88 * S / span
    column = (right - (right.max() + right.min()) / 2) * zoom + S / 2
    row = S / 2 - (height - (height.max() + height.min()) / 2) * zoom
    radius = float(np.clip(0.7 * S / np.sqrt(len(cloud)), 1.5, S / 20))
    return _shade(*_splat(column, row, depth, colours, radius, S), S)


def contact_sheet(
    shapes: Sequence[Shape],
    path: str | Path,
    *,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    side: int = 180,
    colour: Colour = "part",
    up: Literal["y", "z"] = "z",
) -> Path:
    """Draw shapes row by row on one PNG with a title over each.

    titles   one a shape; the shapes' ids when absent
    colour   "part" (falls to height for shapes without part labels), "height" along the vertical axis, or "depth" along
             the front axis
    ->       the path written

    Raises ValueError for no shapes or another number of titles.
    """
    if not shapes:
        raise ValueError("no shapes to draw; expected at least one")
    names = [shape.id for shape in shapes] if titles is None else list(titles)
    if len(names) != len(shapes):
        raise ValueError(f"{len(names)} titles for {len(shapes)} shapes; expected one per shape")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(shapes))
    rows = -(-len(shapes) // columns)
    dpi, band = 100, 20  # pixels an inch; height of a title in pixels
    width, height = columns * side, rows * (side + band)
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    for k, (shape, name) in enumerate(zip(shapes, names, strict=True)):
        row, column = divmod(k, columns)
        bottom = 1 - ((row + 1) * (side + band)) / height
        axes = figure.add_axes((column * side / width, bottom, side / width, side / height))
        axes.imshow(render_cloud(shape.points, _colours(shape, colour, up), side=side, up=up), interpolation="nearest")
        axes.set_axis_off()
        shown = name if len(name) * 5.2 <= side else "…" + name[-int(side / 5.2) + 1 :]
        figure.text(
            (column + 0.5) * side / width,
            bottom + (side + 4) / height,
            shown,
            ha="center",
            va="bottom",
            fontsize=7,
            color="0.25",
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": ""})
    return path


def _colours(shape: Shape, colour: Colour, up: str) -> np.ndarray:
    if colour == "part" and shape.part_labels is not None:
        labels = shape.part_labels.astype(int)
        return PALETTE[(labels - labels.min()) % len(PALETTE)]
    vertical = 2 if up == "z" else 1
    value = shape.points[:, 3 - vertical if colour == "depth" else vertical].astype(np.float64)
    share = (value - value.min()) / max(float(np.ptp(value)), 1e-12) * (len(RAMP) - 1)
    return np.stack([np.interp(share, np.arange(len(RAMP)), RAMP[:, k]) for k in range(3)], axis=-1)


def _splat(
    column: np.ndarray, row: np.ndarray, depth: np.ndarray, colours: np.ndarray, radius: float, S: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest disc in each pixel: its depth [S, S] (inf where empty) and its colour [S, S, 3]."""
    reach = int(np.ceil(radius))
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    inside = dx * dx + dy * dy <= radius * radius
    i = row.astype(int)[:, None] + dy[inside]
    j = column.astype(int)[:, None] + dx[inside]
    on = (i >= 0) & (i < S) & (j >= 0) & (j < S)
    pixel = (i * S + j)[on]
    point = np.broadcast_to(np.arange(len(depth))[:, None], i.shape)[on]
    order = np.argsort(-depth[point], kind="stable")  # far to near: the last writer of a pixel is the nearest
    nearest = np.full(S * S, -1)
    nearest[pixel[order]] = point[order]
    empty = nearest < 0
    z = np.where(empty, np.inf, depth[nearest])
    image = np.where(empty[:, None], 255.0, colours[nearest])
    return z.reshape(S, S), image.reshape(S, S, 3)


def _shade(z: np.ndarray, image: np.ndarray, S: int) -> np.ndarray:
    """Darken pixels that lie behind their neighbours, then average down."""
    filled = np.where(np.isinf(z), np.nanmax(np.where(np.isinf(z), np.nan, z)) + 0.3, z)
    hidden = np.zeros_like(z)
    reach = 2 * SUPERSAMPLE
    for dy, dx in (
        (0, reach),
        (0, -reach),
        (reach, 0),
        (-reach, 0),
        (reach, reach),
        (-reach, -reach),
        (reach, -reach),
        (-reach, reach),
    ):
        hidden += np.clip(filled - np.roll(filled, (dy, dx), axis=(0, 1)), 0, 0.15)
    light = np.exp(-SHADE * hidden / 2)
    low, high = filled.min(), filled.max()
    fog = 1.08 - 0.3 * (filled - low) / max(high - low, 1e-12)  # nearer is brighter
    lit = np.where(np.isinf(z)[..., None], 255.0, np.clip(image * (light * fog)[..., None], 0, 255))
    side = S // SUPERSAMPLE
    return lit.reshape(side, SUPERSAMPLE, side, SUPERSAMPLE, 3).mean(axis=(1, 3)).round().astype(np.uint8)
