"""One run of a study: train, evaluate on every set, write result.json."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.study.plan import UNTRAINED, Run, cache_name

if TYPE_CHECKING:
    from teacher_cache.location import Location
    from trainer.config import EvaluationConfig
    from trainer.downstream.comparison import Comparison, Evaluator
    from trainer.models.layers.pooling import Feature
    from trainer.models.student import Student

__all__ = ["do"]

_PROBED, _DRAWS = 64, 32  # records on which the masking is measured, and draws for each


def do(run: Run, cache_path: "Location", *further_paths: "Location") -> dict[str, Any]:
    """Do or resume one run on its caches, one a teacher; -> the content of result.json."""
    import teacher_cache
    from cli.experiment.live import live_teacher
    from cli.experiment.toml import load_experiment
    from pipeline.build.own_records import own_records
    from teacher_cache.storage.atomic import refuse_links
    from trainer.checkpoints.models import load_model
    from trainer.config import EvaluationConfig
    from trainer.engine.run_directory import write_json
    from trainer.models.config import ModelConfig
    from trainer.pretraining.loop import pretrain

    began = time.perf_counter()
    refuse_links(run.folder.parents[2], run.folder / "any")  # OUT/teacher/arm/seed: OUT itself may be a link
    experiment = load_experiment(run.config, run.overrides)
    opened: Any = own_records(teacher_cache.open(cache_path), experiment.corpus)[0]
    result: dict[str, Any] = {"arm": run.arm, "teacher": run.teacher, "seed": run.seed}
    result |= {"settings": json.loads(run.settings), "cache": cache_name(cache_path)}
    result |= {"further": list(map(cache_name, further_paths))} if further_paths else {}
    result |= {"corpus": run.corpus} if run.corpus else {}
    result |= {"records": len(opened)} | _selected(opened)
    trained = 0.0
    if run.arm == UNTRAINED:
        result["sets"] = {name: _untrained(run, experiment, opened, name) for name, _, _ in run.sets}
    else:
        report = pretrain(
            opened,
            run.folder,
            model=experiment.model,
            masking=experiment.masking,
            alignment=experiment.alignment,
            trainer=experiment.trainer,
            evaluation=EvaluationConfig(),
            teacher=live_teacher(experiment, opened),
            further=[teacher_cache.open(path) for path in further_paths],
            teachers=experiment.teachers,
        )
        trained, began = _training_seconds(run.folder), time.perf_counter()
        model, _ = load_model(run.folder)
        result |= {"losses": dict(report.metrics), "steps": report.steps, "training_seconds": trained}
        if isinstance(experiment.model, ModelConfig):  # other students have no top-level tokens to measure
            result["visible"] = _visibility(model, opened, experiment)
        result["sets"] = {name: _score(run, experiment, model, name) for name, _, _ in run.sets}
    result["seconds"] = trained + time.perf_counter() - began
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / "result.json", result)
    return result


def _selected(opened: Any) -> dict[str, str]:
    """The digest of the shapes of a run, where they are a selection of the cache's."""
    from teacher_cache import Selection

    return {"shapes": opened.digest} if isinstance(opened, Selection) and opened.digest is not None else {}


def _training_seconds(folder: Path) -> float:
    """Return the time of a run's epochs, interrupted ones included; the later line of a repeated epoch counts."""
    events = map(json.loads, (folder / "train.jsonl").read_text(encoding="utf-8").splitlines())
    return float(sum({event["epoch"]: event["seconds"] for event in events if event["event"] == "epoch"}.values()))


@cache
def _evaluator(config: "EvaluationConfig") -> "Evaluator":
    """Load the clouds of one set, once per process."""
    from trainer.downstream.comparison import Evaluator

    return Evaluator(config)


def _evaluator_of(run: Run, experiment: Any, name: str) -> "Evaluator":
    train, test = next((train, test) for known, train, test in run.sets if known == name)
    return _evaluator(replace(experiment.evaluation, train=train, test=test, seeds=1))


