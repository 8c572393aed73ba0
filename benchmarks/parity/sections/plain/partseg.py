"""pointmae_partseg.npz, pointmae_partseg_ckpt.pth: Point-MAE's part segmentation at small widths."""

import re
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.parity.compare import Row, missing
from benchmarks.parity.plain_models import small_segmenter
from benchmarks.parity.quantities import doubled, gradient_norms, settled
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section
from trainer.models.heads.part_segmenter import segmentation_loss
from trainer.models.heads.plain import PlainSegmenter

__all__ = ["PointMAEPartseg"]


class PointMAEPartseg(Section):
    name = "pointmae-partseg"
    title = "Point-MAE's part segmentation"
    file = "pointmae_partseg.npz"

    def parts(self) -> dict[str, Part]:
        return {"evaluation": self._evaluation, "training": self._training}

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("pointmae_partseg")

    def _model(self) -> PlainSegmenter:
        return small_segmenter(self.recorded, self.settings, self.device)

    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        points, category, target = (self._arrays.tensor(key, self.device) for key in ("pts", "category", "target"))
        return points, category, target

    @torch.no_grad()
    def _evaluation(self) -> Iterator[Row]:
        model, check = self._model().eval(), self._arrays.check
        points, category, target = self._inputs()
        plan = model.plan(points)
        encoded = model.encoded(plan)
        blocks = [name for name in self._arrays.names if name.startswith("eval_block")]
        for name in blocks or ["eval_block3"]:
            at = int(name.removeprefix("eval_block"))
            yield check(f"after block {at}", name, encoded.blocks[at][:, len(model.front) :], "deep block")
        at_points = model.propagated(plan, points, encoded)[1].transpose(1, 2)  # [B, D, N], as recorded
        for what, thin, row in self._thinned(r"eval_propagation_first(\d+)"):
            yield (
                check("propagated to points, the first of them", what, at_points[:, :, :thin], "encoder")
                if thin
                else row
            )
        log_probs = model(points, category)
        yield check("log-probabilities", "eval_log_probs", log_probs, "logits")
        yield check("loss", "eval_loss", segmentation_loss(log_probs, target), "loss")

    def _training(self) -> Iterator[Row]:
        model, check = self._model().train(), self._arrays.check
        points, category, target = self._inputs()
        log_probs = model(points, category)
        loss = segmentation_loss(log_probs, target)
        loss.backward()
        for what, thin, row in self._thinned(r"train_log_probs_every(\d+)"):
            name = "training log-probabilities, every n-th point"
            yield check(name, what, log_probs[:, ::thin], "training logits") if thin else row
        yield check("training loss", "train_loss", loss, "loss")
        yield from settled(self._gradients(model), self._in_float64)

    def _in_float64(self) -> Iterator[Row]:
        model = self._model().train()
        points, category, target = self._inputs()
        plan = doubled(model.plan(points))
        segmentation_loss(model.double().network(plan, points.double(), category, None), target).backward()
        yield from self._gradients(model)

    def _gradients(self, model: PlainSegmenter) -> Iterator[Row]:
        return gradient_norms(model, self._arrays, "param_names", "train_grad_norms")

    def _thinned(self, pattern: str) -> Iterator[tuple[str, int, Row]]:
        """Arrays whose name says which part of the points they hold; a row that says so where there is none."""
        found = [(name, int(match[1])) for name in self._arrays.names if (match := re.fullmatch(pattern, name))]
        absent = missing(f"{self.file}: {pattern}")
        yield from ((name, thin, absent) for name, thin in found) if found else [("", 0, absent)]
