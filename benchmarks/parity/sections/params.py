"""params.json: names, shapes and counts of the full-size models, weight decay groups, learning rates."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.parity.compare import Row, compare, same
from benchmarks.parity.recorded import Table
from benchmarks.parity.section import Part, Section
from cli.experiment.sections import Experiment
from trainer.checkpoints.reference.pth_file import TEACHER
from trainer.engine.optimiser import no_decay_names
from trainer.engine.schedule import learning_rate
from trainer.models.heads.classifier import Classifier
from trainer.models.heads.config import MODELNET40, SCANOBJECTNN, SegmentationConfig
from trainer.models.heads.part_segmenter import PartSegmenter
from trainer.models.hierarchical.student import I2PMAE

__all__ = ["Params"]

_MODELS: Mapping[str, Callable[[Experiment, int], nn.Module]] = {
    "pretrain": lambda settings, channels: I2PMAE(settings.hierarchical, settings.masking, teacher_channels=channels),
    "finetune_modelnet40": lambda settings, _: Classifier(settings.hierarchical, MODELNET40),
    "finetune_scanobjectnn": lambda settings, _: Classifier(settings.hierarchical, SCANOBJECTNN),
    "partseg": lambda settings, _: PartSegmenter(settings.hierarchical, SegmentationConfig()),
}


class Params(Section):
    name = "params"
    title = "Parameters, weight decay groups, learning rates"
    file = "params.json"

    def parts(self) -> dict[str, Part]:
        rates = {f"{name}, rates": partial(self._rates, name) for name in _MODELS}
        return {**{name: partial(self._model, name) for name in _MODELS}, **rates}

    def _model(self, name: str) -> Iterator[Row]:
        facts: Table = self.recorded.table("params")[name]
        teacher = self.recorded.table("params")["pretrain"]["teacher_state_dict"]
        with torch.device("meta"):
            model = _MODELS[name](self.settings, teacher[f"{TEACHER}visual.proj"][0][1])
        ours = {key: [list(value.shape), str(value.dtype).split(".")[1]] for key, value in model.state_dict().items()}
        recorded = facts["state_dict"]
        yield same(f"{name}: names of the state dict, in order", list(ours), list(recorded))
        described = [[f"{key} {shape} {kind}" for key, (shape, kind) in one.items()] for one in (ours, recorded)]
        yield same(f"{name}: shapes and types", *described)

        named: dict[str, Tensor] = dict(model.named_parameters())
        frozen = {key: torch.empty(shape, device="meta") for key, (shape, _) in teacher.items()}
        beside = frozen if name == "pretrain" else {}
        counts = {
            "parameters": _elements(named),
            "encoder_parameters": _elements(dict(model.h_encoder.named_parameters())),  # type: ignore[union-attr]
            "parameters_with_teacher": _elements({**named, **beside}),
        }
        if name == "pretrain":
            counts["teacher_parameters"] = _elements(frozen)
        for what, count in counts.items():
            yield compare(f"{name}: {what}", count, facts[what], "exact")
        yield from self._decay(name, named, beside, facts)

    def _decay(self, name: str, named: dict[str, Tensor], teacher: dict[str, Tensor], facts: Table) -> Iterator[Row]:
        rule = self.settings.trainer.no_decay
        spared = no_decay_names(named.items(), rule)
        yield same(f"{name}: names without weight decay", sorted(spared), sorted(facts["no_decay_names"]))
        groups = _split(named, spared)
        together = _split({**named, **teacher}, [*spared, *no_decay_names(teacher.items(), rule)])
        for group in ("decay", "no_decay"):
            what = f"{name}: {group} group,"
            yield compare(f"{what} tensors", len(groups[group]), facts["tensors"][group], "exact")
            yield compare(f"{what} numbers", _elements(groups[group]), facts["elements"][group], "exact")
            if "optimizer_tensors_with_teacher" in facts:
                recorded = facts["optimizer_tensors_with_teacher"][group]
                yield compare(f"{what} tensors, the teacher's too", len(together[group]), recorded, "exact")

    def _rates(self, name: str) -> Iterator[Row]:
        facts: Table = self.recorded.table("params")["learning_rate"][name]
        config = replace(
            self.settings.trainer,
            learning_rate=facts["base_lr"],
            schedule_epochs=facts["t_initial"],
            warmup_epochs=facts["warmup"],
            epochs=facts["max_epoch"] + 1,
        )
        # any step of an epoch has the epoch's rate
        rates = [learning_rate(config, epoch, step=1, steps_per_epoch=3) for epoch in range(config.epochs)]
        what = f"{name}: learning rate"
        yield compare(f"{what} in every epoch", rates, facts["lr_used_in_epoch"], "learning rate")
        after = learning_rate(config, config.epochs, step=0, steps_per_epoch=3)
        yield compare(f"{what} after the last", after, facts["lr_after_last_step"], "learning rate")


def _split(named: Mapping[str, Tensor], spared: list[str]) -> dict[str, dict[str, Tensor]]:
    kept = set(spared)
    return {
        "decay": {name: value for name, value in named.items() if name not in kept},
        "no_decay": {name: value for name, value in named.items() if name in kept},
    }


def _elements(named: Mapping[str, Tensor]) -> int:
    return sum(math.prod(value.shape) for value in named.values())
