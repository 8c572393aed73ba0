"""Comparison of several encoders on the same labelled clouds, points and folds, one row per encoder."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from trainer.checkpoints.models import load_encoder
from trainer.config import EvaluationConfig
from trainer.downstream.baselines.coordinates import coordinate_statistics
from trainer.downstream.clouds import LabelledClouds, check_classes, check_corpora, read_clouds
from trainer.downstream.features import (
    Encoder,
    ModelEncoder,
    encode,
    feature_name,
    model_encoder,
    settle_batch_norms,
)
from trainer.downstream.linear_svm import SvmScore, fits, linear_svm, logistic_regression, majority_share
from trainer.engine.watching import Count, Watch
from trainer.models.build import new_student
from trainer.models.student import Student

__all__ = ["Comparison", "Evaluator", "Row", "compare"]

SETTLING_CLOUDS = 64  # at the top level, the smallest, still thousands of values a channel


@dataclass(frozen=True, kw_only=True)
class Row:
    """Result of one encoder.

    accuracy    mean over seeds, 0..1;  spread: standard deviation over seeds (0 for one)
    scores      accuracy of each seed;  c: the C each seed used
    feature     its name: "levels" or "top" of a model, else that of the function;  dimensions: numbers in it
    """

    accuracy: float
    spread: float
    scores: tuple[float, ...]
    c: tuple[float, ...]
    feature: str
    dimensions: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of an evaluation.

    rows      name -> Row, in the order the encoders were given
    protocol, points, seeds   settings of the evaluation
    classes   with at least one training shape;  chance: accuracy of always answering the most frequent one
    train, test  uri, shapes used, shapes skipped
    logistic  rows of logistic regression by the same names; empty where it was not asked for
    """

    rows: dict[str, Row]
    protocol: str
    points: int
    seeds: int
    classes: int
    chance: float
    train: dict[str, Any]
    test: dict[str, Any]
    logistic: dict[str, Row] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON types; without `logistic` where it is empty."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        if not self.logistic:
            del plain["logistic"]
        return plain


