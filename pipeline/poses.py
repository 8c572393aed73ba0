"""Several stored poses of every shape, for a teacher that is to see the student's augmentation."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.config import CorpusConfig
from pipeline.corpora import Corpus, Shape, open_corpus
from pipeline.corpora.base import shape_generator

__all__ = ["STRETCH", "Posed", "open_source"]

STRETCH = (2 / 3, 3 / 2)  # of each axis: the student's own augmentation (trainer.scale)


@dataclass(frozen=True)
class Posed:
    """A corpus in which every shape comes `poses` times in a row: as it is, then stretched along its axes.

    Pose k > 0 of a shape is named `<id>@pose<k>`, and its three factors are a function of (id, k) alone. There is no
    shift: projection sees every cloud centred.
    """

    shapes: Corpus
    poses: int

    @property
    def uri(self) -> str:
        return self.shapes.uri

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self.shapes.identity, "poses": self.poses, "stretch": list(STRETCH)}

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.shapes.label_names

    @property
    def part_names(self) -> tuple[str, ...]:
        return self.shapes.part_names

    def __len__(self) -> int:
        return len(self.shapes) * self.poses

    def id(self, index: int) -> str:
        shape, pose = self._place(index)
        return f"{self.shapes.id(shape)}@pose{pose}" if pose else self.shapes.id(shape)

    def source(self, index: int) -> str:
        return self.shapes.source(self._place(index)[0])

    def label(self, index: int) -> int | None:
        return self.shapes.label(self._place(index)[0])

    def fingerprint(self, index: int) -> str:
        shape, pose = self._place(index)
        return f"{self.shapes.fingerprint(shape)}@pose{pose}" if pose else self.shapes.fingerprint(shape)

    def __getitem__(self, index: int) -> Shape:
        number, pose = self._place(index)
        shape = self.shapes[number]
        if not pose:
            return shape
        drawn = shape_generator(0, shape.id, f"pose {pose}").random(3)
        factors = (STRETCH[0] + (STRETCH[1] - STRETCH[0]) * drawn).astype(np.float32)
        # Stretched about the centroid, so that the coordinates of a far-off cloud lose nothing to rounding.
        centre = shape.points.mean(axis=0, dtype=np.float64).astype(np.float32)
        return replace(shape, id=self.id(index), points=(shape.points - centre) * factors)

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        return divmod(index, self.poses)


def open_source(config: CorpusConfig) -> Corpus:
    """The corpus a cache is made of: `config.uri`'s, each shape in `config.poses` poses."""
    corpus = open_corpus(config.uri, points=config.points)
    return corpus if config.poses == 1 else Posed(corpus, config.poses)
