"""What a report says of a cache, from its index; the corpus it was built from is looked at where it can be opened."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cli.experiment.sections import Experiment
    from pipeline.corpora import Corpus
    from teacher_cache import Cache

__all__ = ["Index", "duplicates", "of_corpus", "read_index", "refused_cloud", "sizes"]

DRAWN_POINTS = 2000  # of a refused shape


@dataclass
class Index:
    """What the receipts of a cache say.

    ids, labels  [shapes] of the first pose of each shape
    made_of      shape id -> SHA-256 of what it was made from; shapes of 0.1.0 are absent
    bytes        by array or kind of file
    """

    ids: list[str] = field(default_factory=list)
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    made_of: dict[str, str] = field(default_factory=dict)
    bytes: Counter[str] = field(default_factory=Counter)


def read_index(cache: "Cache", told: Any) -> Index:
    """Read every receipt once; told.add(shapes) is called for each."""
    found = Index()
    labels: list[int] = []
    for receipt in cache.receipts():
        found.ids += receipt.ids[:: cache.poses]
        labels += receipt.labels[:: cache.poses]
        found.made_of |= dict(receipt.shapes)
        for file in receipt.files:
            found.bytes[_kind(file.path)] += file.bytes
        told.add(len(receipt.ids) // cache.poses)
    found.labels = np.array(labels, np.int64)
    return found


def _kind(path: str) -> str:
    """The array of a Zarr chunk, which is its folder; the file's ending otherwise."""
    place = PurePosixPath(path)
    return place.parts[0] if place.name.startswith("c.") else f"{place.suffix.removeprefix('.') or place.name} shards"


def sizes(index: Index, records: int) -> list[tuple[str, int, float]]:
    """Bytes of each array, the largest first, in all and for each record."""
    return [(name, size, size / max(records, 1)) for name, size in index.bytes.most_common()]


def duplicates(index: Index) -> list[list[str]]:
    """Groups of shapes that were made from the same content (and label and split), the largest first."""
    groups: dict[str, list[str]] = {}
    for id, made_of in index.made_of.items():
        groups.setdefault(made_of, []).append(id)
    return sorted((ids for ids in groups.values() if len(ids) > 1), key=lambda ids: (-len(ids), ids))


def refused_cloud(corpus: "Corpus", index: int) -> np.ndarray | None:
    """Read the points or vertices of a refused shape, [n, 3] float64 finite and not all in one place; None where its
    file does not give any."""
    from pipeline.corpora.base import ShapeError
    from pipeline.corpora.files import FileCorpus, read_geometry

    if not isinstance(corpus, FileCorpus):
        return None
    [entry] = corpus.entries(index, index + 1)
    try:
        geometry = read_geometry(entry.path)
    except (ShapeError, KeyError):  # KeyError: a file that no reader is for
        return None
    points = np.asarray(geometry.points if hasattr(geometry, "points") else geometry.vertices)
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "fiu":
        return None
    points = points.astype(np.float64)
    points = points[np.isfinite(points).all(axis=1) & (np.abs(points) < 1e30).all(axis=1)]
    if len(points) > DRAWN_POINTS:
        points = points[np.linspace(0, len(points) - 1, DRAWN_POINTS).round().astype(int)]
    return points if len(points) else None


def of_corpus(experiment: "Experiment", cache: "Cache") -> tuple["Corpus | None", list[str]]:
    """Open the corpus of an experiment and compare it with its cache; -> it, and what a rebuild would do, in lines."""
    from pipeline.build.driver import changes_at
    from pipeline.corpora import open_corpus
    from pipeline.errors import PipelineError

    try:
        corpus = open_corpus(experiment.corpus.uri, points=experiment.corpus.points)
        changes = changes_at(cache.path, experiment.corpus, content=False)
    except PipelineError as error:
        return None, [f"unknown, because the corpus cannot be opened here: {error}"]
    if changes is None:
        return None, ["unknown: the cache belongs to another corpus than the experiment's"]
    lines = changes.lines()
    if changes.came and not changes.stale:
        lines.append(f"{changes.came} new shapes would be added")
    if changes.shards:
        lines.append(f"{len(changes.shards)} of {len(cache.counts)} shards would be rebuilt (--changed rebuild)")
    if changes.suspects:
        count = sum(map(len, changes.suspects.values()))
        lines.append(f"{count} refused shapes, in {len(changes.suspects)} shards, changed and would be tried again")
    if changes.unknown:
        lines.append(f"whether {changes.unknown} shapes changed is unknown: their shards have no fingerprints")
    if changes.others:
        lines.append(f"{changes.others} shapes of other experiments would stay as they are")
    lines.append(f"{changes.same} shapes would stay as they are, including quarantined ones")
    return corpus, lines


def reasons(quarantined: Sequence[Any]) -> list[tuple[str, int]]:
    """Reasons of refusal by number of shapes, the most frequent first; numbers within them do not tell them apart."""
    import re

    counted: Counter[str] = Counter()
    first: Mapping[str, str] = {}
    for item in quarantined:
        key = re.sub(r"\d[\d.,e+-]*", "#", item.reason)
        first = {**first, key: first.get(key, item.reason)}
        counted[key] += 1
    return [(first[key], count) for key, count in counted.most_common()]
