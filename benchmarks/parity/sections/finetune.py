"""finetune.npz, finetune_ckpt_*.pth: small classifiers."""

from collections.abc import Iterator
from functools import cached_property, partial

import torch
from torch import Tensor

from benchmarks.parity.compare import Row, same
from benchmarks.parity.models import CLASSIFIERS, small_classifier
from benchmarks.parity.quantities import doubled, gradient_norms, settled
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section
from trainer.models.heads.classifier import Classifier, accuracy, classification_loss

__all__ = ["Finetune"]


class Finetune(Section):
    name = "finetune"
    title = "Fine-tuning: classifiers with attention radii"
    file = "finetune.npz"

    def parts(self) -> dict[str, Part]:
        return {name: partial(self._classifier, name) for name in CLASSIFIERS}

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("finetune")

    def _classifier(self, name: str) -> Iterator[Row]:
        yield from self._evaluation(name)
        yield from self._training(name)
        yield from self._unstripped(name)

    def _model(self, name: str) -> Classifier:
        return small_classifier(self.recorded, self.settings, name, self.device)

    @torch.no_grad()
    def _evaluation(self, name: str) -> Iterator[Row]:
        model, check = self._model(name).eval(), self._arrays.check
        points, label = (self._arrays.tensor(f"{name}__{key}", self.device) for key in ("pts", "label"))
        logits = model(points)
        loss = self._loss(model, logits, label)
        yield check(f"{name}: logits", f"{name}__eval_logits", logits, "logits")
        yield check(f"{name}: loss", f"{name}__eval_loss", loss, "loss")
        percent = 100 * accuracy(logits, label)
        yield check(f"{name}: accuracy in per cent", f"{name}__eval_acc", percent, "loss")

    def _training(self, name: str) -> Iterator[Row]:
        model, check = self._model(name).train(), self._arrays.check
        points, label = (self._arrays.tensor(f"{name}__{key}", self.device) for key in ("pts", "label"))
        logits = model(points)
        loss = self._loss(model, logits, label)
        loss.backward()
        yield check(f"{name}: training logits", f"{name}__train_logits", logits, "training logits")
        yield check(f"{name}: training loss", f"{name}__train_loss", loss, "training loss of a head")
        yield from settled(self._gradients(name, model), lambda: self._gradients_in_float64(name))

    def _gradients_in_float64(self, name: str) -> Iterator[Row]:
        model = self._model(name).train()
        points, label = (self._arrays.tensor(f"{name}__{key}", self.device) for key in ("pts", "label"))
        plan = doubled(model.h_encoder.plan(points))
        self._loss(model, model.double().network(plan, None), label).backward()
        yield from self._gradients(name, model)

    def _gradients(self, name: str, model: Classifier) -> Iterator[Row]:
        for row in gradient_norms(model, self._arrays, f"{name}__param_names", f"{name}__train_grad_norms"):
            yield row.renamed(f"{name}: {row.what}")

    def _loss(self, model: Classifier, logits: Tensor, label: Tensor) -> Tensor:
        return classification_loss(logits, label, smoothing=model.config.label_smoothing)

    def _unstripped(self, name: str) -> Iterator[Row]:
        """What a loader that does not strip `module.` makes of this checkpoint: it loads nothing."""
        file = self.recorded.checkpoint(f"finetune_ckpt_{name}.pth")
        entries = {file.prefix + key for key in file.entries}
        wanted = self._model(name).state_dict()
        missed = [key for key in wanted if key not in entries and not key.endswith("num_batches_tracked")]
        ours = {
            "missing": len(missed),
            "total": len(entries),
            "unexpected": sum(key not in wanted for key in entries),
        }
        recorded = self.recorded.table("config")[f"finetune_{name}_reference_loader_on_module_prefix"]
        what = f"{name}: keys that a loader which keeps `module.` misses"
        yield same(what, sorted(ours.items()), sorted(recorded.items()))
