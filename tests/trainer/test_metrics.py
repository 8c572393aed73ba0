"""Accuracy and intersection over union, on numbers that were worked out by hand."""

import numpy as np
import pytest

from trainer.downstream.metrics import (
    mean_class_accuracy,
    overall_accuracy,
    part_scores,
    parts_of_categories,
    predict_parts,
)
from trainer.errors import EvaluationError

NAMES = ("Skateboard", "Table")
PARTS = parts_of_categories(NAMES, ("Skateboard/0", "Skateboard/1", "Skateboard/2", "Table/0", "Table/1"))


def score(predicted, truth, categories, names=NAMES, parts=PARTS):
    return part_scores(
        np.array(predicted), np.array(truth), np.array(categories), label_names=names, parts=parts
    )  # fmt: skip


def test_overall_and_mean_class_accuracy_differ_where_classes_do():
    labels, predicted = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 0, 0, 2, 2, 0])
    assert overall_accuracy(predicted, labels) == 4 / 6
    assert mean_class_accuracy(predicted, labels) == (3 / 4 + 1 / 2) / 2  # class 1 has no shape and no say
    with pytest.raises(ValueError, match=r"predicted \(2,\), labels \(0,\)"):
        overall_accuracy(predicted[:2], labels[:0])


def test_a_point_of_an_absent_part_costs_a_third():
    """The field's example: a skateboard of 2,598 points, all of part 1, one of them predicted as part 0."""
    truth = np.full((1, 2598), 1)
    predicted = truth.copy()
    predicted[0, 77] = 0
    found = score(predicted, truth, [0], NAMES[:1], PARTS[:1])
    assert found.instance == pytest.approx((0 + 2597 / 2598 + 1) / 3, abs=1e-12)
    assert round(found.instance, 5) == 0.66654
    assert found.accuracy == 2597 / 2598


def test_an_absent_part_that_is_not_predicted_counts_as_one():
    found = score([[1, 1, 2, 2], [3, 3, 3, 3]], [[1, 1, 2, 2], [3, 3, 3, 3]], [0, 1])
    assert (found.instance, found.classes, found.accuracy, found.part_recall) == (1, 1, 1, 1)
    half = score([[1, 1, 1, 2], [3, 3, 3, 3]], [[1, 1, 2, 2], [3, 3, 3, 3]], [0, 1])
    skateboard = (1 + 2 / 3 + 1 / 2) / 3
    assert half.categories == {"Skateboard": pytest.approx(skateboard), "Table": 1.0}
    assert half.part_recall == (1 + 1 / 2 + 1) / 3


def test_instances_and_classes_are_averaged_apart():
    truth = [[0, 0, 1, 1]] * 3 + [[3, 3, 4, 4]]
    predicted = [[0, 0, 1, 1]] * 3 + [[3, 3, 3, 3]]
    found = score(predicted, truth, [0, 0, 0, 1])
    table = (1 / 2 + 0) / 2
    assert found.instance == (3 + table) / 4
    assert found.classes == (1 + table) / 2


def test_the_answer_lies_within_the_category():
    scores = np.zeros((2, 3, 5))
    scores[:, :, 4] = 9  # of the table
    scores[0, :, 2] = [1, 0, 1]
    assert predict_parts(scores, np.array([0, 1]), PARTS).tolist() == [[2, 0, 2], [4, 4, 4]]


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(EvaluationError, match="no shape of Table, so the mean over categories is undefined"):
        score([[0, 0]], [[0, 0]], [0])
    with pytest.raises(EvaluationError, match="shape 1 of category 'Table' has a predicted part of another"):
        score([[0, 0], [0, 3]], [[0, 0], [3, 3]], [0, 1])
    with pytest.raises(EvaluationError, match="shape 0 of category 'Skateboard' has a true part of another"):
        score([[0, 0], [3, 3]], [[0, 3], [3, 3]], [0, 1])
    with pytest.raises(ValueError, match=r"expected \[n, N\] twice, \[n\]"):
        score([[0, 0]], [[0]], [0])
    with pytest.raises(EvaluationError, match="part 'Chair/0' belongs to none of the categories"):
        parts_of_categories(NAMES, ("Skateboard/0", "Chair/0"))
    with pytest.raises(EvaluationError, match="category 'Table' has no parts"):
        parts_of_categories(NAMES, ("Skateboard/0",))
