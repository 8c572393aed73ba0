"""Votes of a classifier: it sees several draws of a shape's points, and the mean of its logits is the answer.

Published figures are the best of many such rounds. Here all rounds are reported, and the best is labelled as such: over
fifty rounds, chance alone adds about two standard deviations of a round.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge

from cuda.fps import farthest_point_sample
from pipeline.settings import faults
from trainer.downstream.metrics import mean_class_accuracy, overall_accuracy
from trainer.engine.augmentation import scale_and_shift, turned
from trainer.errors import EvaluationError
from trainer.randomness import Purpose, record_uniforms

__all__ = ["Logits", "VoteConfig", "VoteScores", "farthest_points", "pool_of", "vote"]

Logits = Callable[[np.ndarray], np.ndarray]
"""[B, N, 3] float32 -> [B, C] float32 logits, in evaluation mode"""

_POOLS = ((1024, 1200), (2048, 2400), (4096, 4800))  # points -> farthest points they are drawn from, as in the field


def pool_of(points: int, stored: int) -> int:
    """Return the field's number of farthest points to draw from: 1,200 for 1,024, at most those stored."""
    return min(next((pool for count, pool in _POOLS if points <= count), points), stored)


@dataclass(frozen=True, kw_only=True)
class VoteConfig:
    """Settings of a vote.

    points      of a cloud that the classifier sees
    pool        farthest points, from point 0 of the stored order, of which they are drawn; 0: as `pool_of` has it
    draws       whose logits are averaged to one answer: one round
    rounds      answers, each with its own draws
    scale, shift  augmentation of each draw, uniform per axis; (1, 1) and 0: none
    rotation    of each draw, about the axis `up`: "none", "cloud": each cloud its own angle, or "batch": one a batch
    sharing     "cloud": each cloud draws its own points; "batch" (reference): all clouds of a batch have the same ranks
                in their farthest points
    seed        of everything random
    batch_size  clouds at a time
    """

    points: Annotated[int, Ge(1)] = 1024
    pool: Annotated[int, Ge(0)] = 0
    draws: Annotated[int, Ge(1)] = 10
    rounds: Annotated[int, Ge(1)] = 10
    scale: tuple[float, float] = (2 / 3, 3 / 2)
    shift: Annotated[float, Ge(0)] = 0.2
    rotation: Literal["none", "cloud", "batch"] = "none"
    up: Literal["y", "z"] = "z"
    sharing: Literal["cloud", "batch"] = "cloud"
    seed: Annotated[int, Ge(0)] = 0
    batch_size: Annotated[int, Ge(1)] = 64

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        if self.pool and self.pool < self.points:
            yield f"pool = {self.pool} is less than points = {self.points}"
        if not 0 < self.scale[0] <= self.scale[1]:
            yield f"scale = {self.scale} is not an ascending range of positive factors"


@dataclass(frozen=True, kw_only=True)
class VoteScores:
    """Results of a vote; accuracies 0..1.

    plain, plain_class  overall and mean-class accuracy without a vote: the first `points` farthest points as they are
    rounds      accuracy of each round
    mean, spread  of the rounds; spread is the sample standard deviation, 0 for one round
    best_of_rounds  the largest of the rounds, which is what papers print
    together, together_class  accuracies of the mean of the logits over all draws of all rounds: nothing is chosen
    shapes, step  shapes that were scored, and what one of them is worth
    """

    plain: float
    plain_class: float
    rounds: tuple[float, ...]
    mean: float
    spread: float
    best_of_rounds: float
    together: float
    together_class: float
    shapes: int
    step: float

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return {**vars(self), "rounds": list(self.rounds)}


