"""Linear classifiers on frozen features: an SVM by two protocols that must not be mixed in one table, and logistic
regression by the first of them, as a score or as the layer to begin fine-tuning with.

"cross-validated" is unbiased: nothing is chosen on the test split. "reference" follows the field's habit and only
serves comparison with published numbers: raw features and a C that was once tuned for one data set.
"""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from trainer.errors import EvaluationError

__all__ = [
    "LAYER_FITS",
    "LinearLayer",
    "SvmScore",
    "fits",
    "fitted_layer",
    "fold_numbers",
    "linear_svm",
    "logistic_regression",
    "majority_share",
]

logger = logging.getLogger(__name__)

LAYER_GRID, LAYER_FOLDS = (0.01, 0.1, 1.0, 10.0, 100.0), 3  # of C, in a layer to begin fine-tuning with
STEPS = 2000  # of L-BFGS, far beyond what the fits of one data set take
LAYER_FITS = len(LAYER_GRID) * LAYER_FOLDS + 1
GRAM_LIMIT = 12_000  # training shapes up to which one float64 Gram matrix (1.2 GB at the limit) serves every fit


@dataclass(frozen=True, kw_only=True)
class SvmScore:
    """One fit of the SVM, or of logistic regression.

    accuracy     share of the test shapes that are classified correctly, 0..1
    c            the C that was used
    validation   cross-validated accuracy on the training split at that C; None where C was given
    predicted    [n] labels of the test shapes as the fit says them
    """

    accuracy: float
    c: float
    validation: float | None
    predicted: np.ndarray = field(repr=False, compare=False)


class LinearLayer(NamedTuple):
    """Logits of classes from raw features: features @ weight.T + bias.

    weight  [classes, d] float64;  bias  [classes] float64
    c, validation  as in SvmScore
    """

    weight: np.ndarray
    bias: np.ndarray
    c: float
    validation: float


def linear_svm(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    protocol: Literal["cross-validated", "reference"] = "cross-validated",
    grid: Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0),
    folds: int = 3,
    seed: int = 0,
    c: float = 0.01,
    progress: Callable[[int], None] | None = None,
) -> SvmScore:
    """Fit a linear SVM on the training split and score it on the test split.

    *_features  [n, d] any float dtype, finite.   *_labels  [n] integers; every test label occurs in training.
    protocol    "cross-validated": features standardised by the training split and divided by sqrt(d), so that one grid
                suits every d; C is the smallest with the best mean accuracy over `folds` stratified folds drawn by
                `seed`. "reference": raw features and `c`. The other protocol's arguments are ignored.
    progress    is called with 1 for every fit, `fits` of them in all.

    One-vs-one libsvm (scikit-learn's SVC), deterministic. Raises ValueError for shapes, EvaluationError for what cannot
    be fitted. Source of the second protocol: the reference's evaluation, SVC(kernel="linear", C).
    """
    x, y, x_test, y_test = _checked(train_features, train_labels, test_features, test_labels)
    if protocol == "reference":
        model = _Svm(x, y, progress)
        return _score(model.predict(model.everything, c, x_test), y_test, c, None)
    if protocol != "cross-validated":
        raise ValueError(f"protocol is {protocol!r}; expected 'cross-validated' or 'reference'")
    x, x_test = _standardised(x, x_test)
    return _cross_validated(_Svm(x, y, progress), x_test, y_test, grid, folds, seed)


def fits(protocol: Literal["cross-validated", "reference"], *, grid: Sequence[float], folds: int) -> int:
    """Return how many fits one call of `linear_svm` makes, at most."""
    return 1 if protocol == "reference" else len(grid) * folds + 1


def logistic_regression(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    grid: Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0),
    folds: int = 3,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> SvmScore:
    """Fit multinomial logistic regression with an L2 penalty, and score it: `linear_svm`'s first protocol, its C and
    arguments. scikit-learn's LogisticRegression, L-BFGS; deterministic. Raises as `linear_svm` does.
    """
    x, y, x_test, y_test = _checked(train_features, train_labels, test_features, test_labels)
    x, x_test = _standardised(x, x_test)
    span = _span(x)
    return _cross_validated(_Logistic(x @ span.T, y, progress), x_test @ span.T, y_test, grid, folds, seed)


