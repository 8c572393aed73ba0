"""Scores of a teacher on labelled shapes, compared with random teachers: linear probes and zero-shot naming."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.config import ProjectionConfig, TeacherConfig
    from pipeline.teacher.tower import Teacher
    from trainer.downstream.clouds import LabelledClouds

__all__ = ["score_teacher", "scores_table"]

BATCH = 16  # shapes projected at a time


def score_teacher(
    config: "TeacherConfig",
    projection: "ProjectionConfig",
    corpora: Sequence[tuple[str, str, str]],
    *,
    points: int,
    seeds: int,
    any_normalisation: bool = False,
) -> dict[str, Any]:
    """Score a teacher and `seeds` random ones of its architecture.

    projection         how shapes are rendered; its image_side and patch_side are replaced by the teacher's.
    corpora            (name, train URI, test URI) of labelled corpora.
    any_normalisation  replace a normalisation that a timm teacher does not know by the one it knows.
    ->       {"teacher": identity, "projection", "points", "seeds", "corpora": {name: {"train", "test", "classes",
             "chance", "rows": {"teacher" | "random": {probe: {"accuracy", "spread", "scores"}}}, "zero_shot"}}}
             probes: "class", the views' class features side by side, and "patches", the mean patch feature of each.

    Raises TeacherError, also for a teacher that knows several normalisations or another one, EvaluationError and
    CorpusError.
    """
    from pipeline.errors import TeacherError
    from pipeline.teacher.tower import load_teacher
    from trainer.downstream.clouds import check_corpora, read_clouds

    for _, train_uri, test_uri in corpora:
        check_corpora(train_uri, test_uri, points=points)
    known = load_teacher(config)
    projection = replace(projection, image_side=known.image_side, patch_side=known.patch_side)
    if known.normalisations and any_normalisation:
        if len(known.normalisations) > 1:
            raise TeacherError(
                f"{config.weights}: published weights of {config.architecture} were trained with normalisation "
                f"{' or '.join(known.normalisations)}; the file does not say with which\n"
                "  Set it with --normalisation."
            )
        projection = replace(projection, normalisation=known.normalisations[0])  # type: ignore[arg-type]
    if known.normalisations and projection.normalisation not in known.normalisations:
        raise TeacherError(
            f"normalisation {projection.normalisation} is not the {' or '.join(known.normalisations)} that "
            f"{config.architecture} was trained with"
        )
    words = _reader(config)
    guessing = [
        load_teacher(replace(config, pretrained="random", weights="", seed=seed, quickgelu=_gelu(known)))
        for seed in range(seeds)
    ]
    result: dict[str, Any] = {
        "teacher": known.identity(),
        "projection": asdict(projection),
        "points": points,
        "seeds": seeds,
        "corpora": {},
    }
    for name, train_uri, test_uri in corpora:
        train, test = read_clouds(train_uri, points=points), read_clouds(test_uri, points=points)
        kept = _look(known, projection, train, name), _look(known, projection, test, name)
        rows = {"teacher": _probes([kept] * seeds, train, test)}
        drawn = [tuple(_look(each, projection, part, f"{name}, random") for part in (train, test)) for each in guessing]
        rows["random"] = _probes(drawn, train, test)
        result["corpora"][name] = {
            "train": {"uri": train.uri, "shapes": len(train)},
            "test": {"uri": test.uri, "shapes": len(test)},
            "classes": len(train.label_names),
            "chance": _chance(train, test),
            "rows": rows,
            "zero_shot": _zero_shot(words, kept[1]["views"], test),
        }
    return result


def _gelu(known: "Teacher") -> Any:
    found = known.identity().get("quickgelu")  # timm's architectures say it by their names
    return "auto" if found is None else "on" if found else "off"


def _reader(config: "TeacherConfig") -> Any:
    """Load the text tower and its vocabulary, if the weights file has them in our layout."""
    from pipeline.teacher.tiny_clip.files import load_clip
    from pipeline.teacher.tower import embedded_weights

    path = config.weights or (embedded_weights(config.architecture) if config.pretrained == "embedded" else "")
    return load_clip(Path(path)) if str(path).endswith(".safetensors") else None


def _look(
    teacher: "Teacher", projection: "ProjectionConfig", clouds: "LabelledClouds", title: str
) -> dict[str, "Tensor"]:
    """Compute features of every cloud: "views" [n, V, C], the class token's; "class" and "patches" [n, V * C]."""
    import torch

    from cli.show.progress import Progress
    from pipeline.views import VIEWS, render_views

    views, patches = [], []
    with Progress(f"looking ({title})", len(clouds), unit="shapes") as progress:
        for start in range(0, len(clouds), BATCH):
            images = render_views(torch.from_numpy(clouds.points[start : start + BATCH]), projection).images
            tokens = teacher.encode_tokens(images).cpu().unflatten(0, (-1, VIEWS))
            views.append(tokens[:, :, 0])
            patches.append(tokens[:, :, 1:].mean(dim=2))
            progress.update(min(start + BATCH, len(clouds)))
    seen = torch.cat(views)
    return {"views": seen, "class": seen.flatten(1), "patches": torch.cat(patches).flatten(1)}


