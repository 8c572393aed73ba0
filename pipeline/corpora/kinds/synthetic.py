"""``synthetic:`` everyday objects drawn from parameters, as many as asked for, each by (seed, split, index) alone.

Train and test are two disjoint streams of random numbers, so no test object is ever a train object, and either can be
made longer without changing what it already holds. Index i is of category i mod the number of categories: every prefix
is balanced.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.corpora.base import Inspection, Shape, identity_hash
from pipeline.corpora.check import check_shape
from pipeline.corpora.formats.geometry import Surface
from pipeline.corpora.inspection import inspect_mesh
from pipeline.corpora.objects import CATEGORIES, Fact, Part, Sketch
from pipeline.corpora.options import Options
from pipeline.corpora.surface import sample_surface, triangle_areas

__all__ = ["GENERATOR_VERSION", "Attributes", "SyntheticCorpus", "open_synthetic"]

MAX_COUNT = 10**7  # shapes; their ids alone take a gigabyte
GENERATOR_VERSION = (
    1  # part of the identity: raise it whenever a category or a primitive draws anything else than before
)

_STREAMS = {"train": 0, "test": 1}
_EVERY = 5  # with split=all, every fifth shape is a test shape
_GEOMETRY, _SURFACE, _POSE = (
    0,
    1,
    2,
)  # what a shape's random numbers are for: the object never depends on how it is sampled


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """Description of one synthetic object, for captions.

    Attributes:
        category: its name
        parts: how many pieces of each part it has, in the order of drawing
        areas: share of the surface that each part has, adding up to 1
        facts: named choices of style, such as {"back": "slatted", "armrests": True}
        size: (width, depth, height), extents along x, y, z before any rotation, divided by the largest of them
    """

    category: str
    parts: dict[str, int]
    areas: dict[str, float]
    facts: dict[str, Fact]
    size: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class SyntheticCorpus:
    """Synthetic objects; see the module.

    Attributes:
        uri: the text that opens it
        count: number of shapes
        points: points of each shape
        seed: of everything random
        split: "train", "test", or "all": four of train, then one of test, and so on
        categories: names, in the fixed order of the generator
        rotate: "none", "yaw" (a random turn about the vertical) or "so3" (any rotation)
    """

    uri: str
    count: int
    points: int
    seed: int
    split: str
    categories: tuple[str, ...]
    rotate: str

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "kind": "synthetic",
            "generator": GENERATOR_VERSION,
            "points": self.points,
            "seed": self.seed,
            "split": self.split,
            "categories": list(self.categories),
            "rotate": self.rotate,
        }

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.categories

    @property
    def part_names(self) -> tuple[str, ...]:
        """Every part, as ``category/part``."""
        return tuple(f"{name}/{part}" for name in self.categories for part in _CATEGORY[name].parts)

    def __len__(self) -> int:
        return self.count

    def id(self, index: int) -> str:
        split, place = self._place(index)
        return f"{self._category(place)}/{split}-s{self.seed}-{place:07d}"

    def source(self, index: int) -> str:
        return f"synthetic {self.id(index)}"

    def label(self, index: int) -> int:
        _, place = self._place(index)
        return place % len(self.categories)

    def stamp(self, index: int) -> str | None:
        return None

    def fingerprint(self, index: int) -> str:
        settings = {key: value for key, value in self.identity.items() if key != "split"}
        return identity_hash({**settings, "id": self.id(index)})

    def split_of(self, index: int) -> str | None:
        return self._place(index)[0]

    def format_of(self, index: int) -> str:
        return "synthetic"

    def inspect(self, index: int) -> Inspection:
        vertices, faces, _ = _assemble(self._draw(*self._place(index))[0])
        self[index]
        return inspect_mesh(Surface(vertices @ self._pose(index).T, faces))

    def __getitem__(self, index: int) -> Shape:
        split, place = self._place(index)
        parts, _ = self._draw(split, place)
        vertices, faces, owner = _assemble(parts)
        uniform = self._generator(split, place, _SURFACE).random((self.points, 3))
        points, triangle = sample_surface(vertices, faces, uniform)
        if self.rotate != "none":
            points = points @ self._pose(index).T
        cloud = points.astype(np.float32)
        check_shape(cloud, self.source(index))
        numbers = self._part_numbers(self._category(place))
        part_of_piece = np.array([numbers[part.name] for part in parts], dtype=np.int16)
        return Shape(
            id=self.id(index),
            points=cloud,
            label=self.label(index),
            part_labels=part_of_piece[owner[triangle]],
            split=split,
        )

    def describe(self, index: int) -> Attributes:
        """Describe shape ``index``: category, parts, style, proportions.

        Deterministic, and cheaper than reading the shape.
        """
        split, place = self._place(index)
        parts, facts = self._draw(split, place)
        vertices, faces, owner = _assemble(parts)
        areas = np.bincount(owner, weights=triangle_areas(vertices, faces), minlength=len(parts))
        counts: dict[str, int] = {}
        shares: dict[str, float] = {}
        for part, area in zip(parts, areas / areas.sum(), strict=True):
            counts[part.name] = counts.get(part.name, 0) + 1
            shares[part.name] = shares.get(part.name, 0.0) + float(area)
        extent = np.ptp(vertices, axis=0)
        width, depth, height = (extent / extent.max()).tolist()
        return Attributes(
            category=self._category(place), parts=counts, areas=shares, facts=facts, size=(width, depth, height)
        )

    def parts(self, index: int) -> list[Part]:
        """Return the pieces of shape ``index`` as triangle meshes, before any rotation."""
        return self._draw(*self._place(index))[0]

    def _place(self, index: int) -> tuple[str, int]:
        """Return the split of shape ``index`` and its place in that split's stream."""
        if not 0 <= index < self.count:
            raise IndexError(f"index {index} is outside 0..{self.count - 1}")
        if self.split != "all":
            return self.split, index
        block, rest = divmod(index, _EVERY)
        return ("test", block) if rest == _EVERY - 1 else ("train", block * (_EVERY - 1) + rest)

    def _pose(self, index: int) -> np.ndarray:
        """Return the rotation of shape ``index`` [3, 3]."""
        if self.rotate == "none":
            return np.eye(3)
        return _rotation(self.rotate, self._generator(*self._place(index), _POSE))

    def _category(self, place: int) -> str:
        return self.categories[place % len(self.categories)]

    def _generator(self, split: str, place: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.PCG64(np.random.SeedSequence([self.seed, _STREAMS[split], place, purpose]))
        )

    def _draw(self, split: str, place: int) -> tuple[list[Part], dict[str, Fact]]:
        sketch = Sketch(self._generator(split, place, _GEOMETRY))
        _CATEGORY[self._category(place)].draw(sketch)
        return sketch.parts, sketch.facts

    def _part_numbers(self, category: str) -> dict[str, int]:
        first = sum(len(_CATEGORY[name].parts) for name in self.categories[: self.categories.index(category)])
        return {part: first + k for k, part in enumerate(_CATEGORY[category].parts)}


