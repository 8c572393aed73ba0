"""What makes a score honest: nothing of the test split reaches a choice, and every seed draws what it names anew."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.commands import run
from tests.support.models import tiny_model
from tests.support.training import clouds, train
from trainer.config import EvaluationConfig
from trainer.downstream import comparison as compare_module
from trainer.downstream import linear_svm as svm
from trainer.downstream.baselines.coordinates import coordinate_statistics
from trainer.downstream.comparison import Evaluator, compare
from trainer.downstream.linear_svm import fold_numbers, linear_svm

PROTOCOLS = ("cross-validated", "reference")
GRID = (0.01, 0.1, 1.0, 10.0, 100.0)


def overlapping(per_class: int, seed: int, *, classes: int = 3, noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Classes that no C tells apart, so that every C has a score of its own."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(classes), per_class)
    centres = np.random.default_rng(99).normal(size=(classes, 8))
    return (centres[labels] + noise * rng.normal(size=(len(labels), 8))).astype(np.float32), labels


# -- the SVM -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_test_shapes_score_does_not_depend_on_the_other_test_shapes(protocol: Any) -> None:
    """Whatever is centred, scaled or chosen by the test split makes it depend on them."""
    x, y = overlapping(30, 0)
    x_test, y_test = overlapping(12, 1)
    x_test = x_test * 3 + 1  # whoever centres by the test split loses this
    whole = linear_svm(x, y, x_test, y_test, protocol=protocol)
    alone = [
        linear_svm(x, y, x_test[i : i + 1], y_test[i : i + 1], protocol=protocol).accuracy for i in range(len(y_test))
    ]
    assert 0 < whole.accuracy < 1
    assert whole.accuracy == pytest.approx(np.mean(alone), abs=1e-12)
    half = linear_svm(x, y, x_test[::2], y_test[::2], protocol=protocol)
    assert half.accuracy == pytest.approx(np.mean(alone[::2]), abs=1e-12)


def test_nothing_of_the_test_split_reaches_the_choice_of_c() -> None:
    """The same C and validation score under test splits that each like another C best."""
    x, y = overlapping(30, 0)
    chosen, best = set(), set()
    for seed in range(8):
        x_test, y_test = overlapping(5, 100 + seed)
        score = linear_svm(x, y, x_test, y_test, grid=GRID)
        chosen.add((score.c, score.validation))
        by_test = [linear_svm(x, y, x_test, y_test, grid=(c,)).accuracy for c in GRID]
        best.add(GRID[int(np.argmax(by_test))])
    assert len(best) > 1, "test splits that agree on C say nothing"
    assert len(chosen) == 1


def test_the_score_is_that_of_the_chosen_c_fitted_on_the_whole_training_split() -> None:
    from sklearn.svm import SVC

    x, y = overlapping(20, 0)
    x_test, y_test = overlapping(60, 1)
    score = linear_svm(x, y, x_test, y_test, grid=GRID)
    wide = x.astype(np.float64)
    mean, scale = wide.mean(0), wide.std(0) * np.sqrt(8)
    model = SVC(kernel="linear", C=score.c).fit((wide - mean) / scale, y)
    assert score.accuracy == model.score((x_test - mean) / scale, y_test)


def test_cross_validation_scores_shapes_that_its_fit_did_not_see() -> None:
    """More features than shapes and labels by chance: a fit knows what it saw by heart, and nothing else."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 200)).astype(np.float32), rng.integers(0, 2, 60)
    score = linear_svm(x, y, x, y, grid=(100.0,))
    assert score.accuracy == 1.0
    assert score.validation is not None
    assert score.validation < 0.75


def test_every_shape_is_validated_once_whatever_the_folds() -> None:
    for folds in (2, 3, 5):
        for seed in range(3):
            fold = fold_numbers(np.arange(47) % 4, folds, seed)
            assert set(fold.tolist()) == set(range(folds))


# -- comparisons -------------------------------------------------------------------------------------------------------


def labelled(path: Path, *, test: str, seed: int = 3) -> EvaluationConfig:
    """Flat (0) and upright (1) shapes that a feature tells apart now and then; one training split, several test splits.

    test  "rare": most test shapes are upright, most training shapes flat; "odd": other shapes, stretched and shifted
    """
    points = clouds(60, points=128, seed=seed)
    label = np.arange(60) % 3 // 2  # 40 flat, 20 upright
    points[label == 0, :, 2] *= 0.5
    if test == "rare":
        label[40:] = 1 - label[40:]
    elif test == "odd":
        points[40:] = clouds(20, points=128, seed=17) * np.float32([1, 0.2, 0.5])
    split = np.array(["train"] * 40 + ["test"] * 20)
    ids = np.array([f"s{i}" for i in range(60)])
    np.savez(path, points=points, label=label, label_names=np.array(["flat", "upright"]), split=split, ids=ids)
    return EvaluationConfig(
        train=f"npz:{path}?split=train",
        test=f"npz:{path}?split=test",
        stored_points=128,
        points=64,
        seeds=3,
        batch_size=64,
    )


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EvaluationConfig]:
    folder = tmp_path_factory.mktemp("splits")
    return {test: labelled(folder / f"{test}.npz", test=test) for test in ("plain", "rare", "odd")}