def fitted_layer(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    grid: Sequence[float] = LAYER_GRID,
    folds: int = LAYER_FOLDS,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> LinearLayer:
    """Fit `logistic_regression` on all shapes, and return it as a layer on features as they are.

    features  [n, d] any float dtype, finite.   labels  [n] integers in 0..classes-1; a class that does not occur gets
    weights of 0 and a bias below all others.   Other arguments, and errors, as of `logistic_regression`.
    """
    x, y, _, _ = _checked(features, labels, features, labels)
    mean, scale = _moments(x)
    x = (x - mean) / scale
    span = _span(x)
    fit = _Logistic(x @ span.T, y, progress)
    c, validation = _chosen(fit, grid, folds, seed)
    model = fit.model(fit.everything, c)
    if progress is not None:
        progress(1)
    found, start = model.coef_ @ span / scale, model.intercept_
    if len(found) == 1:  # of two classes scikit-learn keeps the difference of their logits
        found, start = np.concatenate((-found, found)) / 2, np.concatenate((-start, start)) / 2
    start = start - found @ mean
    absent = start.min() - np.abs(x @ span.T @ model.coef_.T).max() - 1
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, absent)
    weight[model.classes_], bias[model.classes_] = found, start
    return LinearLayer(weight, bias, c, validation)