def vote(
    logits: Logits,
    points: np.ndarray,
    labels: np.ndarray,
    config: VoteConfig,
    *,
    progress: Callable[[int], None] | None = None,
) -> VoteScores:
    """Score a classifier without and with a vote.

    points    [n, N, 3] float32 in the stored order, in the frame that the classifier was trained in.
    labels    [n] int64.
    progress  is called with how many clouds each batch had; in all n (1 + rounds draws).

    The same arguments give the same scores: every draw follows from (seed, round, draw, shape). Raises ValueError for
    settings, EvaluationError for too few points and logits that are not finite. Source of the protocol: Point-MAE's
    and I2P-MAE's test scripts, which print the best round.
    """
    problems = list(config.problems())
    if problems:
        raise ValueError("; ".join(problems))
    n, N, _ = points.shape
    pool = config.pool or pool_of(config.points, N)
    if max(config.points, pool) > N:
        raise EvaluationError(
            f"clouds have {N} points; a vote needs {max(config.points, pool)}. Read more points of each shape."
        )
    farthest = farthest_points(points, pool)  # [n, pool, 3]
    plain = _answers(logits, lambda rows: farthest[rows, : config.points], n, config, progress)
    total = np.zeros_like(plain, dtype=np.float64)  # a sum over many draws must still separate close classes
    rounds = []
    for number in range(config.rounds):
        of_round = np.zeros_like(total)
        for draw in range(config.draws):
            epoch = 1 + number * config.draws + draw  # 0 is what other evaluations draw

            def drawn(rows: np.ndarray, epoch: int = epoch) -> np.ndarray:
                return _draw(farthest, rows, config, epoch)

            of_round += _answers(logits, drawn, n, config, progress)
        total += of_round
        rounds.append(overall_accuracy(of_round.argmax(axis=1), labels))
    answer, together = plain.argmax(axis=1), total.argmax(axis=1)
    return VoteScores(
        plain=overall_accuracy(answer, labels),
        plain_class=mean_class_accuracy(answer, labels),
        rounds=tuple(rounds),
        mean=float(np.mean(rounds)),
        spread=float(np.std(rounds, ddof=1)) if len(rounds) > 1 else 0.0,
        best_of_rounds=max(rounds),
        together=overall_accuracy(together, labels),
        together_class=mean_class_accuracy(together, labels),
        shapes=n,
        step=1 / n,
    )


def farthest_points(points: np.ndarray, count: int) -> np.ndarray:
    """The first `count` farthest points of each cloud [n, N, 3], from its point 0 on -> [n, count, 3] float32."""
    cloud = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
    chosen = farthest_point_sample(cloud, count).numpy()
    return np.take_along_axis(points, chosen[:, :, None], axis=1)


def _draw(farthest: np.ndarray, rows: np.ndarray, config: VoteConfig, epoch: int) -> np.ndarray:
    """The clouds of one batch in one draw, [B, points, 3]."""
    records = np.full(len(rows), rows[0]) if config.sharing == "batch" else rows
    keys = record_uniforms(records, farthest.shape[1], seed=config.seed, epoch=epoch, purpose=Purpose.SUBSET)
    # Stable, so that equal keys keep the order of points on every machine.
    ranks = np.argsort(keys, axis=1, kind="stable")[:, : config.points]
    clouds = np.take_along_axis(farthest[rows], ranks[:, :, None], axis=1)
    clouds = scale_and_shift(clouds, rows, scale=config.scale, shift=config.shift, seed=config.seed, epoch=epoch)
    if config.rotation == "none":
        return clouds
    records = np.full(len(rows), rows[0]) if config.rotation == "batch" else rows
    drawn = record_uniforms(records, 1, seed=config.seed, epoch=epoch, purpose=Purpose.ROTATION)[:, 0]
    return turned(clouds, 2 * np.pi * drawn.astype(np.float64), config.up)


def _answers(
    logits: Logits,
    clouds: Callable[[np.ndarray], np.ndarray],
    n: int,
    config: VoteConfig,
    progress: Callable[[int], None] | None,
) -> np.ndarray:
    """[n, C] float32 logits of the clouds that are made for each batch of rows."""
    parts = []
    for start in range(0, n, config.batch_size):
        rows = np.arange(start, min(start + config.batch_size, n))
        parts.append(logits(clouds(rows)))
        if not np.isfinite(parts[-1]).all():
            raise EvaluationError("the classifier's logits are not finite; its weights are probably not finite either")
        if progress is not None:
            progress(len(rows))
    return np.concatenate(parts)
