"""fullsize.npz: the family's models at the papers' sizes, with weights by a closed formula."""

import re
from collections.abc import Iterator
from functools import cached_property, partial

import torch

from benchmarks.parity.compare import Row, merged
from benchmarks.parity.plain_models import full_classifier, full_segmenter, full_student
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section

__all__ = ["PlainFullsize"]

_CLASSIFIER = re.compile(r"(\w+)_(mn|scan)__eval_logits")


class PlainFullsize(Section):
    name = "fullsize"
    title = "Full-size models with weights by a closed formula"
    file = "fullsize.npz"

    def parts(self) -> dict[str, Part]:
        try:
            names = self._arrays.names
        except Exception:
            names = ()  # what is wrong with the file, the first part says
        classifiers = [match for name in names if (match := _CLASSIFIER.fullmatch(name))]
        named = {f"classifier {m[1]}, {m[2]}": partial(self._classifier, m[1], m[2]) for m in classifiers}
        return {"student": self._student, **named, "segmenter": self._segmenter}

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("fullsize")

    @torch.no_grad()
    def _student(self) -> Iterator[Row]:
        check = self._arrays.check
        model, checksum = full_student(self.recorded, self.settings, self.device)
        points = self._arrays.tensor("pts", self.device)
        yield check("student: checksum of the weights", "pointmae_pre__weight_checksum", checksum, "checksum")
        order = self._arrays.tensor("mask", self.device).long().argsort(dim=1, stable=True)
        plan = model.plan(points, points, None, None, mask_order=order)
        prediction = model.network(plan, None)
        first = prediction.encoded[:, 0]
        yield check("student: first visible token", "pointmae_pre__evalbn_enc_first_visible", first, "deep block")
        loss = model.losses(plan, prediction)["3d"].mean
        yield check("student: loss, running statistics", "pointmae_pre__evalbn_loss_cdl2", loss, "loss")
        model.train()
        loss = model.losses(plan, model.network(plan, None))["3d"].mean
        yield check("student: loss, batch statistics", "pointmae_pre__train_loss_cdl2", loss, "loss")

    @torch.no_grad()
    def _classifier(self, name: str, which: str) -> Iterator[Row]:
        (model, checksum), count = full_classifier(name, which, self.recorded, self.settings, self.device)
        check, what = self._arrays.check, f"{name}, {which}"
        yield check(f"{what}: checksum of the weights", f"{name}_{which}__weight_checksum", checksum, "checksum")
        points = next(
            self._arrays.tensor(key, self.device) for key in ("pts", "pts_scan") if self._arrays[key].shape[1] == count
        )
        yield check(f"{what}: logits", f"{name}_{which}__eval_logits", model(points), "full-size logits")

    @torch.no_grad()
    def _segmenter(self) -> Iterator[Row]:
        points, category = (self._arrays.tensor(key, self.device) for key in ("pts_scan", "category"))
        model, checksum = full_segmenter(self.recorded, self.settings, self.device)
        check = self._arrays.check
        yield check("segmenter: checksum of the weights", "pointmae_seg__weight_checksum", checksum, "checksum")
        log_probs = model(points, category)
        rows = []
        for name in self._arrays.names:
            match = re.fullmatch(r"pointmae_seg__log_probs_every(\d+)", name)
            if match:
                rows.append((name, check(name, name, log_probs[:, :: int(match[1])], "full-size logits")))
        yield merged("segmenter: log-probabilities of every n-th point", rows)
