"""The global loss: the student's view of a whole shape is to find the teacher's among those of other shapes.

A shape's target is what the teacher makes of its views as wholes, seen from the middle of the corpus: of each view the
class token less the corpus' mean of that view, scaled to length 1; the views one after the other, scaled to length 1.
The student's answer comes from its visible top tokens. The loss is InfoNCE (van den Oord et al. 2018) from student to
target: the own target against those of other shapes. Negatives are targets, not answers, so a shape's loss depends
neither on the ranks nor on the parts that a batch is computed in.

Letters: B shapes, M candidates, V views, C channels, D = V * C.
"""

import logging
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cuda.geometry import ViewGeometry
from cuda.untouched import untouched_tokens
from teacher_cache import RecordBatch, ShardDamaged
from trainer.config import AlignmentConfig
from trainer.distributed import Ranks
from trainer.errors import TrainingError
from trainer.pooling import pool

__all__ = ["Alignment", "AlignmentHead", "Candidates", "Wholes", "alignment_sum", "targets", "wholes_of"]

logger = logging.getLogger(__name__)

HIDDEN = 256
MEAN_OF = 4096  # records at most that the corpus' mean is taken over
CHUNK = 64  # records read at once
SAME = 1 - 1e-5  # cosine from which on two targets are one: float32 and float16 leave equal ones within 1e-6
NOTHING = 1e-6  # of a class token's length: what is left of it beside the mean is rounding
CLASS_TOKEN, STAND_IN = "class token", "mean of the patch features that lookups read"


class Wholes(Protocol):
    """What the global loss needs of a cache; `teacher_cache.Cache` has it."""

    @property
    def poses(self) -> int: ...

    @property
    def stores_class(self) -> bool: ...

    @property
    def schema(self) -> "Sizes": ...

    def __len__(self) -> int: ...

    def read(self, indices: NDArray[np.int64]) -> RecordBatch: ...

    def class_tokens(self, indices: NDArray[np.int64]) -> NDArray[np.float16]: ...


class Sizes(Protocol):
    """Of a cache's records."""

    @property
    def image_side(self) -> int: ...

    @property
    def patch_side(self) -> int: ...


class AlignmentHead(nn.Sequential):
    """Visible top tokens [B, L, W], padded -> the student's answer [B, D], not scaled."""

    def __init__(self, width: int, targets: int):
        super().__init__(nn.Linear(2 * width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, targets))

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """valid  [B, L] bool, True for visible tokens; None: all are."""
        pooled = pool(tokens, valid)
        return super().forward(torch.cat((pooled.maximum, pooled.mean), dim=1))


class Candidates(NamedTuple):
    """Targets that an answer may have to be told from.

    targets  [M, D] float32, of length 1, or 0 where nothing is known
    known    [M] bool, False for a target of nothing but rounding
    shapes   [M] int64, whose they are: poses of one shape have one number
    """

    targets: Tensor
    known: Tensor
    shapes: Tensor


