"""A corpus whose shapes are rows of arrays held in memory: what NPZ and HDF5 files share."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.corpora.base import CorpusError, Inspection, Shape, ShapeError
from pipeline.corpora.check import fit_points
from pipeline.corpora.entrance import check_ids
from pipeline.corpora.formats.geometry import Cloud
from pipeline.corpora.inspection import inspect_cloud
from pipeline.corpora.releases import Release

__all__ = ["RowCorpus"]

ROWS_VERSION = 1  # incremented when the same rows would give other points


class RowCorpus:
    """Shapes that are rows of arrays.

    Attributes:
        uri, identity, label_names, part_names: see Corpus
        points: points of each shape
        release: the published set that was found, or None
    """

    def __init__(
        self,
        *,
        uri: str,
        identity: Mapping[str, Any],
        label_names: Sequence[str],
        ids: Sequence[str],
        sources: Sequence[str],
        labels: Sequence[int] | np.ndarray | None,
        splits: Sequence[str] | None,
        read: Callable[[int], np.ndarray],
        points: int,
        seed: int,
        repeat: bool,
        stamps: Sequence[str],
        parts: np.ndarray | None = None,
        part_names: Sequence[str] = (),
        format: str = "rows",
        stored_order: bool = False,
        release: Release | None = None,
    ) -> None:
        """``read(i)`` returns the stored points [M, 3] of row i, or raises ShapeError; ``parts`` is [n, M]; the rest
        has one entry a row: ``stamps`` the `file_stamp` of the file that it lies in, taken before that was opened.
        ``format`` names the kind of file, for reports. ``stored_order``: the first points of each row instead of random
        ones. ``release``: which published set it is, of a kind that knows one.
        """
        if not ids:
            raise CorpusError(f"{uri}: no shapes")
        check_ids(ids, uri)
        self.uri = uri
        self.identity = dict(identity)
        self.label_names = tuple(label_names)
        self.part_names = tuple(part_names)
        self.points = points
        self._ids, self._sources, self._splits = list(ids), list(sources), splits
        self._labels = None if labels is None else [int(label) for label in labels]
        self._read, self._parts = read, parts
        self._stamps = list(stamps)
        self._seed, self._repeat = seed, repeat
        self._format, self._stored_order = format, stored_order
        self.release = release

    def __len__(self) -> int:
        return len(self._ids)

    def id(self, index: int) -> str:
        return self._ids[self._inside(index)]

    def source(self, index: int) -> str:
        return self._sources[self._inside(index)]

    def label(self, index: int) -> int | None:
        label = -1 if self._labels is None else self._labels[self._inside(index)]
        return None if label < 0 else label

    def split_of(self, index: int) -> str | None:
        return None if self._splits is None else self._splits[self._inside(index)]

    def format_of(self, index: int) -> str:
        return self._format

    def inspect(self, index: int) -> Inspection:
        self[index]
        return inspect_cloud(Cloud(self._read(index)))

    def fingerprint(self, index: int) -> str:
        points = np.ascontiguousarray(self._read(self._inside(index)))
        label = self.label(index)
        named = None if label is None else self.label_names[label] if self.label_names else label
        split = self.split_of(index)
        facts = [ROWS_VERSION, points.dtype.str, points.shape, named, split]
        digest = hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass"))
        digest.update(points.tobytes())
        if self._parts is not None:
            digest.update(np.ascontiguousarray(self._parts[index], dtype="<i2").tobytes())
        return digest.hexdigest()

    def stamp(self, index: int) -> str | None:
        """Return the stamp of the row's file as it was when opened: rows stay in memory, whatever happens to the file.

        A file that is rewritten is compared row by row.
        """
        return self._stamps[self._inside(index)]

    def __getitem__(self, index: int) -> Shape:
        points = self._read(self._inside(index))
        parts = None if self._parts is None else self._parts[index]
        id, source = self._ids[index], self._sources[index]
        if parts is not None and not (parts.min() >= 0 and parts.max() < len(self.part_names)):
            raise ShapeError(
                source,
                f"part labels run from {parts.min()} to {parts.max()}; there are {len(self.part_names)} part names",
            )
        cloud, part_labels = fit_points(
            points,
            parts,
            count=self.points,
            seed=self._seed,
            id=id,
            source=source,
            repeat=self._repeat,
            stored_order=self._stored_order,
        )
        label, split = self.label(index), self.split_of(index)
        return Shape(id=id, points=cloud, label=label, part_labels=part_labels, split=split)

    def _inside(self, index: int) -> int:
        if not 0 <= index < len(self._ids):
            raise IndexError(f"index {index} is outside 0..{len(self._ids) - 1}")
        return index
