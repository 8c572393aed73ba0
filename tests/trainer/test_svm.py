"""The linear SVM protocols, on data whose answer is known."""

from typing import Any

import numpy as np
import pytest

from trainer.downstream import linear_svm as svm
from trainer.downstream.linear_svm import (
    fitted_layer,
    fold_numbers,
    linear_svm,
    logistic_regression,
    majority_share,
)
from trainer.errors import EvaluationError


def _clusters(per_class: int, classes: int = 4, *, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    centres = np.random.default_rng(99).normal(size=(classes, 16))
    return (centres[labels] + noise * rng.normal(size=(len(labels), 16))).astype(np.float32), labels


def test_separable_classes_are_told_apart_and_shuffled_labels_are_not() -> None:
    x, y = _clusters(30, noise=0.2)
    x_test, y_test = _clusters(20, noise=0.2, seed=1)
    score = linear_svm(x, y, x_test, y_test)
    assert score.accuracy == 1.0
    assert score.validation == 1.0
    shuffled = np.random.default_rng(0).permutation(y)
    assert linear_svm(x, shuffled, x_test, y_test).accuracy < 0.5


def test_cross_validation_ignores_scale_offset_and_constant_features() -> None:
    x, y = _clusters(30, noise=1.5)
    x_test, y_test = _clusters(30, noise=1.5, seed=1)
    plain = linear_svm(x, y, x_test, y_test)
    assert 0.5 < plain.accuracy < 1
    factor, offset = 10.0 ** np.arange(-8, 8), np.full(16, 5.0)
    with_constant = np.concatenate([x * factor + offset * factor, np.full((len(x), 1), 3.0)], axis=1)
    test = np.concatenate([x_test * factor + offset * factor, np.full((len(x_test), 1), 3.0)], axis=1)
    moved = linear_svm(with_constant, y, test, y_test)
    assert moved.accuracy == pytest.approx(plain.accuracy, abs=0.03)  # sqrt(17 / 16) of C is all that differs


def test_c_comes_from_the_training_split_and_ties_go_to_the_smallest() -> None:
    x, y = _clusters(30, noise=0.1)
    x_test, y_test = _clusters(10, noise=0.1, seed=1)
    assert linear_svm(x, y, x_test, y_test, grid=(10.0, 1.0, 100.0)).c == 1.0
    # The test labels are never looked at before the score: permuting them changes nothing else.
    a = linear_svm(x, y, x_test, y_test)
    b = linear_svm(x, y, x_test, np.roll(y_test, 10))
    assert (a.c, a.validation) == (b.c, b.validation)
    assert b.accuracy == 0.0


def test_logistic_regression_is_sklearns_on_standardised_features() -> None:
    """In the span of few shapes as in all their features, C chosen on the training split alone."""
    from sklearn.linear_model import LogisticRegression

    for per_class in (3, 30):  # fewer shapes than features, and more
        x, y = _clusters(per_class, noise=1.5)
        x_test, y_test = _clusters(25, noise=1.5, seed=1)
        score = logistic_regression(x, y, x_test, y_test, folds=3, seed=2)
        x64, test64 = x.astype(np.float64), x_test.astype(np.float64)
        mean, scale = x64.mean(0), x64.std(0) * 4  # sqrt of 16 features
        fold, right = fold_numbers(y, 3, 2), {}
        for c in (0.01, 0.1, 1.0, 10.0, 100.0):
            fits = [
                LogisticRegression(C=c, max_iter=2000).fit((x64[fold != k] - mean) / scale, y[fold != k])
                for k in range(3)
            ]
            right[c] = sum(
                (fit.predict((x64[fold == k] - mean) / scale) == y[fold == k]).sum() for k, fit in enumerate(fits)
            )
        best = min(c for c in right if right[c] == max(right.values()))
        assert (score.c, score.validation) == (best, right[best] / len(y))
        whole = LogisticRegression(C=best, max_iter=2000).fit((x64 - mean) / scale, y)
        assert score.accuracy == whole.score((test64 - mean) / scale, y_test)
        assert 0.3 < score.accuracy < 1
    with pytest.raises(EvaluationError, match="all 12 training shapes have label 0"):
        logistic_regression(x[:12], np.zeros(12, int), x_test, y_test)


def test_reference_protocol_is_sklearns_svc_on_raw_features() -> None:
    from sklearn.svm import SVC

    x, y = _clusters(30, noise=2.0)
    x_test, y_test = _clusters(30, noise=2.0, seed=1)
    expected = SVC(kernel="linear", C=0.01).fit(x.astype(np.float64), y).score(x_test.astype(np.float64), y_test)
    score = linear_svm(x, y, x_test, y_test, protocol="reference", c=0.01)
    assert score.accuracy == expected
    assert (score.c, score.validation) == (0.01, None)


@pytest.mark.parametrize("protocol", ["cross-validated", "reference"])
def test_the_gram_matrix_gives_what_the_features_give(monkeypatch: pytest.MonkeyPatch, protocol: Any) -> None:
    x, y = _clusters(30, noise=2.5)
    x_test, y_test = _clusters(100, noise=2.5, seed=1)
    fast = linear_svm(x, y, x_test, y_test, protocol=protocol)
    monkeypatch.setattr(svm, "GRAM_LIMIT", 0)
    assert linear_svm(x, y, x_test, y_test, protocol=protocol) == fast


def test_folds_split_every_label_evenly() -> None:
    labels = np.array([0] * 9 + [1] * 3 + [2] * 2 + [3])
    fold = fold_numbers(labels, 3, seed=0)
    assert sorted(np.bincount(fold)) == [5, 5, 5]
    assert np.bincount(fold[labels == 0]).tolist() == [3, 3, 3]
    assert sorted(fold[labels == 1]) == [0, 1, 2]
    assert not np.array_equal(fold, fold_numbers(labels, 3, seed=1))
    assert np.array_equal(fold, fold_numbers(labels, 3, seed=0))


def test_chance_is_the_training_splits_favourite() -> None:
    assert majority_share(np.array([1, 1, 0]), np.array([0, 0, 0, 1])) == 0.25


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda a: a[0].__setitem__((3, 1), np.nan), EvaluationError, "features of 1 of 8 train shapes are not finite"),
        (lambda a: a.__setitem__(3, a[3] + 7), EvaluationError, r"labels \[7, 8\] of the test shapes never occur"),
        (
            lambda a: a.__setitem__(1, a[1] * 0),
            EvaluationError,
            "all 8 training shapes have label 0; expected at least",
        ),
        (lambda a: a.__setitem__(2, a[2][:, :5]), ValueError, "train features have 16 columns and test features 5"),
        (lambda a: a.__setitem__(1, a[1][:-1]), ValueError, r"train features have shape \(8, 16\), labels \(7,\)"),
    ],
)
def test_what_cannot_be_fitted_is_described(change: Any, error: type[Exception], text: str) -> None:
    arrays = [*_clusters(4, 2, noise=1.0), *_clusters(3, 2, noise=1.0, seed=1)]
    change(arrays)
    with pytest.raises(error, match=text):
        linear_svm(*arrays)


