"""Evaluation of one encoder: on one labelled set, or on several and their mean."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.show.titles import ENCODER_TITLES

if TYPE_CHECKING:
    import torch

    from trainer.config import EvaluationConfig
    from trainer.models.student import Student

__all__ = ["evaluate_on", "means", "sets_table"]

LARGEST = "always the largest class"


def evaluate_on(
    config: "EvaluationConfig",
    model: "Student",
    *,
    seed: int,
    device: "torch.device",
    every_feature: bool = False,
    logistic: bool = False,
    point_nn: bool = False,
    watch: Any = None,
) -> dict[str, Any]:
    """Score a model on the corpora of `config`, beside its baselines; -> Comparison.to_json().

    seed           of its first weights, for the row "untrained".
    every_feature  a row "trained-NAME" for each further feature of the encoder.
    """
    from trainer.downstream.baselines.point_nn import PointNN
    from trainer.downstream.comparison import Evaluator
    from trainer.downstream.features import model_encoder
    from trainer.models.layers.pooling import FEATURES

    evaluator = Evaluator(config, watch=watch)
    encoders = evaluator.baselines(model, seed=seed, device=device)
    if point_nn:
        encoders["point-nn"] = PointNN()
    encoders["trained"] = model_encoder(model.to(device), device, config.model_feature)
    for other in FEATURES if every_feature else ():
        if other != config.model_feature:
            encoders[f"trained-{other}"] = model_encoder(model, device, other)
    return evaluator.compare(encoders, logistic=logistic, watch=watch).to_json()


def means(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Take the mean over sets of every row, seed by seed.

    results  set -> result of `evaluate_on`, all of one model and the same settings.
    ->       "rows" and, if asked for, "logistic": row -> {"accuracy", "spread", "scores"}, the spread being
             the standard deviation over seeds of the mean over sets, as Row.spread is of one set.
    """
    found = list(results.values())
    told: dict[str, dict[str, Any]] = {}
    for kind in ("rows", "logistic"):
        for name in found[0].get(kind, ()):
            scores = np.mean([one[kind][name]["scores"] for one in found], axis=0)
            told.setdefault(kind, {})[name] = {
                "accuracy": float(scores.mean()), "spread": float(scores.std()), "scores": scores.tolist(),
            }  # fmt: skip
    return told


def sets_table(found: Mapping[str, Any]) -> str:
    """Format the result of several sets as text: a row per encoder, a column per set and their mean, in per cent.

    found  {"sets": {name: result of evaluate_on}, "means": result of means}.
    """
    sets, first = found["sets"], next(iter(found["sets"].values()))
    several = first["seeds"] > 1
    width = max(14, *(len(name) + 2 for name in sets))
    lines = []
    for kind, title in (("rows", "linear SVM"), ("logistic", "logistic regression")):
        if kind not in found["means"]:
            continue
        lines.append(
            f"{title}: {first['points']} points, {first['protocol'] if kind == 'rows' else 'cross-validated'}, "
            f"{first['seeds']} seed{'s' if several else ''}"
        )
        lines.append(f"  {'':<26}{'feature':<8}{'numbers':>8}" + _cells([*sets, "mean"], width))
        if kind == "rows":
            chances = [one["chance"] for one in sets.values()]
            texts = [f"{100 * value:.1f}%" for value in (*chances, float(np.mean(chances)))]
            lines.append(f"  {LARGEST:<26}{'none':<8}{0:>8}" + _cells(texts, width))
        for name, row in first[kind].items():
            rows = [*(one[kind][name] for one in sets.values()), found["means"][kind][name]]
            texts = [
                f"{100 * one['accuracy']:.1f}%" + (f" ± {100 * one['spread']:.1f}" if several else "") for one in rows
            ]
            feature = "none" if name == "coordinates" else row["feature"]
            title_of = ENCODER_TITLES.get(name, name)
            lines.append(f"  {title_of:<26}{feature:<8}{row['dimensions']:>8}" + _cells(texts, width))
    for name, one in sets.items():
        skipped = one["train"]["skipped"] + one["test"]["skipped"]
        left_out = f"; {skipped} shapes could not be read and were left out" if skipped else ""
        lines.append(
            f"  {name}: {one['test']['shapes']} shapes of {one['test']['uri']}, fitted on {one['train']['shapes']} of "
            f"{one['train']['uri']}; {one['classes']} classes{left_out}"
        )
    return "\n".join(lines)


def _cells(texts: Sequence[str], width: int) -> str:
    return "".join(f"{text:>{width}}" for text in texts)
