"""fullsize.npz: full-size models whose weights are a closed formula."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from benchmarks.parity.compare import Row
from benchmarks.parity.models import FULL_CLASSIFIERS, Filled, full_classifier, full_student, full_teacher
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section
from cuda.token_maps import TokenMaps
from pipeline.teacher.live import LiveTeacher
from trainer.models.tokens.masking import weight_logits
from trainer.models.tokens.saliency import top_saliency

__all__ = ["Fullsize"]


class Fullsize(Section):
    name = "fullsize"
    title = "Full-size models with weights by a closed formula"
    file = "fullsize.npz"

    def parts(self) -> dict[str, Part]:
        classifiers = {f"classifier {name}": partial(self._classifier, name) for name in FULL_CLASSIFIERS}
        # after the feature, because the losses with batch statistics move the running averages
        return {"student": self._feature, "teacher": self._masks, "losses": self._losses, **classifiers}

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("fullsize")

    @cached_property
    def _points(self) -> Tensor:
        return self._arrays.tensor("pre__pts", self.device)

    @cached_property
    def _student(self) -> Filled:
        return full_student(self.recorded, self.settings, self.device)

    @cached_property
    def _seen(self) -> tuple[TokenMaps, float]:
        """The maps, and the checksum of the teacher, which is then let go."""
        teacher, checksum = full_teacher(self.recorded, self.device)
        config = replace(
            self.settings.projection, image_side=teacher.image_side, patch_side=teacher.patch_side, points=0
        )
        return LiveTeacher(config, teacher)(self._points), checksum

    @torch.no_grad()
    def _feature(self) -> Iterator[Row]:
        model, checksum = self._student
        check = self._arrays.check
        yield check("student: checksum of the weights", "pre__weight_checksum", checksum, "checksum")
        yield check("evaluation feature", "pre__eval_feat", model.encode(self._points, "top"), "evaluation feature")
        _, tokens = model.plan_encoding(self._points)
        hidden = [int((~layout.visible).sum()) for layout in tokens]
        yield check("tokens hidden in that forward pass, by level", "pre__eval_hidden", hidden, "exact")

    @torch.no_grad()
    def _masks(self) -> Iterator[Row]:
        maps, checksum = self._seen
        model = self._student.model
        check = self._arrays.check
        yield check("teacher: checksum of the weights", "pre__teacher_checksum", checksum, "checksum")
        levels, _ = model.plan_encoding(self._points)
        saliency = top_saliency(maps, levels[-1].centres)
        yield check("saliency of top-level tokens", "pre__spatial_sals", saliency, "saliency")
        chances = weight_logits(saliency, model.masking).softmax(1)
        yield check("drawing probabilities", "pre__mask_probs", chances, "saliency")

    @torch.no_grad()
    def _losses(self) -> Iterator[Row]:
        model = self._student.model
        order = self._arrays.tensor("pre__mask_ids", self.device)
        plan = model.plan(self._points, self._points, self._seen[0], None, mask_order=order)
        for i, tokens in enumerate(plan.tokens):
            yield self._arrays.check(f"mask of level {i}", f"pre__mask_l{i}", ~tokens.visible, "exact")
        for mode, what in (("evalbn", "running statistics"), ("train", "batch statistics")):
            model.train(mode == "train")
            losses = model.losses(plan, model.network(plan, None))
            yield self._arrays.check(f"3D loss, {what}", f"pre__{mode}_loss_3d", losses["3d"].mean, "loss")
            yield self._arrays.check(f"2D loss, {what}", f"pre__{mode}_loss_2d", losses["2d"].mean, "loss")

    @torch.no_grad()
    def _classifier(self, name: str) -> Iterator[Row]:
        points = self._arrays.tensor(f"{name}__pts", self.device)
        model, checksum = full_classifier(self.recorded, self.settings, name, self.device)
        check = self._arrays.check
        yield check(f"{name}: checksum of the weights", f"{name}__weight_checksum", checksum, "checksum")
        yield check(f"{name}: logits", f"{name}__eval_logits", model(points), "full-size logits")
