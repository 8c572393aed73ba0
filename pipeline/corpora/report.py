"""The report on a corpus: plain numbers and names, which `survey` computes and a command prints."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Duplicates", "Group", "Note", "Reason", "Report", "Same", "Spread", "UpGuess"]


@dataclass(frozen=True)
class Group:
    """Shapes of one split and class (None: without), and how many of them are refused."""

    split: str | None
    label: str | None
    shapes: int
    refused: int = 0


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of a number over shapes."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True)
class UpGuess:
    """A guess of the upward axis by `inspection.standing`; nothing acts on it.

    axis   "x", "y" or "z"; None where the votes name none
    sign   1 or -1: up is where its numbers grow, or fall
    sure   "clear": of 20 votes or more, two thirds name this axis; "weak": of 5 or more, more than half do; "none"
    votes  shapes that vote, by axis
    silent shapes without a vote
    """

    axis: str | None
    sign: int
    sure: str
    votes: Mapping[str, int]
    silent: int


@dataclass(frozen=True)
class Same:
    """Some shapes that are one: how many, and the ids of the first."""

    shapes: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Duplicates:
    """Shapes that occur more than once.

    groups   of shapes that are the same
    surplus  shapes beyond the first of each group
    across_splits, across_classes  groups whose shapes lie in more than one split, or class
    examples the first groups
    """

    groups: int
    surplus: int
    across_splits: int
    across_classes: int
    examples: tuple[Same, ...]


@dataclass(frozen=True)
class Reason:
    """Refused shapes whose reasons differ in numbers and quoted words only; examples are (source, reason)."""

    reason: str
    shapes: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Note:
    """Something that readers skipped or repaired: in how many shapes, how often in all, ids of the first."""

    what: str
    shapes: int
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A corpus, read from end to end. Everything but `shapes`, `refused`, `formats`, `groups`, `refusals` and `ignored`
    is about the shapes that can be used.

    ignored        files that were passed over when the corpus was opened; None where it is no list of files
    formats        shapes by kind of file
    size           bytes of the files; None where shapes have none of their own
    meshes, clouds how many are which
    extent         sides of the boxes around the shapes, by axis ("x", "y", "z") and "longest", axes as in the files
    low, high      corners of the box around all shapes, [3]
    smallest, largest  ids of the shapes of the least and the greatest longest side
    faces, area, vertices  of meshes; area in squared units of the files; None without meshes
    stored         points of clouds as stored; None without clouds
    same_bytes     shapes made of the same bytes; None where they have no files of their own
    same_content   shapes of the same triangles, or points, in float32 and in the same order, but not of the same bytes
    """

    uri: str
    points: int
    shapes: int
    refused: int
    ignored: int | None
    formats: Mapping[str, int]
    groups: tuple[Group, ...]
    size: int | None
    meshes: int
    clouds: int
    extent: Mapping[str, Spread]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    smallest: str | None
    largest: str | None
    faces: Spread | None
    area: Spread | None
    vertices: Spread | None
    stored: Spread | None
    up: UpGuess
    same_bytes: Duplicates | None
    same_content: Duplicates
    refusals: tuple[Reason, ...]
    notes: tuple[Note, ...]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values; absent numbers are null."""
        return asdict(self)
