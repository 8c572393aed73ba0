"""projection.npz: clouds drawn as images, and the pixel grids."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from benchmarks.parity.compare import UNCOMPARED, Row, merged, missing, same
from benchmarks.parity.recorded import Arrays, Missing, groups_of
from benchmarks.parity.section import Part, Section
from cuda.backproject import pixels
from cuda.geometry import VIEW_AXES, ViewGeometry
from cuda.project import project
from pipeline.views import render_views

__all__ = ["Projection"]


class Drawn(NamedTuple):
    """What we make of some clouds.

    points    [B, N, 3]
    sums      [B, V, S, S], depth before the sigmoid
    depth     [B, V, S, S], after it
    images    [B, V, 3, S, S], normalised
    geometry  grids
    idx       [B, V, N, 2], pixel indices before the border and the centring offset are added
    """

    points: Tensor
    sums: Tensor
    depth: Tensor
    images: Tensor
    geometry: ViewGeometry
    idx: Tensor


# quantity -> tolerance, and our value for one cloud, [V, ...]
_OF_A_CLOUD: Mapping[str, tuple[str, Callable[[Drawn], Tensor]]] = {
    "img": ("projection.img", lambda drawn: drawn.images[0]),
    "sigmoid": ("projection.sigmoid", lambda drawn: drawn.depth[0]),
    "sum": ("projection.sum", lambda drawn: drawn.sums[0]),
    "pc_min": ("exact", lambda drawn: drawn.geometry.lo[0]),
    "grid_size": ("exact", lambda drawn: drawn.geometry.cell[0]),
    "offset_x": ("exact", lambda drawn: drawn.geometry.offset[0, :, 0]),
    "offset_y": ("exact", lambda drawn: drawn.geometry.offset[0, :, 1]),
    "idx": ("exact", lambda drawn: drawn.idx[0]),
}
_OF_SOME_CLOUDS = ("sigmoid", "sum")  # recorded where there was room

# the same for several clouds in one call, view 0 alone, [B, ...]; img0: one channel of the image
_OF_A_BATCH: Mapping[str, tuple[str, Callable[[Drawn], Tensor]]] = {
    "img0": ("projection.img", lambda drawn: drawn.images[:, 0, 0]),
    "pc_min": ("exact", lambda drawn: drawn.geometry.lo[:, 0]),
    "grid_size": ("exact", lambda drawn: drawn.geometry.cell[:, 0]),
    "offset_x": ("exact", lambda drawn: drawn.geometry.offset[:, 0, 0]),
    "offset_y": ("exact", lambda drawn: drawn.geometry.offset[:, 0, 1]),
}


class Projection(Section):
    name = "projection"
    title = "Projection: images and pixel grids"
    file = "projection.npz"

    def parts(self) -> dict[str, Part]:
        return {"clouds": self._one_by_one, "batch": self._in_one_call, "far edge": self._far_edge}

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("projection")

    @cached_property
    def _kinds(self) -> tuple[list[str], list[str]]:
        """Names of single clouds and of batches of them: those recorded, and those that config.json announces."""
        names = dict.fromkeys((*groups_of(self._arrays), *self.recorded.sizes("proj")))
        batches = [name for name in names if f"{name}__pts" in self._arrays and self._arrays[f"{name}__pts"].ndim == 3]
        return [name for name in names if name not in batches], batches

    @cached_property
    def _image_side(self) -> int:
        sides = {self._arrays[name].shape[-1] for name in self._arrays.names if name.endswith(("__img", "__img0"))}
        if len(sides) != 1:
            raise Missing(f"{self.file}: NAME__img", f"images of sides {sorted(sides)}; expected one side, of all")
        return int(sides.pop())

    def _draw(self, name: str) -> Drawn:
        if name not in self._drawn:
            points = self._arrays.tensor(f"{name}__pts", self.device)
            points = points if points.ndim == 3 else points[None]
            config = replace(self.settings.projection, image_side=self._image_side, points=0)
            sums, _ = project(points, image_side=config.image_side, splat=config.splat, reduction=config.reduction)
            views = render_views(points, config)
            border = 1 + views.geometry.offset[:, :, None]
            idx = pixels(points, views.geometry, config.image_side) - border
            images = views.images.unflatten(0, views.depth.shape[:2])
            self._drawn[name] = Drawn(points, sums, views.depth, images, views.geometry, idx)
        return self._drawn[name]

    @cached_property
    def _drawn(self) -> dict[str, Drawn]:
        return {}

    def _one_by_one(self) -> Iterator[Row]:
        clouds, _ = self._kinds
        for quantity, (tolerance, ours) in _OF_A_CLOUD.items():
            there = [
                name for name in clouds if quantity not in _OF_SOME_CLOUDS or f"{name}__{quantity}" in self._arrays
            ]
            rows = [(name, self._row(name, quantity, tolerance, ours)) for name in there]
            yield merged(f"{quantity}, {len(rows)} cloud{'' if len(rows) == 1 else 's'}", rows)

    def _in_one_call(self) -> Iterator[Row]:
        _, batches = self._kinds
        for quantity, (tolerance, ours) in _OF_A_BATCH.items():
            rows = [(name, self._row(name, quantity, tolerance, ours)) for name in batches]
            yield merged(f"{quantity}, view 0 of clouds projected together", rows)

    def _row(self, name: str, quantity: str, tolerance: str, ours: Callable[[Drawn], Tensor]) -> Row:
        try:
            value = ours(self._draw(name))
        except Missing as absent:
            return missing(absent.what, absent.why)
        return self._arrays.check(quantity, f"{name}__{quantity}", value, tolerance)

    def _far_edge(self) -> Iterator[Row]:
        """The indices that the last point of the longer axis gets: one of two, as the division rounds."""
        seen: set[int] = set()
        for name in self._kinds[0]:
            drawn = self._draw(name)
            for view, axes in enumerate(VIEW_AXES):
                plane = drawn.points[0][:, list(axes[:2])]
                extent = plane.amax(0) - plane.amin(0)
                seen.add(int(drawn.idx[0, view, :, int(extent.argmax())].max()))
        recorded = self.recorded.table("config")["projection_far_edge_indices"]
        row = same("indices on the far edge of the longer axis", sorted(seen), sorted(recorded))
        # A remark about the recorded clouds and no array: the indices themselves are compared one by one.
        yield row if row.passed else replace(row, verdict=UNCOMPARED)