def test_folds_that_leave_one_class_are_refused() -> None:
    x, _ = _clusters(2, 2, noise=1.0)
    with pytest.raises(EvaluationError, match="4 training shapes in 4 folds leave a fold whose fit sees one class"):
        linear_svm(x, np.array([0, 0, 0, 1]), x, np.array([0, 0, 0, 1]), folds=4)


@pytest.mark.parametrize(("classes", "shapes", "numbers"), [(2, 40, 7), (3, 90, 11), (3, 30, 50)])
def test_a_fitted_layer_says_of_raw_features_what_logistic_regression_says(classes, shapes, numbers) -> None:
    rng = np.random.default_rng(4)
    y = np.arange(2 * shapes) % classes
    x = rng.normal(size=(2 * shapes, numbers)) * np.linspace(0.01, 30, numbers) + 5
    x[:, 0] += 0.02 * y
    x[:, 1] = 2.5  # a constant
    x[:, -1] -= 20 * y
    train, test = slice(None, shapes), slice(shapes, None)
    score = logistic_regression(x[train], y[train], x[test], y[test], seed=2)
    layer = fitted_layer(x[train], y[train], classes=classes + 2, seed=2)
    logits = x[test] @ layer.weight.T + layer.bias
    assert np.array_equal(logits.argmax(1), score.predicted)
    assert (layer.c, layer.validation) == (score.c, score.validation)
    assert layer.weight.shape == (classes + 2, numbers)
    assert layer.bias[classes:].max() < logits[:, :classes].min()  # of classes that do not occur
    assert not layer.weight[classes:].any()
    assert np.abs(layer.weight[:, 1]).max() < 1e-12
