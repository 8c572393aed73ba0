"""Few-shot by a linear probe on frozen features: a few shapes of some classes to fit on, others to be asked about."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge

from pipeline.corpora.base import CorpusError
from pipeline.corpora.episodes import QUERIES, Pool, draw_episode
from pipeline.corpora.processes import spread
from pipeline.settings import faults
from trainer.downstream.clouds import LabelledClouds
from trainer.downstream.linear_svm import linear_svm
from trainer.errors import EvaluationError

__all__ = [
    "FewShotConfig",
    "FewShotScores",
    "Fold",
    "ProbeJob",
    "drawn_folds",
    "few_shot",
    "few_shots",
    "probe",
    "probe_all",
    "summarise",
]

INNER_FOLDS = 3  # of the cross-validation that chooses C on the shots


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """Settings of a few-shot evaluation.

    way, shot  classes of an episode, and shapes of each to fit on: at least 2, for C is chosen on some of them
    folds      episodes
    queries    shapes of each class to be asked about
    seed       of the episodes
    """

    way: Annotated[int, Ge(2)] = 5
    shot: Annotated[int, Ge(2)] = 10
    folds: Annotated[int, Ge(1)] = 10
    queries: Annotated[int, Ge(1)] = QUERIES
    seed: Annotated[int, Ge(0)] = 0

    def problems(self) -> Iterator[str]:
        yield from faults(self)


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
    """Score encoders on the same episodes, in this process. Arguments as of `few_shots`."""
    (found,) = few_shots(features, [(config, folds)], progress=progress)
    return found


def few_shots(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]],
    settings: Sequence[tuple[FewShotConfig, Sequence[Fold]]],
    *,
    processes: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, FewShotScores]]:
    """Score encoders on the episodes of several settings.

    features   name -> features of the training shapes [n, D] and of the test shapes [m, D] (the training shapes again,
               where folds were drawn of one corpus).
    processes  that the fits are shared among; the result is the same for any number.
    progress   is told 1 for every fit.

    ->  for each setting, the scores by the encoders' names.
    """
    jobs = {
        (at, number, name): ProbeJob(
            train[fold.support], fold.support_labels, test[fold.queries], fold.query_labels, number
        )
        for at, (_, folds) in enumerate(settings)
        for number, fold in enumerate(folds)
        for name, (train, test) in features.items()
    }
    scores = dict(zip(jobs, probe_all(list(jobs.values()), processes=processes, progress=progress), strict=True))
    return [
        {
            name: summarise(
                [scores[at, number, name] for number in range(len(folds))], config, tested=config.way * config.queries
            )
            for name in features
        }
        for at, (config, folds) in enumerate(settings)
    ]


class ProbeJob(NamedTuple):
    """The arguments of a `probe`."""

    support: np.ndarray
    support_labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray
    seed: int


def probe_all(
    jobs: Sequence[ProbeJob], *, processes: int = 1, progress: Callable[[int], None] | None = None
) -> list[float]:
    """Accuracies of the jobs, in their order. processes and progress as of `few_shots`."""
    processes = min(processes, len(jobs))
    numbered = enumerate(jobs)
    ended = map(_probed, numbered) if processes < 2 else spread(_probed, numbered, processes, what="few-shot folds")
    found = [0.0] * len(jobs)
    for at, accuracy in ended:
        found[at] = accuracy
        if progress is not None:
            progress(1)
    return found


def _probed(job: tuple[int, ProbeJob]) -> tuple[int, float]:
    at, (support, support_labels, queries, query_labels, seed) = job
    return at, probe(support, support_labels, queries, query_labels, seed=seed)


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