def majority_share(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Return the test accuracy of always answering the training split's most frequent label (lowest at a tie)."""
    values, counts = np.unique(train_labels, return_counts=True)
    return float(np.mean(test_labels == values[counts.argmax()]))


def fold_numbers(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Assign each shape a fold, [n] int64 in 0..folds-1: random within each label, with sizes as equal as possible.

    A label with fewer shapes than folds is simply absent from some folds.
    """
    rng = np.random.default_rng(seed)
    fold = np.empty(len(labels), dtype=np.int64)
    offset = 0  # carried from label to label, so that many rare labels do not all fall into fold 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        fold[members] = (np.arange(len(members)) + offset) % folds
        offset += len(members)
    return fold


def _standardised(x: np.ndarray, x_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, scale = _moments(x)
    return (x - mean) / scale, (x_test - mean) / scale


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and divisor of each feature."""
    mean, spread = x.mean(axis=0), x.std(axis=0)
    # A constant feature carries no information; dividing by 1 leaves it at 0 instead of amplifying its rounding.
    return mean, np.where(spread > 1e-12 * (1 + np.abs(mean)), spread, 1.0) * np.sqrt(x.shape[1])


def _span(x: np.ndarray) -> np.ndarray:
    """Rows that span the training shapes x [n, d], or the identity where there are no fewer than dimensions.

    The solution of a penalised fit lies in that span, and in its coordinates the problem is the same one.
    """
    return np.linalg.svd(x, full_matrices=False)[2] if len(x) < x.shape[1] else np.eye(x.shape[1])


def _cross_validated(
    model: "_Fits", x_test: np.ndarray, y_test: np.ndarray, grid: Sequence[float], folds: int, seed: int
) -> SvmScore:
    """Choose C on the training split, then fit on all of it."""
    c, validation = _chosen(model, grid, folds, seed)
    return _score(model.predict(model.everything, c, x_test), y_test, c, validation)


def _chosen(model: "_Fits", grid: Sequence[float], folds: int, seed: int) -> tuple[float, float]:
    """The smallest C with the best cross-validated accuracy, and that accuracy."""
    validation = _cross_validate(model, model.y, grid, folds, seed)
    best = max(range(len(grid)), key=lambda i: (validation[i], -grid[i]))
    return grid[best], validation[best]


class _Fits(ABC):
    """Fits on parts of one training set."""

    def __init__(self, x: np.ndarray, y: np.ndarray, progress: Callable[[int], None] | None):
        self.x, self.y, self._progress = x, y, progress
        self.everything = np.arange(len(x))

    def accuracy(self, part: np.ndarray, c: float, x_test: np.ndarray, y_test: np.ndarray) -> float:
        """Return the accuracy on (x_test, y_test) of what is fitted on the rows `part`."""
        return float(np.mean(self.predict(part, c, x_test) == y_test))

    def predict(self, part: np.ndarray, c: float, x_test: np.ndarray) -> Any:
        """Return what the fit on the rows `part` says of x_test."""
        predicted = self._fit_and_predict(part, c, x_test)
        if self._progress is not None:
            self._progress(1)
        return predicted

    @abstractmethod
    def _fit_and_predict(self, part: np.ndarray, c: float, x_test: np.ndarray) -> Any:
        """Fit on the rows `part` with this C, and predict the labels of x_test."""


class _Logistic(_Fits):
    def _fit_and_predict(self, part: np.ndarray, c: float, x_test: np.ndarray) -> Any:
        return self.model(part, c).predict(x_test)

    def model(self, part: np.ndarray, c: float) -> Any:
        """Return scikit-learn's LogisticRegression, fitted on the rows `part`."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ConvergenceWarning)
            model = LogisticRegression(C=c, max_iter=STEPS).fit(self.x[part], self.y[part])
        if any(issubclass(each.category, ConvergenceWarning) for each in told):
            logger.warning("logistic regression with C = %g had not converged after %d steps", c, STEPS)
        return model


class _Svm(_Fits):
    """They share one Gram matrix, which makes them 3 to 5 times faster."""

    def __init__(self, x: np.ndarray, y: np.ndarray, progress: Callable[[int], None] | None):
        super().__init__(x, y, progress)
        self.gram = x @ x.T if len(x) <= GRAM_LIMIT else None

    def _fit_and_predict(self, part: np.ndarray, c: float, x_test: np.ndarray) -> Any:
        from sklearn.svm import SVC

        with warnings.catch_warnings():
            # Few shapes of many classes look like a regression to scikit-learn; labels are what they are here.
            warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
            if self.gram is None:
                return SVC(kernel="linear", C=c).fit(self.x[part], self.y[part]).predict(x_test)
            model = SVC(kernel="precomputed", C=c).fit(self.gram[np.ix_(part, part)], self.y[part])
        return model.predict(x_test @ self.x[part].T)


def _score(predicted: np.ndarray, labels: np.ndarray, c: float, validation: float | None) -> SvmScore:
    return SvmScore(accuracy=float(np.mean(predicted == labels)), c=c, validation=validation, predicted=predicted)


def _cross_validate(model: _Fits, labels: np.ndarray, grid: Sequence[float], folds: int, seed: int) -> list[float]:
    """Return, for each C, the share of the training shapes classified correctly by fits that did not see them."""
    fold = fold_numbers(labels, folds, seed)
    right = np.zeros(len(grid))
    for k in range(folds):
        inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if len(outside) == 0:
            continue
        if len(np.unique(labels[inside])) < 2:
            raise EvaluationError(
                f"{len(labels)} training shapes in {folds} folds leave a fold whose fit sees one class; expected at "
                "least two. Use more labelled shapes, or fewer folds (evaluation.folds)."
            )
        for i, c in enumerate(grid):
            right[i] += len(outside) * model.accuracy(inside, c, model.x[outside], labels[outside])
    return [float(value) for value in right / len(labels)]


def _checked(*arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, y, x_test, y_test = (np.asarray(array) for array in arrays)
    for name, features, labels in (("train", x, y), ("test", x_test, y_test)):
        if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
            raise ValueError(
                f"{name} features have shape {features.shape}, labels {labels.shape}; expected [n, d] and [n], n >= 1"
            )
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            raise EvaluationError(
                f"features of {len(bad)} of {len(features)} {name} shapes are not finite, first those of shape "
                f"{bad[0]}. The weights of the encoder are probably not finite either."
            )
    if x.shape[1] != x_test.shape[1]:
        raise ValueError(
            f"train features have {x.shape[1]} columns and test features {x_test.shape[1]}; expected the same"
        )
    if len(np.unique(y)) < 2:
        raise EvaluationError(f"all {len(y)} training shapes have label {y[0]}; expected at least two classes")
    unknown = np.setdiff1d(y_test, y)
    if len(unknown):
        raise EvaluationError(
            f"labels {unknown.tolist()} of the test shapes never occur among the {len(y)} training shapes. "
            "Evaluate on splits of one labelled corpus."
        )
    return x.astype(np.float64), y, x_test.astype(np.float64), y_test
