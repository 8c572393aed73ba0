"""Captions for views of synthetic objects, and their vocabulary.

A caption always names the category, and mentions some further facts: the side it is seen from, proportions, counts of
parts, style. The choice is drawn again every time an image is shown, so that no single sentence belongs to an image.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.corpora.kinds.synthetic import Attributes

__all__ = ["CLASS_PROMPTS", "Pose", "Vocabulary", "caption", "every_phrase", "part_phrase"]

CLASS_PROMPTS = ("a {}", "a {} seen from the front", "a {} seen from the side", "a {} seen from above", "a tumbled {}")
"""Sentences with which a category is named when shapes are classified; all of these forms occur in captions."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SIDE_DEGREES = 30.0  # a view this close to an object's front counts as from the front
_DETAILS = (0.35, 0.3, 0.2, 0.15)  # chances of telling none, one, two, three details


class Pose(NamedTuple):
    """The rotation of an object before it was rendered.

    kind  "upright", "yaw" or "tumbled";  degrees  of the turn about the vertical, 0 unless kind is "yaw"
    """

    kind: str
    degrees: float


def caption(attributes: Attributes, pose: Pose, view: int, generator: np.random.Generator) -> str:
    """Generate one sentence about one view.

    view  0..2, as `cuda.geometry.VIEW_AXES`: from above, and two sides at right angles.
    """
    named = f"a {attributes.category}"
    if generator.random() < 0.5:
        named = f"a {_proportion(attributes.size)} {attributes.category}"
    details = _details(attributes)
    count = min(int(generator.choice(len(_DETAILS), p=_DETAILS)), len(details))
    chosen = [details[k] for k in generator.permutation(len(details))[:count]]
    seen = _seen(pose, view)
    if pose.kind == "tumbled":
        named = named.replace("a ", "a tumbled ", 1) if generator.random() < 0.5 else named
    elif generator.random() < 0.6:
        named = f"{named} seen from {seen}"
    return f"{named} with {' and '.join(chosen)}" if chosen else named


def part_phrase(name: str) -> str:
    """Return the phrase for a patch that shows a part; `name` as in the corpus' part_names, category/part."""
    category, _, part = name.partition("/")
    return f"{part} of a {category}"


def every_phrase(attributes: Attributes) -> Iterable[str]:
    """Yield all phrases that a caption may contain about an object, besides the fixed words."""
    yield attributes.category
    yield from _details(attributes)


def _details(attributes: Attributes) -> list[str]:
    details = [f"{_number(count)} {_plural(part) if count > 1 else part}" for part, count in attributes.parts.items()]
    for fact, value in attributes.facts.items():
        if isinstance(value, bool):
            details.append(fact if value else f"no {fact}")
        elif isinstance(value, int | float):
            details.append(f"{_number(round(value))} {fact}")
        elif fact in ("kind", "style"):
            details.append(value)
        else:
            details.append(f"{_NUMBERS[int(value)] if value.isdecimal() and int(value) <= 12 else value} {fact}")
    return details


def _plural(part: str) -> str:
    return part[:-4] + "feet" if part.endswith("foot") else part + "s"


def _number(count: int) -> str:
    return _NUMBERS[count] if 0 <= count < len(_NUMBERS) else "many"


def _proportion(size: tuple[float, float, float]) -> str:
    """Return a word for (width, depth, height), the largest of them 1."""
    width, depth, height = size
    floor = sorted((width, depth))
    if height < 0.35:
        return "long flat" if floor[0] < 0.5 else "flat"
    if height == max(size):
        return "slender" if floor[1] < 0.4 else "tall" if floor[1] < 0.75 else "compact"
    return "long" if floor[0] < 0.5 else "low" if height < 0.6 else "compact"


def _seen(pose: Pose, view: int) -> str:
    if view == 0:
        return "above"
    # view 1 looks along y, an object's own front to back; view 2 along x
    angle = (pose.degrees + (90.0 if view == 2 else 0.0)) % 180.0
    if min(angle, 180.0 - angle) <= _SIDE_DEGREES:
        return "the front"
    return "the side" if abs(angle - 90.0) <= _SIDE_DEGREES else "a corner"


_FIXED = " ".join(
    [
        *(prompt.format("") for prompt in CLASS_PROMPTS),
        *_NUMBERS,
        "many with and seen from above of the front side corner tumbled long flat slender tall compact low",
    ]
)


class Vocabulary:
    """Words as numbers: 0 pads, 1 starts, 2 is any unknown word, the last of `size` ends; open_clip pools there.

    words  distinct, at most size - 4 of them.  size  of the text tower's table.  length  tokens of a text.
    """

    PAD, START, UNKNOWN, FIRST = 0, 1, 2, 3

    def __init__(self, words: Sequence[str], *, size: int, length: int) -> None:
        if len(set(words)) != len(words) or len(words) > size - self.FIRST - 1:
            raise ValueError(
                f"{len(words)} words for a vocabulary of {size}; expected distinct words, at most {size - 4}"
            )
        self.words, self.size, self.length = tuple(words), size, length
        self._number = {word: self.FIRST + k for k, word in enumerate(words)}

    @classmethod
    def of(cls, described: Iterable[Attributes], *, size: int, length: int) -> "Vocabulary":
        """Collect the words of all captions of these objects, sorted; the fixed ones always."""
        found = set(_split(_FIXED))
        for attributes in described:
            for phrase in every_phrase(attributes):
                found.update(_split(phrase))
        return cls(sorted(found), size=size, length=length)

    def knows(self, text: str) -> bool:
        """Check that every word of `text` is in the vocabulary."""
        return all(word in self._number for word in _split(text))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokenise texts -> tokens [n, length] int64; a text that is too long is cut before the end token."""
        tokens = torch.zeros(len(texts), self.length, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            words = [self._number.get(word, self.UNKNOWN) for word in _split(text)][: self.length - 2]
            line = [self.START, *words, self.size - 1]
            row[: len(line)] = torch.tensor(line)
        return tokens


def _split(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
