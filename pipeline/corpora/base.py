"""The corpus interface: an ordered, addressable set of shapes, and the errors of one.

Every kind of corpus (one file each beside this one) satisfies ``Corpus``. Shapes are read one at a time and by index,
so that a shard of a build can be read by any worker in any order. A shape that cannot be used raises ``ShapeError``
when it is read, never while the corpus is opened: one bad file must not stop a corpus of a million.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pipeline.errors import PipelineError

__all__ = [
    "Corpus",
    "CorpusError",
    "Inspection",
    "MachineFault",
    "Shape",
    "ShapeError",
    "UnreadHere",
    "corpus_fingerprint",
    "identity_hash",
    "shape_generator",
]


class CorpusError(PipelineError):
    """A corpus that cannot be opened: no such folder, a list file that is missing, an option that does not exist."""


class MachineFault(CorpusError):
    """A shape could not be read, and not by its own fault: a disk, a permission, memory, open files, a network.

    The reader stops, and nothing is quarantined. Only `faults` decides which errors these are.

    source  what was being read
    reason  what the system said
    remedy  what to do, a sentence
    """

    def __init__(self, source: str, reason: str, remedy: str) -> None:
        super().__init__(source, reason, remedy)
        self.source = source
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return (
            f"{self.source}: cannot be read: {self.reason}.\n"
            f"  This is a fault of the machine, not of the shape, so nothing is quarantined. {self.remedy} Then run "
            "the command again."
        )


class ShapeError(PipelineError):
    """One shape that cannot be used: unreadable, damaged or degenerate. A build quarantines it and continues.

    source   the file (or the description of the shape) that is at fault
    reason   what was expected and what was found, in words
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class UnreadHere(ShapeError):
    """A shape whose file needs a library that is not installed here: it may be sound, and is tried again."""


@dataclass(frozen=True)
class Inspection:
    """Properties of one shape for a report.

    kind     "mesh" or "cloud"
    stored   vertices that faces use, or points
    faces    triangles; 0 for a cloud
    area     of the triangles, float64, in squared units of the file; 0 for a cloud
    low, high  corners of the box around them [3] float64, axes as in the file
    stands   the upward direction, inferred from the shape alone: +-1, +-2, +-3 for an end of x, y, z, 0 if undecided;
             see `standing`
    content  first 16 bytes of a SHA-256 of the triangles' corners, or the points, in float32 and in their order
    notes    what was skipped or repaired while reading, counted
    file     first 16 bytes of a SHA-256 of the bytes of its files; None where it has no file of its own
    size     bytes of its files; 0 where it has none of its own
    """

    kind: str
    stored: int
    faces: int
    area: float
    low: np.ndarray
    high: np.ndarray
    stands: int
    content: bytes
    notes: Mapping[str, int] = field(default_factory=dict)
    file: bytes | None = None
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One shape, as read.

    Attributes:
        id: unique within its corpus and stable over time; it never depends on how many shapes there are
        points: [N, 3] float32, finite, not normalised, in random order, so that any prefix is a uniform sample
        label: index into the corpus' label_names, or None
        part_labels: [N] int16, index into the corpus' part_names, or None
        split: "train", "test", another word the corpus uses, or None
    """

    id: str
    points: np.ndarray
    label: int | None = None
    part_labels: np.ndarray | None = None
    split: str | None = None


@runtime_checkable
class Corpus(Protocol):
    """An ordered set of shapes; indices run from 0 to len - 1 and mean the same shapes on every machine.

    Everything but ``__getitem__``, ``inspect`` and ``fingerprint`` is cheap (no file is read). A corpus may be used by
    several threads at once.
    """

    @property
    def uri(self) -> str:
        """The URI that opens this corpus again."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """The settings that determine the shapes, JSON values only; never their number, never an absolute path."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, in order; empty when there are none."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts, in order; empty when there are none."""

    @property
    def points(self) -> int:
        """Points of each shape."""

    def __len__(self) -> int: ...

    def id(self, index: int) -> str:
        """Return the name of shape ``index``: unique, stable."""

    def source(self, index: int) -> str:
        """Return the origin of shape ``index``, for messages to people."""

    def label(self, index: int) -> int | None:
        """Return the label of shape ``index`` (without reading it), or None."""

    def split_of(self, index: int) -> str | None:
        """Return the split of shape ``index`` (without reading it), or None."""

    def format_of(self, index: int) -> str:
        """Return the file format of shape ``index``, a word for reports (without reading it)."""

    def inspect(self, index: int) -> Inspection:
        """Read shape ``index`` and check it as ``__getitem__`` does, for a report. Raises the same errors."""

    def fingerprint(self, index: int) -> str:
        """Return the SHA-256 (hex) of what shape ``index`` is made from.

        This is the content of its files, their reader and its version, label by name, and split. Reads the files.
        Raises ShapeError and MachineFault.
        """

    def stamp(self, index: int) -> str | None:
        """Return `faults.file_stamp` of each file of shape ``index``, separated by blanks.

        It is cheap, and while it is unchanged the fingerprint most likely is too. None if there are no files, and the
        fingerprint is as cheap. Raises MachineFault.
        """

    def __getitem__(self, index: int) -> Shape:
        """Read shape ``index``.

        Raises IndexError outside 0..len-1, ShapeError for a shape that cannot be used, and MachineFault for one that
        cannot be read now, through no fault of its own; nothing else.
        """


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an identity's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(dict(identity), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def corpus_fingerprint(corpus: Corpus, indices: Iterable[int] | None = None) -> str:
    """Hash the identity and the (id, fingerprint) of the shapes by SHA-256; ``indices`` restricts them, None: all.

    Reads every file of a corpus that has files. A shape that cannot be used counts as its reason. Raises MachineFault.
    """
    digest = hashlib.sha256(identity_hash(corpus.identity).encode())
    for index in range(len(corpus)) if indices is None else indices:
        try:
            content = corpus.fingerprint(index)
        except ShapeError as error:
            content = f"unreadable: {error.reason}"
        digest.update(json.dumps([corpus.id(index), content]).encode())
    return digest.hexdigest()


def shape_generator(seed: int, id: str, purpose: str) -> np.random.Generator:
    """Return the random generator of one shape for one purpose: a function of (seed, id, purpose) alone.

    Use only ``random()``: NumPy promises that the raw stream of PCG64 stays, not that every derived method does.
    """
    digest = hashlib.sha256(f"{seed}\0{id}\0{purpose}".encode()).digest()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(np.frombuffer(digest, dtype="<u4").tolist())))