class Evaluator:
    """The labelled clouds of a configuration, read once and used as often as needed."""

    def __init__(self, config: EvaluationConfig, *, watch: Watch | None = None):
        """Read both corpora.

        watch  told how far the reading is.

        Raises EvaluationError for unusable labels, CorpusError for one that does not open.
        """
        Count(watch, "opening the evaluation's corpora", "", 0).at(0)
        sizes = check_corpora(config.train, config.test, points=config.stored_points)
        self.config = config
        count = Count(watch, "reading", "shapes", sum(sizes))
        self.train = read_clouds(config.train, points=config.stored_points, progress=count.add)
        self.test = read_clouds(config.test, points=config.stored_points, progress=count.add)
        check_classes(self.train, self.test)  # a class may have lost its only shape to a broken file

    def rounds(self, seeds: int | None = None) -> int:
        """Return how often each encoder is scored.

        seeds  overrides the configured number. The reference protocol has no random part and always scores once.
        """
        return 1 if self.config.protocol == "reference" else seeds or self.config.seeds

    def compare(
        self,
        encoders: Mapping[str, Encoder],
        *,
        seeds: int | None = None,
        logistic: bool = False,
        watch: Watch | None = None,
        keep: Callable[[str, int, np.ndarray, SvmScore], None] | None = None,
    ) -> Comparison:
        """Score every encoder on the same draws, `rounds(seeds)` times.

        logistic  fit logistic regression on the same features, too, its C cross-validated whatever the protocol.
        watch     told how far it is: encoded clouds and fits, each counted as one step.
        keep      given each score of the SVM as it is known: the encoder's name, the seed, its features of the test
                  clouds [n, D] float32 and the score.
        """
        config = self.config
        count = self.rounds(seeds)
        steps = len(self.train) + len(self.test) + fits(config.protocol, grid=config.grid, folds=config.folds)
        if logistic:
            steps += fits("cross-validated", grid=config.grid, folds=config.folds)
        told = Count(watch, "evaluating", "steps", count * len(encoders) * steps)
        scores: dict[str, list[SvmScore]] = {name: [] for name in encoders}
        regressed: dict[str, list[SvmScore]] = {name: [] for name in encoders} if logistic else {}
        dimensions = {}
        for seed in range(count):
            # One draw for all encoders: their scores then differ by the features alone.
            train, test = self._points(self.train, seed), self._points(self.test, seed)
            encoded: dict[str, tuple[np.ndarray, np.ndarray]] = {}
            for place, (name, encoder) in enumerate(encoders.items()):
                told.at((seed * len(encoders) + place) * steps, encoder=name, seed=f"{seed + 1}/{count}")
                found = _known(encoder, encoders, encoded)
                if found is None:
                    found = (
                        encode(encoder, train, batch_size=config.batch_size, progress=told.add),
                        encode(encoder, test, batch_size=config.batch_size, progress=told.add),
                    )
                else:
                    told.add(len(train) + len(test))
                encoded[name] = features, asked = found
                given = features, self.train.labels, asked, self.test.labels
                chosen: dict[str, Any] = {
                    "grid": config.grid, "folds": config.folds, "seed": seed, "progress": told.add
                }  # fmt: skip
                score = linear_svm(*given, protocol=config.protocol, c=config.reference_c, **chosen)
                if keep is not None:
                    keep(name, seed, asked, score)
                scores[name].append(score)
                if logistic:
                    regressed[name].append(logistic_regression(*given, **chosen))
                dimensions[name] = features.shape[1]
        told.at(count * len(encoders) * steps)
        rows, logistic_rows = (
            {name: _row(found, feature_name(encoders[name]), dimensions[name]) for name, found in each.items()}
            for each in (scores, regressed)
        )
        return Comparison(
            rows=rows,
            logistic=logistic_rows,
            protocol=config.protocol,
            points=config.points,
            seeds=count,
            classes=len(np.unique(self.train.labels)),
            chance=majority_share(self.train.labels, self.test.labels),
            train=_described(self.train),
            test=_described(self.test),
        )

    def baselines(self, model: Student, *, seed: int, device: torch.device) -> dict[str, Encoder]:
        """Return the baselines that an encoder has to beat.

        "coordinates" are statistics of the coordinates. "untrained" is the model's own architecture with the first
        weights of `seed` and the batch norm statistics of some training clouds. "embedded" is the package's own
        encoder, where the settings ask for it.
        """
        teacher = {"channels": model.teacher_channels, "views": model.views}
        fresh = new_student(model.config, model.masking, teacher, seed=seed).to(device)
        clouds = self._points(self.train, 0)[:SETTLING_CLOUDS]
        settle_batch_norms(fresh, clouds, device, self.config.model_feature)
        found: dict[str, Encoder] = {
            "coordinates": coordinate_statistics,
            "untrained": model_encoder(fresh, device, self.config.model_feature),
        }
        if self.config.embedded:
            own = load_encoder("embedded").to(device)
            found["embedded"] = model_encoder(own, device, self.config.model_feature)
        return found

    def _points(self, clouds: LabelledClouds, seed: int) -> np.ndarray:
        if self.config.protocol == "reference":
            return clouds.first(self.config.points)
        return clouds.draw(self.config.points, seed)


def compare(encoders: Mapping[str, Encoder], config: EvaluationConfig) -> Comparison:
    """Read the configured corpora and score every encoder on them, one row per encoder."""
    return Evaluator(config).compare(encoders)


def _known(
    encoder: Encoder, encoders: Mapping[str, Encoder], encoded: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Take the features of an encoder from those of one that contains them, contiguous; None where none does."""
    for name, (train, test) in encoded.items():
        columns = encoder.columns_in(encoders[name]) if isinstance(encoder, ModelEncoder) else None
        if columns is not None:
            return np.ascontiguousarray(train[:, columns]), np.ascontiguousarray(test[:, columns])
    return None


def _row(scores: list[SvmScore], feature: str, dimensions: int) -> Row:
    values = [score.accuracy for score in scores]
    return Row(
        accuracy=float(np.mean(values)),
        spread=float(np.std(values)),
        scores=tuple(values),
        c=tuple(score.c for score in scores),
        feature=feature,
        dimensions=dimensions,
    )


def _described(clouds: LabelledClouds) -> dict[str, Any]:
    return {"uri": clouds.uri, "shapes": len(clouds), "skipped": len(clouds.skipped)}
