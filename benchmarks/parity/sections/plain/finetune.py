"""pointmae_finetune.npz, pointmae_finetune_new_keys.pth: Point-MAE's classifier, after its loader."""

from collections.abc import Iterator
from functools import cached_property

import torch

from benchmarks.parity.compare import Row, same
from benchmarks.parity.plain_models import small_classifier
from benchmarks.parity.quantities import doubled, gradient_norms, settled
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section
from trainer.models.heads.classifier import accuracy, classification_loss
from trainer.models.heads.plain import PlainClassifier

__all__ = ["PointMAEFinetune"]


class PointMAEFinetune(Section):
    name = "pointmae-finetune"
    title = "Point-MAE's classifier"
    file = "pointmae_finetune.npz"

    def parts(self) -> dict[str, Part]:
        return {"transfer": self._transfer, "evaluation": self._evaluation, "training": self._training}

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("pointmae_finetune")

    def _model(self) -> PlainClassifier:
        return small_classifier(self.recorded, self.settings, self.device)

    def _transfer(self) -> Iterator[Row]:
        """What is taken of the checkpoint, what stays new and what is left over, beside the official loader's."""
        facts = self.recorded.table("config")["pointmae_finetune_transfer"]
        entries = self.recorded.checkpoint("pointmae_pretrain_ckpt.pth").entries
        model = self._model()
        names = model.sought(entries).names
        taken = [name for name, theirs in names.items() if theirs in entries]
        new = [name for name in model.state_dict() if name not in taken and not name.endswith("num_batches_tracked")]
        used = {names[name] for name in taken}
        yield same("taken from the checkpoint", sorted(taken), sorted(facts["taken"]))
        yield same("left new", sorted(new), sorted(facts["missing"]))
        yield same("left over", sorted(name for name in entries if name not in used), sorted(facts["unexpected"]))

    @torch.no_grad()
    def _evaluation(self) -> Iterator[Row]:
        model, check = self._model().eval(), self._arrays.check
        points, label = (self._arrays.tensor(key, self.device) for key in ("pts", "label"))
        plan = model.plan(points)
        encoded = model.encoded(plan)
        yield check("tokens of all groups", "eval_tokens", model.embed(plan.groups.neighbourhood), "encoder")
        yield check("encoder output", "eval_norm", torch.cat((encoded.front, encoded.tokens), 1), "encoder")
        yield check("what the head sees", "eval_head_input", model.pooled(plan), "encoder")
        logits = model(points)
        yield check("logits", "eval_logits", logits, "logits")
        yield check("loss", "eval_loss", classification_loss(logits, label, smoothing=0.0), "loss")
        yield check("accuracy in per cent", "eval_acc", 100 * accuracy(logits, label), "loss")

    def _training(self) -> Iterator[Row]:
        model, check = self._model().train(), self._arrays.check
        points, label = (self._arrays.tensor(key, self.device) for key in ("pts", "label"))
        logits = model(points)
        loss = classification_loss(logits, label, smoothing=0.0)
        loss.backward()
        yield check("training logits", "train_logits", logits, "training logits")
        yield check("training loss", "train_loss", loss, "relative training loss of a head")
        yield from settled(self._gradients(model), self._in_float64)

    def _in_float64(self) -> Iterator[Row]:
        model = self._model().train()
        points, label = (self._arrays.tensor(key, self.device) for key in ("pts", "label"))
        plan = doubled(model.plan(points))
        classification_loss(model.double().network(plan, None), label, smoothing=0.0).backward()
        yield from self._gradients(model)

    def _gradients(self, model: PlainClassifier) -> Iterator[Row]:
        return gradient_norms(model, self._arrays, "param_names", "train_grad_norms")
