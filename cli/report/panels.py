"""Small pictures of one shape for reports, each as a PNG and, where it is a cloud, as points that the page can turn."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cli.show.clouds import render_points
from cli.show.pictures import depth_image, heights, saliency_image
from trainer.downstream.inspection import SeenShape, principal_axes

__all__ = ["Panel", "cloud_panel", "image_panel", "shape_panels"]

SIDE = 168  # pixels of a cloud's picture
FAINT, SEEN, HIDDEN = (150.0, 156.0, 166.0), (43.0, 131.0, 214.0), (226.0, 122.0, 40.0)
SMALL = 0.45  # of the usual size of a disc


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture.

    key      a word for the file's name
    title    under the picture; may hold foreign names, which the page escapes
    png      its bytes
    cloud    of a turnable one: the JSON value that page.js draws; None for a flat picture
    mark     "right" or "wrong" where the picture is an answer
    """

    key: str
    title: str
    png: bytes
    cloud: dict[str, Any] | None = None
    mark: str = ""

    @property
    def uri(self) -> str:
        """The picture as a data: URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def image_panel(key: str, title: str, image: np.ndarray) -> Panel:
    """Wrap an image [h, w, 4] uint8."""
    return Panel(key=key, title=title, png=_png(image))


def cloud_panel(
    key: str,
    title: str,
    points: np.ndarray,
    colours: np.ndarray | Sequence[float],
    *,
    within: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    up: Literal["y", "z"] = "z",
    mark: str = "",
    turnable: bool = True,
    side: int = SIDE,
) -> Panel:
    """Draw points [N, 3] in colours [N, 3] or [3] in 0..255; `within` and `sizes` as `render_points` has them."""
    colours = np.broadcast_to(np.asarray(colours, np.float64), (len(points), 3))
    image = render_points(points, colours, side=side, up=up, within=within, sizes=sizes)
    frame = points if within is None else within
    cloud = _turnable(points, colours, frame, sizes, up) if turnable else None
    return Panel(key=key, title=title, png=_png(image), cloud=cloud, mark=mark)


def shape_panels(shape: SeenShape, up: Literal["y", "z"] = "z") -> list[list[Panel]]:
    """Draw all that is to be seen of a shape in two rows: the teacher's views; tokens, reconstruction and features.

    Colours of features are the principal axes of the teacher's at the shape's own points, for teacher and student.
    """
    cloud = shape.points
    first = [cloud_panel("cloud", "the cloud", cloud, heights(cloud), up=up)]
    for view, saliency in enumerate(shape.saliency):
        depth = None if shape.depth is None else np.asarray(shape.depth[view], np.float32)
        if depth is not None:
            first.append(image_panel(f"depth-{view}", f"depth, view {view}", depth_image(depth)))
        first.append(image_panel(f"saliency-{view}", f"saliency, view {view}", saliency_image(saliency, depth)))
    return [first, [*_level_panels(shape, up), *_group_panels(shape, up), *_feature_panels(shape, up)]]


def _level_panels(shape: SeenShape, up: Any) -> list[Panel]:
    panels = []
    for number, level in enumerate(shape.levels or ()):
        colours = np.where(level.visible[:, None], SEEN, HIDDEN)
        panels.append(
            _with_cloud(
                f"level-{number}",
                f"level {number}: {int(level.visible.sum())} of {len(level.visible)} tokens visible",
                shape.points,
                level.centres,
                colours,
                up,
            )
        )
    return panels


def _group_panels(shape: SeenShape, up: Any) -> list[Panel]:
    if shape.groups is None:
        return []
    # Beside what the student saw, not over the whole cloud, which would show the answer.
    seen = np.zeros((0, 3), np.float32) if not shape.levels else shape.levels[0].centres[shape.levels[0].visible]
    panels = []
    for key, title, groups in (
        ("truth", "hidden groups, truth", shape.groups.truth),
        ("reconstruction", "reconstructed", shape.groups.predicted),
    ):
        hidden = groups.reshape(-1, 3)
        points = np.concatenate((seen, hidden))
        colours = np.concatenate((np.full((len(seen), 3), SEEN), np.full((len(hidden), 3), HIDDEN)))
        sizes = np.concatenate((np.full(len(seen), 1.0), np.full(len(hidden), 0.7)))
        panels.append(cloud_panel(key, title, points, colours, within=shape.points, sizes=sizes, up=up))
    return panels


def _feature_panels(shape: SeenShape, up: Any) -> list[Panel]:
    axes = principal_axes(shape.teacher)
    everywhere = 255 * axes.colours(shape.teacher)
    panels = [cloud_panel("teacher", "teacher's features", shape.points, everywhere, up=up)]
    if shape.features is not None:
        found = shape.features
        for key, title, values in (
            ("teacher-visible", "teacher's, at visible points", found.truth),
            ("student", "student's prediction there", found.predicted),
        ):
            panels.append(_with_cloud(key, title, shape.points, found.points, 255 * axes.colours(values), up))
    return panels


def _with_cloud(
    key: str, title: str, cloud: np.ndarray, points: np.ndarray, colours: np.ndarray, up: Literal["y", "z"]
) -> Panel:
    """Large points amid the whole cloud, small and grey."""
    large = float(np.clip(np.sqrt(len(cloud) / max(len(points), 1)) * 0.6, 0.9, 2.2))
    both = np.concatenate((cloud, points))
    shades = np.concatenate((np.full((len(cloud), 3), FAINT), colours))
    sizes = np.concatenate((np.full(len(cloud), SMALL), np.full(len(points), large)))
    return cloud_panel(key, title, both, shades, within=cloud, sizes=sizes, up=up)


def _turnable(
    points: np.ndarray, colours: np.ndarray, frame: np.ndarray, sizes: np.ndarray | None, up: str
) -> dict[str, Any]:
    """Points as page.js draws them: 16 bits a coordinate within `span` around the frame's middle, 8 bits a colour."""
    frame = np.asarray(frame, np.float64)
    centre = frame.mean(axis=0)
    scale = float(np.linalg.norm(frame - centre, axis=1).max()) or 1.0
    placed = (np.asarray(points, np.float64) - centre) / scale
    if up == "y":
        placed = placed[:, [0, 2, 1]] * [1, -1, 1]
    span = max(float(np.abs(placed).max(initial=0.0)), 1.0)
    coordinates = ((placed / span + 1) / 2 * 65535).round().astype("<u2")
    radii = np.full(len(points), 1.0) if sizes is None else np.asarray(sizes)
    return {
        "n": len(points),
        "span": span,
        "size": float(np.clip(0.5 / np.sqrt(max(len(frame), 1)), 0.005, 0.025)),
        "p": _text(coordinates),
        "c": _text(np.clip(colours, 0, 255).round().astype(np.uint8)),
        "s": _text(np.clip(radii * 32, 1, 255).round().astype(np.uint8)),
    }


def _text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _png(image: np.ndarray) -> bytes:
    from matplotlib.image import imsave

    drawn = io.BytesIO()
    imsave(drawn, image, format="png", metadata={"Software": ""})
    return drawn.getvalue()
