"""Pictures of shapes for people: each cloud as small shaded discs seen from the front, above and to one side, many on
one sheet.

Nothing here is part of the method; the views that the teacher sees are made in ``pipeline.views``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.corpora.base import Shape

__all__ = ["RAMP", "contact_sheet", "ramp", "render_cloud", "render_points"]

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
    clear = render_points(points, colours, side=side, up=up)
    alpha = clear[:, :, 3:].astype(np.float64) / 255
    return (clear[:, :, :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def render_points(
    points: np.ndarray,
    colours: np.ndarray,
    *,
    side: int = 180,
    up: Literal["y", "z"] = "z",
    sizes: np.ndarray | None = None,
    within: np.ndarray | None = None,
) -> np.ndarray:
    """Draw points as `render_cloud` does, on nothing.

    sizes   [N] float, each disc's radius as a multiple of the usual one; None: 1
    within  [M, 3] the cloud that sets position, scale and the usual radius, so that pictures of its parts fit onto each
            other; None: the points themselves. What lies beyond it is cut off at the picture's edge
    ->      [side, side, 4] uint8, red, green, blue (not multiplied by alpha), alpha
    """
    frame = np.asarray(points if within is None else within, np.float64)
    centre = frame.mean(axis=0)
    scale = np.linalg.norm(frame - centre, axis=1).max()
    if not scale > 0:
        scale = 1.0  # one point, or all in one place
    right, height, depth = _seen((np.asarray(points, np.float64) - centre) / scale, up)
    frame_right, frame_height, _ = _seen((frame - centre) / scale, up)
    span = max(float(np.ptp(frame_right)), float(np.ptp(frame_height))) or 1.0
    S = side * SUPERSAMPLE
    zoom = 0.88 * S / span
    column = (right - (frame_right.max() + frame_right.min()) / 2) * zoom + S / 2
    row = S / 2 - (height - (frame_height.max() + frame_height.min()) / 2) * zoom
    radius = np.clip(0.7 * S / np.sqrt(len(frame)), 1.5, S / 20)
    radii = np.full(len(depth), radius) if sizes is None else np.asarray(sizes, np.float64) * radius
    return _shade(*_splat(column, row, depth, np.asarray(colours, np.float64), radii, S), S)


def _seen(cloud: np.ndarray, up: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn points [N, 3] into the camera's axes: to the right, up, and away from it."""
    if up == "y":
        cloud = cloud[:, [0, 2, 1]] * [1, -1, 1]
    x, y, z = cloud.T
    right = np.cos(AZIMUTH) * x + np.sin(AZIMUTH) * y
    away = -np.sin(AZIMUTH) * x + np.cos(AZIMUTH) * y
    height = np.cos(ELEVATION) * z + np.sin(ELEVATION) * away
    return right, height, np.cos(ELEVATION) * away - np.sin(ELEVATION) * z


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
    return ramp((value - value.min()) / max(float(np.ptp(value)), 1e-12))


def ramp(share: np.ndarray, colours: np.ndarray = RAMP) -> np.ndarray:
    """Turn shares in 0..1 of any shape [...] into colours [..., 3] in 0..255 along a ramp [K, 3]."""
    at = np.clip(share, 0.0, 1.0) * (len(colours) - 1)
    return np.stack([np.interp(at, np.arange(len(colours)), colours[:, k]) for k in range(3)], axis=-1)


def _splat(
    column: np.ndarray, row: np.ndarray, depth: np.ndarray, colours: np.ndarray, radii: np.ndarray, S: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest disc in each pixel: its depth [S, S] (inf where empty) and its colour [S, S, 3]."""
    pixels, points = [], []
    for radius in np.unique(radii).tolist():
        reach = int(np.ceil(radius))
        dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        inside = dx * dx + dy * dy <= radius * radius
        mine = np.flatnonzero(radii == radius)
        i = np.floor(row[mine]).astype(int)[:, None] + dy[inside]
        j = np.floor(column[mine]).astype(int)[:, None] + dx[inside]
        on = (i >= 0) & (i < S) & (j >= 0) & (j < S)
        pixels.append((i * S + j)[on])
        points.append(np.broadcast_to(mine[:, None], i.shape)[on])
    pixel, point = np.concatenate(pixels or [np.zeros(0, int)]), np.concatenate(points or [np.zeros(0, int)])
    order = np.argsort(-depth[point], kind="stable")  # far to near: the last writer of a pixel is the nearest
    nearest = np.full(S * S, -1)
    nearest[pixel[order]] = point[order]
    empty = nearest < 0
    z, image = np.full(S * S, np.inf), np.zeros((S * S, 3))
    z[~empty], image[~empty] = depth[nearest[~empty]], colours[nearest[~empty]]
    return z.reshape(S, S), image.reshape(S, S, 3)


def _shade(z: np.ndarray, image: np.ndarray, S: int) -> np.ndarray:
    """Darken pixels that lie behind their neighbours, then average down: [S, S, 3] -> [side, side, 4] uint8."""
    drawn = ~np.isinf(z)
    low, high = (float(z[drawn].min()), float(z[drawn].max())) if drawn.any() else (0.0, 0.0)
    filled = np.where(drawn, z, high + 0.3)
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
    fog = 1.08 - 0.3 * (filled - low) / max(high + 0.3 - low, 1e-12)  # nearer is brighter
    lit = np.clip(image * (light * fog)[..., None], 0, 255) * drawn[..., None]
    side = S // SUPERSAMPLE
    alpha = drawn.reshape(side, SUPERSAMPLE, side, SUPERSAMPLE).mean(axis=(1, 3))
    colour = lit.reshape(side, SUPERSAMPLE, side, SUPERSAMPLE, 3).mean(axis=(1, 3))
    colour /= np.maximum(alpha, 1e-12)[..., None]
    return np.concatenate((colour, 255 * alpha[..., None]), axis=2).round().clip(0, 255).astype(np.uint8)