def wholes_of(batch: RecordBatch, image_side: int, patch_side: int) -> NDArray[np.float32]:
    """What the teacher makes of each view as a whole, [B, V, C] float32.

    Class tokens where the cache has them; else, to stand in, the mean over the patch features that some lookup at a
    stored point reads, which `cache.untouched = "zero"` does not change.
    """
    if batch.class_token is not None:
        return batch.class_token.astype(np.float32)
    geometry = ViewGeometry(*(torch.from_numpy(array) for array in (batch.lo, batch.cell, batch.offset)))
    untouched = untouched_tokens(batch.points, geometry, image_side=image_side, side=image_side // patch_side)
    features = np.where(untouched[..., None], np.float32(0), batch.features.astype(np.float32))
    # Every window holds 16 taps, and every stored cloud a point, so at least one token counts.
    return features.sum(axis=2) / (~untouched).sum(axis=2, dtype=np.float32)[..., None]


def targets(wholes: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of shapes, and which of them are more than rounding.

    wholes  [B, V, C] float32.   mean  [V, C] float32, the corpus' of each view.
    ->      [B, V * C] float32 of length 1, or 0 where every view is the mean; [B] bool, True where one is not.
    """
    apart = wholes - mean
    length = torch.linalg.vector_norm(apart, dim=2, keepdim=True)
    scale = torch.linalg.vector_norm(wholes, dim=2, keepdim=True)
    views = torch.where(length > NOTHING * scale, apart / length.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
    known = (views != 0).flatten(1).any(1)
    return F.normalize(views.flatten(1), dim=1), known


def alignment_sum(answers: Tensor, own: Candidates, others: Candidates, temperature: float) -> Tensor:
    """Sum over shapes with a known target of -log(e^own / (e^own + sum of e^other)), [] float32.

    answers      [B, D] any float dtype; scaled to length 1.   own  their targets, row by row.
    others       the candidates, which may hold the own targets. Not a negative of a shape is what is not known, what is
                 of the same shape, and what is the same target: duplicates in a corpus are not to be told apart.
    temperature  divides every cosine.

    A shape without negatives loses nothing, and learns nothing.
    """
    with torch.autocast(answers.device.type, enabled=False):
        answers = F.normalize(answers.float(), dim=1)
        mine = (answers * own.targets).sum(1, keepdim=True) / temperature  # [B, 1]
        cosines = answers @ others.targets.T / temperature  # [B, M]
        same = own.targets @ others.targets.T > SAME
        negative = others.known & (own.shapes[:, None] != others.shapes) & ~same
        logits = torch.cat((mine, cosines.masked_fill(~negative, -torch.inf)), dim=1)
        each = logits.logsumexp(1) - mine[:, 0]
        return each.masked_fill(~own.known, 0).sum()


class Alignment:
    """The targets of one run.

    mean    [V, C] float32, of the corpus' class tokens, or of a sample of MEAN_OF records drawn by the seed
    fixed   candidates of a fixed sample of the corpus; None: those of each batch
    source  what stands for a view as a whole: CLASS_TOKEN or STAND_IN
    """

    def __init__(self, config: AlignmentConfig, mean: Tensor, fixed: Candidates | None, source: str):
        self.config, self.mean, self.fixed, self.source = config, mean, fixed, source

    @classmethod
    def of_cache(
        cls, config: AlignmentConfig, cache: Wholes, *, seed: int, device: torch.device, skip_damaged: bool
    ) -> "Alignment":
        """Read what is needed of a cache; the same for the same cache and seed, whatever the rank.

        skip_damaged  leave records out that fail their checksum, instead of raising ShardDamaged.

        Raises TrainingError where no record is left.
        """
        source = CLASS_TOKEN if cache.stores_class else STAND_IN
        if not cache.stores_class:
            logger.warning(
                "the cache holds no class tokens: in the global loss the %s of each view stands in. "
                'A cache built with cache.class_token = "float16" has them.',
                STAND_IN,
            )
        total, count = np.zeros(1), 0
        for _, wholes in _read(cache, _drawn(len(cache), MEAN_OF, seed, 0), skip_damaged):
            total, count = total + wholes.sum(axis=0, dtype=np.float64), count + len(wholes)
        if not count:
            raise TrainingError("no record of the cache can be read, so its corpus has no mean for the global loss")
        mean = torch.from_numpy((total / count).astype(np.float32))
        fixed = None
        if config.negatives:
            chosen = _drawn(len(cache) // cache.poses, config.negatives, seed, 1) * cache.poses
            parts = list(_read(cache, chosen, skip_damaged))
            if not parts:
                raise TrainingError("no record of the fixed sample of alignment.negatives can be read")
            sample = torch.from_numpy(np.concatenate([part for _, part in parts]))
            records = np.concatenate([records for records, _ in parts])
            fixed = cls._candidates(sample, torch.from_numpy(records // cache.poses), mean, device)
        return cls(config, mean.to(device), fixed, source)

    def candidates(self, wholes: Tensor, shapes: Tensor) -> Candidates:
        """Targets of shapes. wholes [B, V, C] float32, shapes [B] int64, on the run's device."""
        return self._candidates(wholes, shapes, self.mean, self.mean.device)

    def others(self, own: Candidates, ranks: Ranks) -> Candidates:
        """What the shapes of a batch are told from: the fixed sample, or all targets of the batch, over ranks.

        own  of this rank, as many as every other rank has.
        """
        return self.fixed if self.fixed is not None else Candidates(*map(ranks.gather_rows, own))

    @staticmethod
    def _candidates(wholes: Tensor, shapes: Tensor, mean: Tensor, device: torch.device) -> Candidates:
        values, known = targets(wholes.to(device), mean.to(device))
        return Candidates(values, known, shapes.to(device))


def _drawn(count: int, most: int, seed: int, purpose: int) -> NDArray[np.int64]:
    """All of 0..count - 1, or `most` of them drawn by the seed; ascending, as they are read fastest."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, 0xA119, purpose]).choice(count, most, replace=False))


def _read(
    cache: Wholes, records: NDArray[np.int64], skip_damaged: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """(records, their wholes [B, V, C]), a few at a time."""

    def wholes(some: NDArray[np.int64]) -> NDArray[np.float32]:
        if cache.stores_class:
            return cache.class_tokens(some).astype(np.float32)
        return wholes_of(cache.read(some), cache.schema.image_side, cache.schema.patch_side)

    for start in range(0, len(records), CHUNK):
        some = records[start : start + CHUNK]
        try:
            yield some, wholes(some)
        except ShardDamaged:
            if not skip_damaged:
                raise
            for one in np.split(some, len(some)):
                try:
                    found = wholes(one)
                except ShardDamaged:
                    continue
                yield one, found
