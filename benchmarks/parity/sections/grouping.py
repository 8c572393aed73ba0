"""grouping.npz: centres and neighbours at every level, with the near-origin rule and without."""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import torch

from benchmarks.parity.compare import Row, missing
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section
from cuda.fps import farthest_point_sample
from trainer.models.tokens.grouping import gather, neighbourhoods, tokenise

__all__ = ["Grouping"]

_NEAR_ORIGIN = 1e-3  # the bound on the squared norm, from the folder's README


class Grouping(Section):
    name = "grouping"
    title = "Grouping: centres and neighbours at every level"
    file = "grouping.npz"

    def parts(self) -> dict[str, Part]:
        near_origin_rule = self.settings.hierarchical.fps_skip_near_origin
        return {
            "with the near-origin rule": lambda: self._rule("skip", near_origin_rule),
            "without": lambda: self._rule("plain", False),
            "skipped points": self._skipped,
        }

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("grouping")

    def _rule(self, prefix: str, skip: bool) -> Iterator[Row]:
        arrays = self._arrays
        sampled, found = f"{prefix}__fps_l{{}}", f"{prefix}__knn_l{{}}"
        levels = arrays.levels(sampled)
        groups = tuple(arrays[sampled.format(level)].shape[1] for level in levels)
        config = replace(
            self.settings.hierarchical,
            groups=groups,
            neighbours=tuple(arrays[found.format(level)].shape[2] for level in levels),
            fps_skip_near_origin=skip,
        )
        below = arrays.tensor("pts", self.device)
        made, chosen = tokenise(below, config)
        for i, level in enumerate(made):
            name = f"{prefix}: level {i}"
            # Ours are prefixes of one sampling; the reference samples every level anew, from the centres below it.
            prefixed = chosen if i == 0 else torch.arange(groups[i]).expand(len(below), -1)
            yield arrays.check(f"{name}, sampled indices", sampled.format(i), prefixed, "exact")
            if i > 0:
                anew = farthest_point_sample(below, groups[i], skip_near_origin=skip)
                yield arrays.check(f"{name}, sampled indices, sampling anew", sampled.format(i), anew, "exact")
            yield arrays.check(f"{name}, neighbours", found.format(i), level.members, "exact")
            if prefix == "skip":
                yield arrays.check(f"{name}, centres", f"skip__center_l{i}", level.centres, "exact")
                relative, absolute = neighbourhoods(below, level), gather(below, level.members)
                for kind, ours in (("neigh", relative), ("neigh_ori", absolute)):
                    yield self._first(f"{name}, members' coordinates ({kind})", f"skip__{kind}_l{i}_first", ours)
            below = level.centres

    def _first(self, what: str, stem: str, ours: torch.Tensor) -> Row:
        """Compare the first groups, as many as the name of the recorded array says."""
        for name in self._arrays.names:
            match = re.fullmatch(rf"{stem}(\d+)", name)
            if match:
                return self._arrays.check(what, name, ours[:, : int(match[1])], "exact")
        return missing(f"{self.file}: {stem}...")

    def _skipped(self) -> Iterator[Row]:
        points = self._arrays.tensor("pts")
        near = points.square().sum(2) <= _NEAR_ORIGIN
        yield self._arrays.check("points near the origin", "skipped_points", near.sum(1), "exact")
