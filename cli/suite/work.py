"""The work of one cell, in a process of its own with one thread."""

import json
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.suite.plan import FEW, TWIN, Cell

if TYPE_CHECKING:
    from trainer.downstream.clouds import LabelledClouds
    from trainer.downstream.features import Encoder

__all__ = ["do"]


def do(cell: Cell, full: Path, out: Path, cache_path: Any) -> tuple[dict[str, Any], float]:
    """Do one cell; -> its result as JSON types, and its seconds.

    full  the full run's directory;  out  the suite's;  cache_path  of the cache that both pre-trainings read.
    """
    began = time.perf_counter()
    if cell.what == "pretrain":
        found = _pretrain(full, out, cache_path)
    elif cell.what == "frozen":
        found = _frozen(cell, full, out)
    else:
        found = _tuned(cell, full, out)
    return {"settings": dict(cell.settings), **found}, time.perf_counter() - began


def _pretrain(full: Path, out: Path, cache_path: Any) -> dict[str, Any]:
    """Train the twin, or go on with it."""
    import teacher_cache
    from cli.experiment.toml import load_experiment
    from pipeline.build.own_records import own_records
    from trainer.config import EvaluationConfig
    from trainer.pretraining.loop import pretrain

    experiment = load_experiment(str(full / "config.toml"), TWIN)
    opened: Any = own_records(teacher_cache.open(cache_path), experiment.corpus)[0]
    report = pretrain(
        opened, out / "3d-only", model=experiment.model, masking=experiment.masking, alignment=experiment.alignment,
        trainer=experiment.trainer, evaluation=EvaluationConfig(),
    )  # fmt: skip
    return {"steps": report.steps, "loss_3d": report.metrics["loss_3d"]}


def _frozen(cell: Cell, full: Path, out: Path) -> dict[str, Any]:
    """Linear SVM and few-shot folds on features of as many draws of points as there are seeds."""
    import numpy as np

    from trainer.downstream.features import encode, feature_name
    from trainer.downstream.few_shot import FewShotConfig, drawn_folds, few_shot
    from trainer.downstream.linear_svm import linear_svm

    settings = cell.settings
    train, test = (_clouds(uri, settings["stored_points"]) for uri in settings["uris"])
    configs = {}
    for way, shot in FEW:
        config = FewShotConfig(way=way, shot=shot, folds=settings["folds"], queries=settings["queries"])
        enough = [np.bincount(clouds.labels, minlength=len(clouds.label_names)) for clouds in (train, test)]
        if ((enough[0] >= shot) & (enough[1] >= config.queries)).sum() >= way:
            configs[f"{way}-way {shot}-shot"] = config
    folds = {name: drawn_folds(train, test, config) for name, config in configs.items()}
    probed: list[float] = []
    few: dict[str, list[tuple[float, ...]]] = {name: [] for name in configs}
    encoder: Encoder | None = None
    for seed in range(settings["seeds"]):
        clouds = [part.draw(settings["points"], seed) for part in (train, test)]
        if encoder is None or cell.arm == "scratch":
            encoder = _encoder(cell.arm, full, out, clouds[0], seed)
        a, b = (encode(encoder, part, batch_size=32) for part in clouds)
        probed.append(linear_svm(a, train.labels, b, test.labels, seed=seed).accuracy)
        for name, config in configs.items():
            few[name].append(few_shot({"": (a, b)}, folds[name], config)[""].scores)
    assert encoder is not None
    return {
        "feature": feature_name(encoder),
        "numbers": int(a.shape[1]),
        "shapes": len(test),
        "classes": len(np.unique(train.labels)),
        "probe": probed,
        # the same folds in every draw of points: their accuracies are averaged over the draws
        "few": {name: np.mean(scores, axis=0).tolist() for name, scores in few.items()},
        "few_tested": {name: config.way * config.queries for name, config in configs.items()},
    }


def _tuned(cell: Cell, full: Path, out: Path) -> dict[str, Any]:
    """Fine-tune a classifier or part segmenter from an arm's weights, with one seed."""
    from dataclasses import replace

    from cli.actions.finetuning import CLASSES, PARTS, load_recipe, start_of
    from trainer.downstream.finetuning.loop import finetune, segment

    settings, parts = cell.settings, cell.what == "parts"
    kind = PARTS if parts else CLASSES
    uris = (f"finetune.{name}={json.dumps(uri)}" for name, uri in zip(("train", "test"), settings["uris"], strict=True))
    numbers = {
        "points": settings["points"], "stored_points": settings["points"], "epochs": settings["epochs"],
        "seed": cell.seed, "keep_checkpoints": 1, **({} if parts else {"pool": 0}),
    }  # fmt: skip
    sections, stated = load_recipe(
        "synthetic",
        [*uris, *(f"finetune.{key}={value}" for key, value in numbers.items()), *settings["overrides"]],
        kind,
    )
    weights = str(out / "3d-only" if cell.arm == "3d-only" else full)
    name, sizes = ("none", weights) if cell.arm == "scratch" else (weights, None)
    model, start = start_of(name, sizes, sections, stated)
    sets = _sets(sections["finetune"])
    run_dir = out / "runs" / cell.name
    common: dict[str, Any] = {
        "model": model, "config": sections["finetune"], "start": start, "source": cell.arm
    }  # fmt: skip
    if parts:
        head = replace(
            sections["segmentation"], categories=len(sets.train.label_names), parts=len(sets.train.part_names)
        )
        report: Any = segment(sets, run_dir, segmentation=head, **common)
        found = {
            "instance": report.scores.instance, "classes": report.scores.classes, "categories": report.scores.categories
        }  # fmt: skip
    else:
        head = replace(sections["classifier"], classes=len(sets.train.label_names))
        report = finetune(sets, run_dir, classifier=head, **common)
        found = {"accuracy": report.accuracy, "class_accuracy": report.class_accuracy}
    augmentation = sections["finetune"].augmentation()
    return {**found, "shapes": report.shapes, "trained_on": len(sets.train), "augmentation": augmentation}


def _encoder(arm: str, full: Path, out: Path, clouds: Any, seed: int) -> "Encoder":
    import torch

    from trainer.checkpoints.models import load_model
    from trainer.downstream.baselines.coordinates import coordinate_statistics
    from trainer.downstream.baselines.point_nn import PointNN
    from trainer.downstream.comparison import SETTLING_CLOUDS
    from trainer.downstream.features import model_encoder, settle_batch_norms
    from trainer.models.build import new_student

    if arm == "coordinates":
        return coordinate_statistics
    if arm == "point-nn":
        return PointNN()
    cpu = torch.device("cpu")
    model, _ = load_model(out / "3d-only" if arm == "3d-only" else full)
    if arm == "scratch":
        teacher = {"channels": model.teacher_channels, "views": model.views}
        model = new_student(model.config, model.masking, teacher, seed=seed)
        settle_batch_norms(model, clouds[:SETTLING_CLOUDS], cpu)
    return model_encoder(model, cpu)


@cache
def _clouds(uri: str, points: int) -> "LabelledClouds":
    """Read the clouds of one corpus, once per process."""
    from trainer.downstream.clouds import read_clouds

    return read_clouds(uri, points=points)


_READ: dict[tuple[Any, ...], Any] = {}


def _sets(config: Any) -> Any:
    """Read the sets of a run, once per process for all its seeds and arms."""
    from trainer.downstream.finetuning.loop import read_sets

    key = (type(config), config.train, config.test, config.stored_points)
    if key not in _READ:
        _READ.clear()
        _READ[key] = read_sets(config)
    return _READ[key]
