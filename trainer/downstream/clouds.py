"""Labelled clouds for evaluation, read once through the corpora's common reader."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.corpora.base import Corpus, ShapeError
from pipeline.corpora.check import normalise
from pipeline.corpora.uri import open_corpus
from trainer.engine.augmentation import renormalised
from trainer.errors import EvaluationError
from trainer.randomness import Purpose, record_uniforms

__all__ = ["LabelledClouds", "check_classes", "check_corpora", "read_clouds"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelledClouds:
    """A labelled corpus in memory.

    uri          where it came from
    points       [n, N, 3] float32, canonical frame, in random order
    labels       [n] int64 into label_names
    label_names  of all classes, those without a shape included
    skipped      shapes that could not be read or have no label, each as "source: reason"
    ids          [n] names of the shapes, as of the corpus
    part_labels  [n, N] int16 into part_names: the part of each point, which moves with it; None where not all have one
    part_names   of all parts; empty where there are none
    """

    uri: str
    points: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]
    skipped: tuple[str, ...]
    ids: tuple[str, ...]
    part_labels: np.ndarray | None = None
    part_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> np.ndarray:
        """Return the first `count` points of each shape, in the canonical frame. [n, count, 3] float32."""
        return self.points[:, :count]

    def draw(self, count: int, seed: int) -> np.ndarray:
        """Draw `count` random points of each shape by `seed`, centred and scaled again. [n, count, 3] float32."""
        chosen = self._drawn(count, seed)
        return renormalised(np.take_along_axis(self.points, chosen[:, :, None], axis=1))

    def draw_parts(self, count: int, seed: int) -> np.ndarray:
        """Return the parts of the points that `draw` returns for the same arguments, in order. [n, count] int16.

        Raises EvaluationError where shapes have no part labels.
        """
        if self.part_labels is None:
            raise EvaluationError(
                f"{self.uri} has no part labels; use a corpus that has them, or set parts= (docs/corpora.md)"
            )
        return np.take_along_axis(self.part_labels, self._drawn(count, seed), axis=1)

    def _drawn(self, count: int, seed: int) -> np.ndarray:
        n, N, _ = self.points.shape
        keys = record_uniforms(np.arange(n), N, seed=seed, epoch=0, purpose=Purpose.SUBSET)
        return np.argsort(keys, axis=1, kind="stable")[:, :count]


def read_clouds(
    uri: str,
    *,
    points: int,
    frame: Literal["canonical", "stored"] = "canonical",
    labelled: bool = True,
    progress: Callable[[int], None] | None = None,
) -> LabelledClouds:
    """Read every shape of a labelled corpus.

    points    of each shape.
    frame     "canonical": centred, in the unit sphere; "stored": as the corpus has them, as ScanObjectNN is published.
    labelled  False: a corpus without labels will do, whose labels are then -1.
    progress  is called with 1 for every shape.

    Raises EvaluationError where there is no label or no readable shape, and pipeline's CorpusError for a URI that does
    not open.
    """
    corpus = _labelled(uri, points) if labelled else open_corpus(uri, points=points)
    clouds, parts, labels, ids, skipped = [], [], [], [], []
    for index in range(len(corpus)):
        try:
            cloud, part = _read(corpus, index, frame, labelled)
        except ShapeError as error:
            skipped.append(str(error))
            continue
        finally:
            if progress is not None:
                progress(1)
        label = corpus.label(index)
        clouds.append(cloud)
        parts.append(part)
        labels.append(-1 if label is None else label)
        ids.append(corpus.id(index))
    for text in skipped:
        logger.warning("left out of the evaluation: %s", text)
    if not clouds:
        raise EvaluationError(f"{uri}: none of {len(corpus)} shapes can be used{'; ' + skipped[0] if skipped else ''}.")
    return LabelledClouds(
        uri=uri,
        points=np.stack(clouds),
        labels=np.asarray(labels, dtype=np.int64),
        label_names=tuple(corpus.label_names),
        skipped=tuple(skipped),
        ids=tuple(ids),
        part_labels=np.stack(known)
        if len(known := [part for part in parts if part is not None]) == len(parts)
        else None,
        part_names=tuple(corpus.part_names),
    )


def check_corpora(train: str, test: str, *, points: int) -> tuple[int, int]:
    """Open both corpora without reading a shape, so that unusable ones are found before hours of training; -> sizes.

    Raises EvaluationError unless both are labelled and a label number means the same class in both, CorpusError for one
    that does not open.
    """
    corpora = [_labelled(uri, points) for uri in (train, test)]
    names = [corpus.label_names for corpus in corpora]
    if names[0] != names[1]:
        only = sorted(set(names[0]) ^ set(names[1]))
        difference = f"{only} are in only one of them" if only else "their order differs"
        raise EvaluationError(
            f"the classes of {train} and {test} differ: {difference}. Use two splits of one labelled corpus."
        )
    known, asked = ({corpus.label(index) for index in range(len(corpus))} - {None} for corpus in corpora)
    _refuse_unknown([names[1][label] for label in sorted(asked - known)], train, test)  # type: ignore[type-var,index]
    return len(corpora[0]), len(corpora[1])


def check_classes(train: LabelledClouds, test: LabelledClouds) -> None:
    """Raise EvaluationError naming the classes that only the test split has: nothing can be fitted for them."""
    unknown = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    _refuse_unknown([test.label_names[label] for label in unknown], train.uri, test.uri)


def _refuse_unknown(classes: Sequence[str], train: str, test: str) -> None:
    if classes:
        more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
        raise EvaluationError(
            f"{test} has shapes of {', '.join(map(repr, classes[:5]))}{more}, of which {train} has none, so no "
            "classifier could predict them. Add such shapes to the training split, or leave these classes out of both."
        )


def _labelled(uri: str, points: int) -> Corpus:
    corpus = open_corpus(uri, points=points)
    if not corpus.label_names:
        raise EvaluationError(f"{uri} has no labels; an evaluation needs a labelled corpus.")
    return corpus


def _read(corpus: Corpus, index: int, frame: str, labelled: bool) -> tuple[np.ndarray, np.ndarray | None]:
    if labelled and corpus.label(index) is None:
        raise ShapeError(corpus.source(index), "has no label")
    shape = corpus[index]
    try:
        return (normalise(shape.points) if frame == "canonical" else shape.points), shape.part_labels
    except ValueError as error:
        raise ShapeError(corpus.source(index), str(error)) from None
