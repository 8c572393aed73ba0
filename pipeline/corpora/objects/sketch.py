"""A sketch of one object: its random choices, its parts and the facts that captions mention."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.corpora.objects.primitives import Mesh, mirror

__all__ = ["Category", "Fact", "Part", "Sketch"]

Fact = str | int | float | bool


class Part(NamedTuple):
    """One piece of an object: a part name of its category, and its surface."""

    name: str
    mesh: Mesh


class Sketch:
    """One object while it is drawn.

    Choices made with a name (``choose``, ``maybe``, ``count``) become facts: what a caption may say. Parts are counted
    as they are added, so four calls of ``add("leg", ...)`` make a thing with four legs.

    Attributes:
        parts: the pieces, in the order in which they were added
        facts: named choices
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self._random = generator.random
        self.parts: list[Part] = []
        self.facts: dict[str, Fact] = {}

    def between(self, low: float, high: float) -> float:
        """Draw an unnamed number, uniform in low..high."""
        return low + (high - low) * self._random()

    def chance(self, probability: float) -> bool:
        """Flip an unnamed coin."""
        return self._random() < probability

    def choose(self, fact: str, options: dict[str, float]) -> str:
        """Choose a word by weight and keep it as a fact."""
        mark = self._random() * sum(options.values())
        word = ""
        for word, weight in options.items():  # noqa: B007 - the last word is the answer when rounding leaves a rest
            mark -= weight
            if mark < 0:
                break
        self.facts[fact] = word
        return word

    def count(self, fact: str, low: int, high: int) -> int:
        """Draw a whole number in low..high and keep it as a fact."""
        number = low + int(self._random() * (high - low + 1))
        self.facts[fact] = number
        return number

    def maybe(self, fact: str, probability: float) -> bool:
        """Flip a coin and keep the answer as a fact."""
        answer = bool(self._random() < probability)
        self.facts[fact] = answer
        return answer

    def add(self, part: str, *meshes: Mesh) -> None:
        """Add pieces, each one instance of ``part``."""
        self.parts.extend(Part(part, mesh) for mesh in meshes)

    def add_pair(self, part: str, mesh: Mesh) -> None:
        """Add a piece and its mirror image in x."""
        self.add(part, mesh, mirror(mesh, "x"))


class Category(NamedTuple):
    """A kind of object and the function that draws it.

    Attributes:
        name: what people call it, singular
        parts: every part name that ``draw`` may use
        draw: fills a sketch; z up, the front along -y, about centred in x and y, any unit
    """

    name: str
    parts: tuple[str, ...]
    draw: Callable[[Sketch], None]