_CATEGORY = {category.name: category for category in CATEGORIES}


def open_synthetic(options: Options, points: int) -> SyntheticCorpus:
    """Open ``synthetic:?count=2000&seed=0&split=train|test|all&categories=chair,table&rotate=none|yaw|so3``."""
    corpus = SyntheticCorpus(
        uri=options.uri,
        count=options.integer("count", 2000, low=1, high=MAX_COUNT),
        points=points,
        seed=options.integer("seed", 0, low=0, high=2**32 - 1),
        split=options.choice("split", ("train", "test", "all"), "train"),
        categories=options.words("categories", tuple(_CATEGORY)),
        rotate=options.choice("rotate", ("none", "yaw", "so3"), "none"),
    )
    options.finish()
    return corpus


def _assemble(parts: list[Part]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join all pieces to one mesh: vertices [M, 3], faces [F, 3], piece of each face [F]."""
    vertices = np.concatenate([part.mesh.vertices for part in parts])
    offset, faces = 0, []
    for part in parts:
        faces.append(part.mesh.faces + offset)
        offset += len(part.mesh.vertices)
    owner = np.repeat(np.arange(len(parts)), [len(part.mesh.faces) for part in parts])
    return vertices, np.concatenate(faces), owner


def _rotation(kind: str, generator: np.random.Generator) -> np.ndarray:
    """Draw a random rotation matrix [3, 3]: about the vertical, or uniform over all (Shoemake 1992)."""
    u, v, w = generator.random(3).tolist()
    if kind == "yaw":
        c, s = np.cos(2 * np.pi * u), np.sin(2 * np.pi * u)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    a, b = np.sqrt(1 - u), np.sqrt(u)
    x, y, z, q = (
        a * np.sin(2 * np.pi * v),
        a * np.cos(2 * np.pi * v),
        b * np.sin(2 * np.pi * w),
        b * np.cos(2 * np.pi * w),
    )
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * q), 2 * (x * z + y * q)],
            [2 * (x * y + z * q), 1 - 2 * (x * x + z * z), 2 * (y * z - x * q)],
            [2 * (x * z - y * q), 2 * (y * z + x * q), 1 - 2 * (x * x + y * y)],
        ]
    )
