"""Few-shot by a linear probe on frozen features: a few shapes of some classes to fit on, others to be asked about."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.corpora.base import CorpusError
from pipeline.corpora.episodes import QUERIES, Pool, draw_episode
from trainer.downstream.clouds import LabelledClouds
from trainer.downstream.linear_svm import linear_svm
from trainer.errors import EvaluationError

__all__ = ["FewShotConfig", "FewShotScores", "Fold", "drawn_folds", "few_shot", "probe", "summarise"]

INNER_FOLDS = 3  # of the cross-validation that chooses C on the shots


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """Settings of a few-shot evaluation.

    way, shot  classes of an episode, and shapes of each to fit on: at least 2, for C is chosen on some of them
    folds      episodes
    queries    shapes of each class to be asked about
    seed       of the episodes
    """

    way: int = 5
    shot: int = 10
    folds: int = 10
    queries: int = QUERIES
    seed: int = 0

    def problems(self) -> Iterator[str]:
        for name, least in (("way", 2), ("shot", 2), ("folds", 1), ("queries", 1)):
            if getattr(self, name) < least:
                yield f"{name} = {getattr(self, name)} is smaller than {least}"


@dataclass(frozen=True, kw_only=True)
class FewShotScores:
    """Results of an encoder in one setting; accuracies 0..1.

    scores     of each fold
    mean       of them; population_spread divides by the folds, sample_spread by one less (papers do not say which)
    tested     shapes that a fold asks about;  step: what one of them is worth in a fold
    """

    way: int
    shot: int
    scores: tuple[float, ...]
    mean: float
    population_spread: float
    sample_spread: float
    tested: int
    step: float

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return {**asdict(self), "scores": list(self.scores)}


@dataclass(frozen=True)
class Fold:
    """One episode as rows: support of the training shapes, queries of the test shapes, labels 0..way - 1 of each."""

    support: np.ndarray
    support_labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray


def drawn_folds(train: LabelledClouds, test: LabelledClouds | None, config: FewShotConfig) -> list[Fold]:
    """Draw the episodes of a configuration; `fewshot:` corpora of that seed have the same, if every shape is readable.

    test  None: queries are other shapes of `train`. Raises EvaluationError where too few classes have enough shapes.
    """
    pools = (_pool(train), None if test is None else _pool(test))
    folds = []
    for number in range(config.folds):
        try:
            episode = draw_episode(
                pools[0],
                pools[1],
                way=config.way,
                shot=config.shot,
                fold=number,
                seed=config.seed,
                queries=config.queries,
            )
        except CorpusError as error:
            raise EvaluationError(f"{train.uri}: {error}") from None
        ways = np.arange(config.way)
        folds.append(
            Fold(
                np.array(episode.support),
                np.repeat(ways, config.shot),
                np.array(episode.queries),
                np.repeat(ways, config.queries),
            )
        )
    return folds


def few_shot(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]],
    folds: Sequence[Fold],
    config: FewShotConfig,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, FewShotScores]:
    """Score encoders on the same episodes.

    features  name -> features of the training shapes [n, D] and of the test shapes [m, D] (the training shapes again,
              where folds were drawn of one corpus).
    progress  is called with 1 for every fit.
    """
    found: dict[str, list[float]] = {name: [] for name in features}
    for number, fold in enumerate(folds):
        for name, (train, test) in features.items():
            # Seeded by the fold: every encoder chooses C on the same inner folds.
            found[name].append(
                probe(train[fold.support], fold.support_labels, test[fold.queries], fold.query_labels, seed=number)
            )
            if progress is not None:
                progress(1)
    return {name: summarise(scores, config, tested=config.way * config.queries) for name, scores in found.items()}


def probe(
    support: np.ndarray, support_labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray, *, seed: int
) -> float:
    """Accuracy on the queries of a linear SVM fitted on the shots, whose C is cross-validated on the shots alone."""
    folds = min(INNER_FOLDS, int(np.bincount(support_labels).min()))
    return linear_svm(support, support_labels, queries, query_labels, folds=folds, seed=seed).accuracy


def summarise(scores: Sequence[float], config: FewShotConfig, *, tested: int) -> FewShotScores:
    """Summarise the accuracies of folds by mean and both standard deviations."""
    return FewShotScores(
        way=config.way,
        shot=config.shot,
        scores=tuple(scores),
        mean=float(np.mean(scores)),
        population_spread=float(np.std(scores)),
        sample_spread=float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
        tested=tested,
        step=1 / tested,
    )


def _pool(clouds: LabelledClouds) -> Pool:
    return Pool(clouds.ids, [clouds.label_names[label] for label in clouds.labels.tolist()])
