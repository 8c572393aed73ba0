"""Survey of a whole corpus by reading all of it: counts, sizes, duplicates, refusals and what readers noted.

Shapes are read by several processes, one at a time in each; what stays of a shape is a few numbers (about a hundred
bytes), and the names of the first few where they serve as examples.
"""

import re
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.corpora.base import Corpus, CorpusError, Inspection, MachineFault, ShapeError
from pipeline.corpora.faults import machine_fault_in, patiently
from pipeline.corpora.files import Entry, FileCorpus
from pipeline.corpora.kinds.fewshot import EpisodeCorpus
from pipeline.corpora.processes import cores, spread
from pipeline.corpora.report import Duplicates, Group, Note, Reason, Report, Same, Spread, UpGuess
from pipeline.corpora.rows import RowCorpus

__all__ = ["groups_of", "survey"]

EXAMPLES = 3
CHUNK = 16  # shapes a process is asked for at a time
FEW = 64  # shapes that are read sooner than processes start
MAX_PROCESSES = 16
CLEAR, VOTERS, FEWEST = 2 / 3, 20, 5  # share and number of votes from which a guess is clear; fewer are no guess
_AXES = "xyz"
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def survey(
    corpus: Corpus, *, processes: int | None = None, progress: Callable[[int, int], None] = lambda done, refused: None
) -> Report:
    """Read all of a corpus.

    processes  how many read; None: one a core and at most 16, of a small corpus this one alone. Shapes that are rows of
               arrays in memory are always read by this process.
    progress   is called with how many shapes have been read, and how many of them were refused.

    Raises MachineFault, and CorpusError for a bug of a reader, with the shape's name.
    """
    count = len(corpus)
    if processes is None:
        processes = 1 if count <= FEW else min(cores(), MAX_PROCESSES)
    if processes < 1:
        raise ValueError(f"processes = {processes}; expected at least 1")
    tally = _Tally(corpus)
    if processes == 1 or isinstance(corpus, RowCorpus | EpisodeCorpus):  # an episode is small, and may be of such rows
        found: Iterable[list[_Found]] = ([_look(corpus, index, index)] for index in range(count))
    else:
        base = corpus.holding([]) if isinstance(corpus, FileCorpus) else corpus
        found = spread(_Reader(base), _jobs(corpus), min(processes, -(-count // CHUNK)), what=corpus.uri)
    for chunk in found:
        for shape in chunk:
            tally.add(shape)
        progress(tally.done, tally.refused)
    return tally.report()


def groups_of(corpus: Corpus, refused: Iterable[int] = ()) -> tuple[Group, ...]:
    """Group shapes by split and class, sorted, without reading them; `refused` are indices."""

    def key(index: int) -> tuple[str | None, int | None]:
        return corpus.split_of(index), corpus.label(index)

    bad = Counter(map(key, refused))
    found = Counter(map(key, range(len(corpus))))
    names = corpus.label_names
    order = sorted(found, key=lambda pair: (pair[0] or "", -1 if pair[1] is None else pair[1]))
    return tuple(
        Group(split, None if label is None else names[label] if label < len(names) else str(label),
              found[split, label], bad[split, label])
        for split, label in order
    )  # fmt: skip


# -- reading -----------------------------------------------------------------------------------------------------------

_Found = tuple[int, Inspection | tuple[str, str]]
"""index of a shape, and what it is, or the source and the reason of its refusal"""
_Job = tuple[int, int, list[Entry] | None]
"""shapes first..end - 1, and their entries where the corpus is a list of files"""


@dataclass(frozen=True)
class _Reader:
    """The work of a process for each job."""

    corpus: Corpus

    def __call__(self, job: _Job) -> list[_Found]:
        start, stop, entries = job
        if entries is None:
            return [_look(self.corpus, index, index) for index in range(start, stop)]
        assert isinstance(self.corpus, FileCorpus)
        part = self.corpus.holding(entries)
        return [_look(part, index - start, index) for index in range(start, stop)]


def _jobs(corpus: Corpus) -> Iterator[_Job]:
    for start in range(0, len(corpus), CHUNK):
        stop = min(start + CHUNK, len(corpus))
        yield start, stop, corpus.entries(start, stop) if isinstance(corpus, FileCorpus) else None


def _look(corpus: Corpus, at: int, index: int) -> _Found:
    """Inspect shape ``at`` of ``corpus``, which is shape ``index`` of the whole."""
    source = corpus.source(at)
    try:
        return index, patiently(lambda: corpus.inspect(at), source)
    except ShapeError as error:
        return index, (error.source, error.reason)
    except MachineFault:
        raise
    except Exception as error:
        if isinstance(error, CorpusError) or machine_fault_in(error) is not None:
            raise
        raise CorpusError(
            f"shape {corpus.id(at)!r} ({source}): its reader failed with {type(error).__name__}: {error}.\n"
            "  This is a bug of the reader, not a fault of the file; please report it."
        ) from error


# -- counting ----------------------------------------------------------------------------------------------------------


@dataclass
class _Examples:
    """A count, and the indices of the first shapes it is about, whichever came first."""

    shapes: int = 0
    count: int = 0
    first: list[tuple[int, Any]] = field(default_factory=list)

    def add(self, index: int, what: Any = None, count: int = 1) -> None:
        self.shapes += 1
        self.count += count
        insort(self.first, (index, what), key=lambda pair: pair[0])
        del self.first[EXAMPLES:]


class _Tally:
    """A few numbers per shape, in arrays over all shapes."""

    def __init__(self, corpus: Corpus) -> None:
        n = len(corpus)
        self.corpus, self.done = corpus, 0
        self.bad: list[int] = []
        self._usable = np.zeros(n, bool)
        self._mesh = np.zeros(n, bool)
        self._box = np.zeros((n, 2, 3))
        self._stored, self._faces, self._size = (np.zeros(n, np.int64) for _ in range(3))
        self._area = np.zeros(n)
        self._stands = np.zeros(n, np.int8)
        self._content, self._file = np.zeros((n, 2), np.uint64), np.zeros((n, 2), np.uint64)
        self._has_file = np.zeros(n, bool)
        self._reasons: dict[str, _Examples] = defaultdict(_Examples)
        self._notes: dict[str, _Examples] = defaultdict(_Examples)

    @property
    def refused(self) -> int:
        return len(self.bad)

    def add(self, found: _Found) -> None:
        index, shape = found
        self.done += 1
        if not isinstance(shape, Inspection):
            self.bad.append(index)
            self._reasons[_pattern(shape[1])].add(index, shape)
            return
        self._usable[index] = True
        self._mesh[index] = shape.kind == "mesh"
        self._box[index] = shape.low, shape.high
        self._stored[index], self._faces[index], self._size[index] = shape.stored, shape.faces, shape.size
        self._area[index], self._stands[index] = shape.area, shape.stands
        self._content[index] = np.frombuffer(shape.content, np.uint64)
        if shape.file is not None:
            self._file[index], self._has_file[index] = np.frombuffer(shape.file, np.uint64), True
        for what, count in shape.notes.items():
            self._notes[what].add(index, count=count)

    def report(self) -> Report:
        corpus, usable = self.corpus, self._usable
        meshes, clouds = usable & self._mesh, usable & ~self._mesh
        sides = self._box[:, 1] - self._box[:, 0]
        longest = sides.max(axis=1, initial=0)
        which = np.flatnonzero(usable)
        extent = {name: _spread(sides[usable, axis]) for axis, name in enumerate(_AXES)}
        extent["longest"] = _spread(longest[usable])
        formats = Counter(corpus.format_of(index) for index in range(len(corpus)))
        twins, same_bytes = np.zeros(len(usable), np.int64), None
        if self._has_file.any():
            twins = _numbered(self._file, self._has_file)
            same_bytes = self._duplicates(twins, self._has_file, None)
        return Report(
            uri=corpus.uri,
            points=int(corpus.points),
            shapes=len(corpus),
            refused=self.refused,
            ignored=corpus.ignored if isinstance(corpus, FileCorpus) else None,
            formats=dict(sorted(formats.items())),
            groups=groups_of(corpus, self.bad),
            size=int(self._size.sum()) if self._has_file.any() else None,
            meshes=int(meshes.sum()),
            clouds=int(clouds.sum()),
            extent={name: value for name, value in extent.items() if value is not None},
            low=tuple(self._box[usable, 0].min(axis=0).tolist()) if len(which) else None,
            high=tuple(self._box[usable, 1].max(axis=0).tolist()) if len(which) else None,
            smallest=corpus.id(int(which[longest[which].argmin()])) if len(which) else None,
            largest=corpus.id(int(which[longest[which].argmax()])) if len(which) else None,
            faces=_spread(self._faces[meshes]),
            area=_spread(self._area[meshes]),
            vertices=_spread(self._stored[meshes]),
            stored=_spread(self._stored[clouds]),
            up=_up(self._stands[usable]),
            same_bytes=same_bytes,
            same_content=self._duplicates(
                _numbered(self._content, usable), usable, twins if self._has_file.any() else None
            ),
            refusals=tuple(
                Reason(reason, found.shapes, tuple(pair for _, pair in found.first))
                for reason, found in sorted(self._reasons.items(), key=lambda item: (-item[1].shapes, item[0]))
            ),
            notes=tuple(
                Note(what, found.shapes, found.count, tuple(corpus.id(index) for index, _ in found.first))
                for what, found in sorted(self._notes.items(), key=lambda item: (-item[1].shapes, item[0]))
            ),
        )

    def _duplicates(self, number: np.ndarray, among: np.ndarray, told: np.ndarray | None) -> Duplicates:
        """Find shapes of the same number; those that `told` also gives one number are left out."""
        where = np.flatnonzero(among)
        where = where[np.argsort(number[where], kind="stable")]
        cuts = np.flatnonzero(np.diff(number[where])) + 1
        starts, ends = np.concatenate([[0], cuts]), np.concatenate([cuts, [len(where)]])
        several = np.flatnonzero(ends - starts > 1)
        groups = [where[starts[k] : ends[k]] for k in several]
        if told is not None:
            groups = [group for group in groups if (told[group] != told[group[0]]).any()]
        groups.sort(key=lambda group: int(group[0]))
        corpus = self.corpus

        def differ(facts: Callable[[int], object]) -> int:
            return sum(len({facts(int(index)) for index in group}) > 1 for group in groups)

        return Duplicates(
            groups=len(groups),
            surplus=sum(len(group) - 1 for group in groups),
            across_splits=differ(corpus.split_of),
            across_classes=differ(corpus.label),
            examples=tuple(
                Same(len(group), tuple(corpus.id(int(index)) for index in group[:EXAMPLES]))
                for group in groups[:EXAMPLES]
            ),
        )


def _numbered(digests: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Number equal digests [n, 2] alike; 0 for shapes that are not among them."""
    numbers = np.zeros(len(digests), np.int64)
    if among.any():
        numbers[among] = np.unique(digests[among], axis=0, return_inverse=True)[1].reshape(-1) + 1
    return numbers


def _spread(values: np.ndarray) -> Spread | None:
    if not len(values):
        return None
    return Spread(float(values.min()), float(np.median(values)), float(values.max()))


def _up(stands: np.ndarray) -> UpGuess:
    votes = {name: int((np.abs(stands) == axis).sum()) for axis, name in enumerate(_AXES, 1)}
    total = sum(votes.values())
    best = max(votes, key=lambda name: votes[name])
    sure = "weak" if total >= FEWEST and 2 * votes[best] > total else "none"
    if total >= VOTERS and votes[best] >= CLEAR * total:
        sure = "clear"
    axis = _AXES.index(best) + 1
    sign = 1 if (stands == axis).sum() >= (stands == -axis).sum() else -1
    return UpGuess(None if sure == "none" else best, sign, sure, votes, len(stands) - total)


def _pattern(reason: str) -> str:
    """Return a reason without what differs between files."""
    return _NUMBER.sub("N", _QUOTED.sub("'...'", reason))
