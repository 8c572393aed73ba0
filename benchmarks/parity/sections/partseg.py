"""partseg.npz, partseg_ckpt.pth: part segmentation, small with recorded weights and full-size by the closed formula."""

import re
from collections.abc import Iterator
from functools import cached_property

import torch

from benchmarks.parity.compare import Row, merged
from benchmarks.parity.models import full_segmenter, small_segmenter
from benchmarks.parity.quantities import doubled, gradient_norms, settled
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section
from trainer.models.heads.part_segmenter import PartSegmenter, segmentation_loss
from trainer.models.hierarchical.decoder import interpolation_weights

__all__ = ["Partseg"]

_THINNED = re.compile(r"full_eval_log_probs_every(\d+)")


class Partseg(Section):
    name = "partseg"
    title = "Part segmentation"
    file = "partseg.npz"

    def parts(self) -> dict[str, Part]:
        return {"evaluation": self._evaluation, "training": self._training, "full-size model": self._full}

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("partseg")

    def _model(self) -> PartSegmenter:
        return small_segmenter(self.recorded, self.settings, self.device)

    @torch.no_grad()
    def _evaluation(self) -> Iterator[Row]:
        model, check = self._model().eval(), self._arrays.check
        points, category, target = (self._arrays.tensor(key, self.device) for key in ("pts", "category", "target"))
        log_probs = model(points, category)
        yield check("log-probabilities", "eval_log_probs", log_probs, "logits")
        yield check("loss", "eval_loss", segmentation_loss(log_probs, target), "logits")

    def _training(self) -> Iterator[Row]:
        model, check = self._model().train(), self._arrays.check
        points, category, target = (self._arrays.tensor(key, self.device) for key in ("pts", "category", "target"))
        log_probs = model(points, category)
        loss = segmentation_loss(log_probs, target)
        loss.backward()
        yield check("training log-probabilities", "train_log_probs", log_probs, "training logits")
        yield check("training loss", "train_loss", loss, "loss")
        yield from settled(self._gradients(model), self._gradients_in_float64)

    def _gradients_in_float64(self) -> Iterator[Row]:
        model = self._model().train()
        points, category, target = (self._arrays.tensor(key, self.device) for key in ("pts", "category", "target"))
        plan = model.h_encoder.plan(points)
        expanded = model.model.interpolation == "expanded"
        weights = [interpolation_weights(points, level.centres, expanded=expanded) for level in plan.levels]
        log_probs = model.double().network(doubled(plan), doubled(weights), category, None)
        segmentation_loss(log_probs, target).backward()
        yield from self._gradients(model)

    def _gradients(self, model: PartSegmenter) -> Iterator[Row]:
        return gradient_norms(model, self._arrays, "param_names", "train_grad_norms")

    @torch.no_grad()
    def _full(self) -> Iterator[Row]:
        points, category = (self._arrays.tensor(key, self.device) for key in ("full_pts", "full_category"))
        model, checksum = full_segmenter(self.recorded, self.settings, self.device)
        yield self._arrays.check("full size: checksum of the weights", "full_weight_checksum", checksum, "checksum")
        log_probs = model(points, category)
        rows = []
        for name in self._arrays.names:
            match = _THINNED.fullmatch(name)
            if match:
                thinned = log_probs[:, :: int(match[1])]
                rows.append((name, self._arrays.check(name, name, thinned, "full-size logits")))
        yield merged("full size: log-probabilities of every n-th point", rows)
