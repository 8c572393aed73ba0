"""backprojection.npz: teacher maps read at points."""

import re
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.parity.compare import Row, merged
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section
from cuda.backproject import backproject
from cuda.geometry import VIEW_AXES, ViewGeometry
from cuda.project import project

__all__ = ["Backprojection"]

_RESIZED = re.compile(r"upsampled_(\d+)_(\d+)_(\d+)")


class Backprojection(Section):
    name = "backprojection"
    title = "Back-projection: teacher maps read at points"
    file = "backprojection.npz"

    def parts(self) -> dict[str, Part]:
        return {"grids": self._grids, "lookups": self._lookups, "resized map": self._resized}

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("backprojection")

    @cached_property
    def _image_side(self) -> int:
        sides = [self._arrays[name].shape[-1] for name in self._arrays.names if _RESIZED.fullmatch(name)]
        return int(sides[0]) if sides else self.settings.projection.image_side

    @cached_property
    def _geometry(self) -> ViewGeometry:
        config = self.settings.projection
        points = self._arrays.tensor("pts", self.device)
        return project(points, image_side=self._image_side, splat=config.splat, reduction=config.reduction)[1]

    def _grids(self) -> Iterator[Row]:
        lo, cell, offset = (part.transpose(0, 1) for part in self._geometry)  # [V, B, ...]
        check = self._arrays.check
        yield check("pc_min", "pc_min", lo, "exact")
        yield check("grid_size", "grid_size", cell, "exact")
        yield check("offset_x", "offset_x", offset[..., 0], "exact")
        yield check("offset_y", "offset_y", offset[..., 1], "exact")
        points, idx = self._arrays.tensor("pts"), self._arrays.tensor("query_idx")
        queries = points.gather(1, idx[:, :, None].expand(-1, -1, 3))
        yield check("query, the points at query_idx", "query", queries, "exact")

    def _lookups(self) -> Iterator[Row]:
        queries = self._arrays.tensor("query", self.device)
        for what, name, tolerance in (
            ("features at the queries", "feats", "backprojection.features"),
            ("saliency at the queries", "sal", "backprojection.saliency"),
        ):
            maps = self._arrays.tensor(name, self.device).flatten(3).permute(1, 0, 3, 2)  # [B, V, T, C]
            values = backproject(maps, queries, self._geometry, image_side=self._image_side)
            yield self._arrays.check(what, f"out_{name}", values.permute(2, 0, 1, 3), tolerance)

    def _resized(self) -> Iterator[Row]:
        """A whole map at every pixel: points that lie on the pixels of a grid of cells of 1."""
        S = self._image_side
        rows = []
        for name in self._arrays.names:
            match = _RESIZED.fullmatch(name)
            if match is None:
                continue
            view, sample, channel = map(int, match.groups())
            grid = torch.cartesian_prod(*[torch.arange(S, dtype=torch.float32, device=self.device)] * 2)
            points = grid.new_zeros(1, S * S, 3)
            points[0, :, list(VIEW_AXES[view][:2])] = grid
            maps = self._arrays.tensor("feats", self.device)[view, sample, channel].view(1, 1, -1, 1)
            values = backproject(
                maps.expand(1, len(VIEW_AXES), -1, 1), points, _unit_grid(self.device), image_side=S
            )  # [1, S * S, V, 1]
            ours = values[0, :, view, 0].view(S, S)
            rows.append((name, self._arrays.check(name, name, ours, "backprojection.features")))
        yield merged("a map upsampled, at every pixel", rows)


def _unit_grid(device: torch.device) -> ViewGeometry:
    """The geometry in which a point's pixel is its plane coordinates."""
    V = len(VIEW_AXES)
    zeros: Tensor = torch.zeros(1, V, 2, device=device)
    return ViewGeometry(zeros, torch.ones(1, V, device=device), torch.full_like(zeros, -1, dtype=torch.int32))
