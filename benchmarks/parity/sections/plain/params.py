"""params.json, small_params.json, learning_rates.json: names, shapes, counts, weight decay groups, learning rates."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.parity.compare import Row, compare, same
from benchmarks.parity.plain_models import (
    MEMBERS,
    classifier_of,
    parts_of,
    plain_of,
    sized,
    small_classifier,
    small_segmenter,
    small_student,
)
from benchmarks.parity.section import Part, Section
from trainer.checkpoints.reference.family import our_name
from trainer.engine.optimiser import build_optimizer
from trainer.engine.schedule import learning_rate
from trainer.models.heads.config import PlainSegmentationConfig
from trainer.models.heads.plain import PlainSegmenter
from trainer.models.plain.student import PlainStudent

__all__ = ["PlainParams"]

_RECIPES = {"finetune_modelnet40": "ModelNet40", "finetune_scanobjectnn": "ScanObjectNN"}


class PlainParams(Section):
    name = "params"
    title = "Parameters, weight decay groups, learning rates"
    file = "params.json"

    def parts(self) -> dict[str, Part]:
        classifiers = {f"classifier {name}": partial(self._classifier, name) for name in ("pointmae", *MEMBERS)}
        rates = {f"rates {name}": partial(self._rates, name) for name in ("pointmae", *MEMBERS)}
        return {"student": self._student, **classifiers, "segmenter": self._segmenter, "small": self._small, **rates}

    def _student(self) -> Iterator[Row]:
        facts = self.recorded.table("params")["pointmae"]["pretrain"]
        with torch.device("meta"):
            model = PlainStudent(plain_of(self.settings), self.settings.masking, teacher_channels=1)
        yield from self._described("student", model, facts, whole=True)
        trainer, theirs = self.settings.trainer, facts["optimizer"]["kwargs"]
        ours = {"lr": trainer.learning_rate, "weight_decay": trainer.weight_decay}
        yield same("student: optimiser's settings", sorted(ours.items()), sorted(theirs.items()))
        schedule = facts["scheduler"]["kwargs"]
        yield same(
            "student: epochs of cosine and warm-up, batch, last epoch",
            [trainer.schedule_epochs, trainer.warmup_epochs, trainer.batch_size, trainer.epochs - 1],
            [schedule["epochs"], schedule["initial_epochs"], facts["total_bs"], facts["max_epoch"]],
        )
        sizes = facts["model"]["transformer_config"]
        yield same(
            "student: mask", [self.settings.masking.ratio, self.settings.masking.mode], [sizes["mask_ratio"], "random"]
        )

    def _classifier(self, name: str) -> Iterator[Row]:
        facts = self.recorded.table("params")[name]["finetune_modelnet40"]
        entries = _shaped(facts["state_dict"])
        with torch.device("meta"):
            model = classifier_of(MEMBERS.get(name), self.settings, sized(facts["model"]), entries)
        # rates of their own for some weights, or weights that are not trained: recipes that are not here
        whole = len(facts["groups"]) == 2 and facts["optimizer"].get("part", "all") == "all"
        yield from self._described(f"classifier {name}", model, facts, whole=whole)

    def _segmenter(self) -> Iterator[Row]:
        table = self.recorded.table("params")
        facts = table["partseg_pointmae"]
        config = PlainSegmentationConfig(**parts_of(_shaped(facts["state_dict"])))
        with torch.device("meta"):
            model = PlainSegmenter(plain_of(self.settings), config)
        yield from self._described("segmenter", model, facts, whole=False)

    def _small(self) -> Iterator[Row]:
        table = self.recorded.table("small_params")
        for name, make in (
            ("pointmae_pretrain", small_student),
            ("pointmae_finetune", small_classifier),
            ("pointmae_partseg", small_segmenter),
        ):
            model = make(self.recorded, self.settings, torch.device("cpu"))
            yield from self._described(f"small {name}", model, table[name], whole="groups" in table[name])

    def _described(self, what: str, model: nn.Module, facts: Mapping[str, Any], *, whole: bool) -> Iterator[Row]:
        """Names, shapes, types and counts; the optimiser's groups too, where it has two of all weights (`whole`)."""
        ours = {key: [list(value.shape), str(value.dtype).split(".")[1]] for key, value in model.state_dict().items()}
        recorded = {our_name(key): value for key, value in facts["state_dict"].items()}
        yield same(f"{what}: names of the state dict, in order", list(ours), list(recorded))
        described = [[f"{key} {shape} {kind}" for key, (shape, kind) in one.items()] for one in (ours, recorded)]
        yield same(f"{what}: shapes and types", sorted(described[0]), sorted(described[1]))
        count = sum(value.numel() for value in model.parameters())
        yield compare(f"{what}: parameters", count, facts["parameters"], "exact")
        if not whole:
            return
        names = {id(value): name for name, value in model.named_parameters()}
        groups = build_optimizer(model, self.settings.trainer).param_groups
        kinds = {group["weight_decay"]: group["params"] for group in groups}
        for theirs in facts["groups"]:
            mine = kinds.get(theirs["weight_decay"], [])
            kind = f"{what}: group of weight decay {theirs['weight_decay']},"
            yield compare(f"{kind} tensors", len(mine), theirs["tensors"], "exact")
            yield compare(f"{kind} numbers", sum(value.numel() for value in mine), theirs["elements"], "exact")
            listed = facts.get("no_decay_names") if theirs["weight_decay"] == 0 else None
            listed = theirs.get("names", listed) if listed is None else listed
            if isinstance(listed, list):
                yield same(f"{kind} names", [names[id(value)] for value in mine], listed)

    def _rates(self, name: str) -> Iterator[Row]:
        """The schedule at each group's own rate."""
        table, params = self.recorded.table("learning_rates")[name], self.recorded.table("params")[name]
        base = float(params["finetune_modelnet40"]["optimizer"]["kwargs"]["lr"])
        floor = MEMBERS[name].floor if name in MEMBERS else self.settings.trainer.final_learning_rate
        factors = [group["initial_lr"] / base for group in params["finetune_modelnet40"]["groups"]]
        for recipe, words in _RECIPES.items():
            facts, recorded = params[recipe], table[recipe]
            schedule = facts["scheduler"]["kwargs"]
            columns = list(zip(*recorded["lr_per_group"], strict=True))
            own = float(facts["optimizer"]["kwargs"]["lr"])
            if len(columns) != len(factors):
                factors = [1.0] * len(columns)
            for number, (factor, column) in enumerate(zip(factors, columns, strict=True)):
                config = replace(
                    self.settings.trainer,
                    learning_rate=own * factor,
                    schedule_epochs=schedule["epochs"],
                    warmup_epochs=schedule["initial_epochs"],
                    final_learning_rate=floor,
                    epochs=recorded["epochs_run"],
                )
                ours = [learning_rate(config, epoch, step=1, steps_per_epoch=3) for epoch in recorded["epochs"]]
                yield compare(f"{name}, {words}: rates of group {number}", ours, column, "learning rate")


def _shaped(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(shape, dtype=getattr(torch, kind), device="meta") for name, (shape, kind) in state.items()
    }