def _score(run: Run, experiment: Any, model: Any, name: str) -> dict[str, Any]:
    import torch

    from trainer.downstream.features import Encoder, model_encoder

    encoders: dict[str, Encoder] = {
        feature: model_encoder(model, torch.device("cpu"), feature)
        for feature in features_of(experiment.evaluation, model)
    }
    found = _evaluator_of(run, experiment, name).compare(encoders)
    return _scores(found, list(encoders))


def _scores(found: "Comparison", features: Sequence[str]) -> dict[str, Any]:
    """Return accuracy and width of each feature of one student; the first is the study's main feature."""
    rows = {feature: found.rows[feature] for feature in features}
    return {
        "accuracy": rows[features[0]].accuracy,
        "features": {feature: {"accuracy": row.accuracy, "numbers": row.dimensions} for feature, row in rows.items()},
    }


def features_of(config: "EvaluationConfig", model: "Student") -> list["Feature"]:
    """List the features that a study scores: the evaluation's own, and the paper's if the student has it."""
    own = config.model_feature
    return [own] if own == "top" or "top" not in model.features else [own, "top"]


def _untrained(run: Run, experiment: Any, opened: Any, name: str) -> dict[str, Any]:
    """Score the student of this seed before training; with seed 0 also the baselines without a student."""
    import torch

    from trainer.downstream.features import ModelEncoder
    from trainer.models.build import new_student

    schema = opened.schema
    shape = {"channels": schema.channels, "views": schema.views}
    fresh = new_student(experiment.model, experiment.masking, shape, seed=run.seed)
    evaluator = _evaluator_of(run, experiment, name)
    encoders = evaluator.baselines(fresh, seed=run.seed, device=torch.device("cpu"))
    if run.seed:
        del encoders["coordinates"]
    untrained = encoders.pop("untrained")
    assert isinstance(untrained, ModelEncoder)
    features = features_of(experiment.evaluation, fresh)
    encoders |= {feature: replace(untrained, feature=feature) for feature in features}
    found = evaluator.compare(encoders)
    scores = _scores(found, features) | {"largest class": found.chance}
    if "coordinates" in found.rows:
        scores["coordinates"] = found.rows["coordinates"].accuracy
    return scores


def _visibility(model: Any, opened: Any, experiment: Any) -> dict[str, float]:
    """Measure how often the most salient quarter of the top-level tokens stays visible, and how often the others do."""
    import torch

    from cuda.backproject import backproject
    from cuda.geometry import ViewGeometry
    from trainer.models.tokens.grouping import tokenise
    from trainer.models.tokens.masking import block_order, draw_order, top_visible, weight_logits

    batch = opened.read(list(range(min(_PROBED, len(opened)))))
    points = torch.from_numpy(batch.points[:, : experiment.trainer.points or None]).contiguous()
    levels, _ = tokenise(points, model.config)
    geometry = ViewGeometry(*(torch.from_numpy(array) for array in (batch.lo, batch.cell, batch.offset)))
    maps = torch.from_numpy(batch.saliency)[..., None].float()
    side = opened.schema.image_side
    saliency = backproject(maps, levels[-1].centres.contiguous(), geometry, image_side=side).mean(dim=(2, 3))
    saliency = saliency.repeat(_DRAWS, 1)
    logits = weight_logits(saliency, experiment.masking)
    uniforms = torch.rand(saliency.shape, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)
    block = experiment.masking.mode == "block"
    order = block_order(levels[-1].centres.repeat(_DRAWS, 1, 1), uniforms) if block else draw_order(logits, uniforms)
    visible = top_visible(order, model.masking.visible(saliency.shape[1])).float()
    quarter = max(1, saliency.shape[1] // 4)
    salient = torch.zeros_like(visible, dtype=torch.bool)
    salient.scatter_(1, saliency.topk(quarter, dim=1).indices, True)
    return {"salient": visible[salient].mean().item(), "others": visible[~salient].mean().item()}