def test_nothing_of_the_test_split_reaches_a_row_but_its_accuracy(configs: dict[str, EvaluationConfig]) -> None:
    found = {name: compare({"x": coordinate_statistics}, config) for name, config in configs.items()}
    assert found["plain"].rows["x"].accuracy != found["odd"].rows["x"].accuracy
    assert len({result.rows["x"].c for result in found.values()}) == 1
    assert len({(result.classes, result.rows["x"].dimensions) for result in found.values()}) == 1


def test_the_untrained_baseline_is_the_same_encoder_whatever_the_test_split(
    configs: dict[str, EvaluationConfig],
) -> None:
    """Its batch norms are settled on training shapes."""
    probe = clouds(5, points=64, seed=8)
    features = [
        Evaluator(config).baselines(tiny_model(), seed=4, device=torch.device("cpu"))["untrained"](probe)
        for config in configs.values()
    ]
    assert all(np.array_equal(features[0], other) for other in features[1:])


def test_the_untrained_baseline_has_the_first_weights_of_the_runs_seed(configs: dict[str, EvaluationConfig]) -> None:
    """And nothing of the model that was trained."""
    probe = clouds(5, points=64, seed=8)
    evaluator = Evaluator(configs["plain"])

    def untrained(weights: int, seed: int) -> np.ndarray:
        found = evaluator.baselines(tiny_model(seed=weights), seed=seed, device=torch.device("cpu"))
        return found["untrained"](probe)

    assert np.array_equal(untrained(1, 4), untrained(2, 4))
    assert not np.allclose(untrained(1, 4), untrained(1, 5), atol=1e-3)


def test_chance_is_what_the_training_split_suggests(configs: dict[str, EvaluationConfig]) -> None:
    """Where most test shapes are of the class that training rarely saw, chance is below a half."""
    result = compare({"x": coordinate_statistics}, configs["rare"])
    test = Evaluator(configs["rare"]).test.labels
    assert np.mean(test == 1) > 0.6
    assert result.chance == np.mean(test == 0)


def test_every_seed_draws_points_and_folds_of_its_own(
    configs: dict[str, EvaluationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were they the same, the spread over seeds would be too small, or zero."""
    drawn: list[np.ndarray] = []
    folds: list[np.ndarray] = []

    def encoder(points: np.ndarray) -> np.ndarray:
        drawn.append(points)
        return coordinate_statistics(points)

    def noting(*arguments: Any) -> np.ndarray:
        folds.append(fold_numbers(*arguments))
        return folds[-1]

    monkeypatch.setattr(svm, "fold_numbers", noting)
    result = compare({"x": encoder}, configs["plain"])
    assert len(folds) == 3
    assert [len(points) for points in drawn] == [40, 20] * 3
    for split in (drawn[::2], drawn[1::2], folds):
        for one, other in combinations(split, 2):
            assert (one != other).reshape(len(one), -1).any(axis=1).mean() > 0.4
    row = result.rows["x"]
    assert row.accuracy == np.mean(row.scores)
    assert row.spread == np.std(row.scores)
    assert len(set(row.scores)) > 1
    assert row.spread > 0


def test_the_configured_protocol_is_the_one_that_scores(
    configs: dict[str, EvaluationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    given: list[dict[str, Any]] = []

    def noting(*arrays: np.ndarray, **named: Any) -> Any:
        given.append(named)
        return linear_svm(*arrays, **named)

    monkeypatch.setattr(compare_module, "linear_svm", noting)
    compare({"x": coordinate_statistics}, replace(configs["plain"], grid=(0.5,), folds=5))
    compare({"x": coordinate_statistics}, replace(configs["plain"], protocol="reference", reference_c=0.3))
    assert [(named["protocol"], named["seed"], named["grid"], named["folds"]) for named in given[:3]] == [
        ("cross-validated", seed, (0.5,), 5) for seed in range(3)
    ]
    assert [(named["protocol"], named["c"]) for named in given[3:]] == [("reference", 0.3)]


# -- a run's own evaluation --------------------------------------------------------------------------------------------


def test_a_run_hands_its_seed_to_the_untrained_baseline_and_the_command_finds_the_same(
    cache: Any, configs: dict[str, EvaluationConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configs["plain"]
    report = train(cache, tmp_path, epochs=1, seed=11, evaluation=config)
    assert report.evaluation is not None
    rows = report.evaluation["rows"]
    evaluator = Evaluator(config)
    baselines = evaluator.baselines(tiny_model(), seed=11, device=torch.device("cpu"))
    assert evaluator.compare(baselines).to_json()["rows"] == {name: rows[name] for name in ("coordinates", "untrained")}
    outcome = run(
        capsys, "evaluate", tmp_path, "--train", config.train, "--test", config.test, "--stored-points", "128",
        "--points", "64", "--seeds", "3", "--device", "cpu", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["rows"] == rows
