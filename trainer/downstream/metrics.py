"""Accuracy of classes, and intersection over union of parts as ShapeNetPart is scored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.errors import EvaluationError

__all__ = [
    "PartScores",
    "check_categories",
    "mean_class_accuracy",
    "overall_accuracy",
    "part_scores",
    "parts_of_categories",
    "predict_parts",
    "shape_ious",
]


def overall_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of shapes that are named rightly: [n] and [n] whole numbers -> 0..1. Raises ValueError for none."""
    _check_pairs(predicted, labels)
    return float(np.mean(predicted == labels))


def mean_class_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that have shapes of the share of each that is named rightly. Arguments as above."""
    _check_pairs(predicted, labels)
    return float(np.mean([np.mean(predicted[labels == label] == label) for label in np.unique(labels)]))


@dataclass(frozen=True, kw_only=True)
class PartScores:
    """Part segmentation scores; all 0..1.

    instance    mean over shapes of the shape's IoU
    classes     mean over categories of the mean over their shapes
    categories  that mean of each category, by name
    accuracy    share of points that are labelled correctly
    part_recall  mean recall of points over the parts that occur
    """

    instance: float
    classes: float
    categories: dict[str, float]
    accuracy: float
    part_recall: float


def parts_of_categories(label_names: Sequence[str], part_names: Sequence[str]) -> list[np.ndarray]:
    """For each category the numbers of its parts, which are named ``category/part`` and are its own.

    Raises EvaluationError for a category without parts, and a part of no category.
    """
    owner = {name: label for label, name in enumerate(label_names)}
    found: list[list[int]] = [[] for _ in label_names]
    for number, name in enumerate(part_names):
        category = name.rpartition("/")[0]
        if category not in owner:
            raise EvaluationError(
                f"part {name!r} belongs to none of the categories {', '.join(label_names)[:80]}; parts are named "
                "category/part"
            )
        found[owner[category]].append(number)
    for name, numbers in zip(label_names, found, strict=True):
        if not numbers:
            raise EvaluationError(f"category {name!r} has no parts; every category needs parts named {name}/...")
    return [np.array(numbers) for numbers in found]


def check_categories(categories: np.ndarray, label_names: Sequence[str]) -> None:
    """Raise EvaluationError naming the categories [C] of which no shape is: the mean over them is not defined."""
    held = set(categories.tolist())
    empty = [name for label, name in enumerate(label_names) if label not in held]
    if empty:
        raise EvaluationError(
            f"no shape of {', '.join(empty)}, so the mean over categories is undefined. Score a split that has all "
            "categories."
        )


def predict_parts(scores: np.ndarray, categories: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Predict each point's part: the largest score among the parts of its shape's category.

    scores      [n, N, P] float.   categories  [n] whole numbers.   parts  as of `parts_of_categories`.
    ->          [n, N] int64; ties go to the lowest number.
    """
    predicted = np.empty(scores.shape[:2], np.int64)
    for row, category in enumerate(categories.tolist()):
        own = parts[category]
        predicted[row] = own[scores[row][:, own].argmax(axis=1)]
    return predicted


def part_scores(
    predicted: np.ndarray,
    truth: np.ndarray,
    categories: np.ndarray,
    *,
    label_names: Sequence[str],
    parts: Sequence[np.ndarray],
) -> PartScores:
    """Intersection over union of parts, averaged in both ways of the field.

    predicted, truth  [n, N] whole numbers of parts.   categories  [n] of the shapes.   parts  of each category.

    A shape's IoU is the mean over all parts of its category; a part that is neither in the truth nor predicted counts
    as 1, and one that is predicted and absent as 0. Raises EvaluationError for a category without a shape (its mean is
    not defined) and for a part of another category, ValueError for shapes of arrays. Source: PointNet++ (Qi et al.
    2017).
    """
    if predicted.shape != truth.shape or truth.ndim != 2 or categories.shape != truth.shape[:1] or not truth.size:
        raise ValueError(
            f"predicted {predicted.shape}, truth {truth.shape}, categories {categories.shape}; "
            "expected [n, N] twice, [n]"
        )
    check_categories(categories, label_names)
    for row, category in enumerate(categories.tolist()):
        for what, numbers in (("true", truth[row]), ("predicted", predicted[row])):
            if not np.isin(numbers, parts[category]).all():
                raise EvaluationError(
                    f"shape {row} of category {label_names[category]!r} has a {what} part of another category"
                )
    whole = shape_ious(predicted, truth, categories, parts=parts)
    means = {name: float(whole[categories == label].mean()) for label, name in enumerate(label_names)}
    return PartScores(
        instance=float(whole.mean()),
        classes=float(np.mean(list(means.values()))),
        categories=means,
        accuracy=float(np.mean(predicted == truth)),
        part_recall=mean_class_accuracy(predicted.reshape(-1), truth.reshape(-1)),
    )


def shape_ious(
    predicted: np.ndarray, truth: np.ndarray, categories: np.ndarray, *, parts: Sequence[np.ndarray]
) -> np.ndarray:
    """Each shape's IoU, the mean over all parts of its category. Arguments as above -> [n] float64, 0..1."""
    whole = np.empty(len(truth))
    for row, category in enumerate(categories.tolist()):
        own = parts[category]
        true, found = truth[row] == own[:, None], predicted[row] == own[:, None]  # [parts, N]
        union = (true | found).sum(axis=1)
        whole[row] = np.mean(np.where(union == 0, 1.0, (true & found).sum(axis=1) / np.maximum(union, 1)))
    return whole


def _check_pairs(predicted: np.ndarray, labels: np.ndarray) -> None:
    if predicted.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(f"predicted {predicted.shape}, labels {labels.shape}; expected [n] twice, n >= 1")