def _probes(
    features: Sequence[tuple[Mapping[str, "Tensor"], ...]],
    train: "LabelledClouds",
    test: "LabelledClouds",
) -> dict[str, Any]:
    """Fit a cross-validated linear SVM per seed on each kind of feature."""
    from trainer.downstream.linear_svm import linear_svm

    rows = {}
    for kind in ("class", "patches"):
        scores = [
            linear_svm(of_train[kind].numpy(), train.labels, of_test[kind].numpy(), test.labels, seed=seed).accuracy
            for seed, (of_train, of_test) in enumerate(features)
        ]
        rows[kind] = {"accuracy": float(np.mean(scores)), "spread": float(np.std(scores)), "scores": scores}
    return rows


def _chance(train: "LabelledClouds", test: "LabelledClouds") -> float:
    from trainer.downstream.linear_svm import majority_share

    return majority_share(train.labels, test.labels)


def _zero_shot(words: Any, views: "Tensor", test: "LabelledClouds") -> dict[str, Any] | None:
    """Compute the accuracy on shapes of classes whose names the vocabulary has, choosing among these classes."""
    from pipeline.teacher.tiny_clip.zero_shot import class_directions, classify

    if words is None:
        return None
    clip, vocabulary = words
    directions, known = class_directions(clip, vocabulary, test.label_names)
    of_known = np.isin(test.labels, known)
    if len(known) < 2 or not of_known.any():
        return {"classes": [], "shapes": 0, "accuracy": None, "chance": None}
    answers = np.asarray(known)[classify(views[of_known], directions)]
    labels = test.labels[of_known]
    return {
        "classes": [test.label_names[index] for index in known],
        "shapes": int(of_known.sum()),
        "accuracy": float(np.mean(answers == labels)),
        "chance": float(np.bincount(labels).max() / len(labels)),
    }


def scores_table(result: Mapping[str, Any]) -> str:
    """Format the scores as text."""
    identity = result["teacher"]
    lines = [
        f"teacher {identity['architecture']}, weights {identity['weights_sha256'][:12]}; {result['points']} points, "
        f"linear SVM on frozen features, {result['seeds']} seeds",
        f"  {'corpus':<18}{'largest class':>14}  {'features':<9}{'random teachers':>17}{'this teacher':>16}",
    ]
    for name, found in result["corpora"].items():
        for kind in ("class", "patches"):
            first = f"  {name:<18}{100 * found['chance']:>13.1f}%" if kind == "class" else " " * 34
            cells = [
                f"{100 * found['rows'][who][kind]['accuracy']:.1f}% ± {100 * found['rows'][who][kind]['spread']:.1f}"
                for who in ("random", "teacher")
            ]
            lines.append(f"{first}  {kind:<9}{cells[0]:>17}{cells[1]:>16}")
    for name, found in result["corpora"].items():
        zero = found["zero_shot"]
        if zero is None:
            lines.append(
                "zero-shot: not measured; this weights file has no text tower in the layout of `i2p teacher train`"
            )
            break
        if not zero["shapes"]:
            lines.append(f"zero-shot {name}: no two class names are in the teacher's vocabulary")
            continue
        lines.append(
            f"zero-shot {name}: {100 * zero['accuracy']:.1f}% of {zero['shapes']} shapes among "
            f"{len(zero['classes'])} of {found['classes']} classes (largest {100 * zero['chance']:.1f}%)"
        )
    return "\n".join(lines)
