"""``shards:PLACE``: clouds or files in tar shards, in a folder or behind a URL, as `i2p corpus pack` makes them."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.base import CorpusError, Inspection, Shape, ShapeError, UnreadHere
from pipeline.corpora.check import check_shape, finite_points
from pipeline.corpora.entrance import check_ids, check_names, name_fault
from pipeline.corpora.file_rules import FileRules
from pipeline.corpora.files import READERS, read_geometry, read_held
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.numpy_files import array_from_npy
from pipeline.corpora.inspection import inspect_cloud
from pipeline.corpora.options import Options
from pipeline.corpora.shard_index import Contents, Rows, asked, member_json, read_contents, read_rows, tar_members
from teacher_cache.location import Location
from teacher_cache.storage.base import Storage
from teacher_cache.storage.opening import storage_at
from teacher_cache.storage.shard_files import ShardFile

__all__ = ["PARTS_MEMBER", "POINTS_MEMBER", "ShardCorpus", "open_shards"]

POINTS_MEMBER, PARTS_MEMBER = "points.npy", "parts.npy"
_VERSION = 1  # incremented when the same bytes would give other points
_APART = "" if os.sep == "/" else "\\:"  # what else leads out of a folder, where these are no letters of a name
_MAX_FILES = 1 << 12  # of one shape


def open_shards(place: Location, options: Options, points: int) -> "ShardCorpus":
    """Open ``shards:PLACE?split=all|WORD``. Only its index is read."""
    wanted = options.text("split", "all")
    options.finish()
    storage = asked(lambda: storage_at(place), str(place))
    contents = asked(lambda: read_contents(storage), str(place))
    if contents.stored == "clouds" and points > contents.points:
        raise CorpusError(
            f"{options.uri}: its clouds have {contents.points} points, {points} were requested; lower corpus.points, "
            f"or pack it with --points {points}"
        )
    rows = asked(lambda: read_rows(storage, contents), str(place))
    if wanted != "all":
        if wanted not in contents.splits:
            held = ", ".join(contents.splits) or "(none)"
            raise CorpusError(f"{options.uri}: no shapes of split {wanted!r}; its splits are {held}")
        rows = rows.take(np.flatnonzero(rows.split == contents.splits.index(wanted)))
    return ShardCorpus(options.uri, storage, contents, rows, points, wanted)


class ShardCorpus:
    """A corpus whose shapes lie in tar shards.

    Attributes:
        uri, identity, label_names, part_names: see Corpus
        points: points of each shape
        refused: shapes that were left out when it was packed
    """

    def __init__(self, uri: str, storage: Storage, contents: Contents, rows: Rows, points: int, split: str) -> None:
        if not len(rows):
            raise CorpusError(f"{uri}: no shapes")
        check_ids(rows.ids, uri)
        self.uri = uri
        self.points = points
        self.label_names = tuple(check_names(contents.label_names, "label", uri))
        self.part_names = tuple(check_names(contents.part_names, "part", uri))
        self.refused = contents.refused
        check_names(contents.splits, "split", uri)
        unknown = [suffix for suffix in contents.suffixes if suffix not in READERS and suffix != ".npy"]
        if unknown:
            raise CorpusError(f"{uri}: has files {', '.join(unknown)[:80]}, which no reader supports")
        self.identity = {
            "kind": "shards",
            "stored": contents.stored,
            "of": dict(contents.source),
            "points": points,
            "split": split,
            **(
                {"readers": {suffix[1:]: READERS[suffix].version for suffix in contents.suffixes}}
                if contents.stored == "files"
                else {}
            ),
        }
        self._storage, self._contents, self._rows = storage, contents, rows
        if contents.stored == "files":
            try:
                self._rules = FileRules.from_json(
                    contents.reading, points=points, label_names=self.label_names, part_names=self.part_names
                )
            except (KeyError, TypeError, ValueError) as error:
                raise CorpusError(f"{uri}: gives an unknown rule for reading its files ({error})") from error

    def __len__(self) -> int:
        return len(self._rows)

    def id(self, index: int) -> str:
        return self._rows.ids[self._inside(index)]

    def source(self, index: int) -> str:
        row = self._inside(index)
        return f"{self._contents.shards[int(self._rows.shard[row])].path}: {self._rows.ids[row]}"

    def label(self, index: int) -> int | None:
        label = int(self._rows.label[self._inside(index)])
        return None if label < 0 else label

    def split_of(self, index: int) -> str | None:
        split = int(self._rows.split[self._inside(index)])
        return None if split < 0 else self._contents.splits[split]

    def format_of(self, index: int) -> str:
        return self._suffix(index).removeprefix(".")

    def fingerprint(self, index: int) -> str:
        """Return the hash of what the index says of the shape's bytes; a read that finds others is refused."""
        label = self.label(index)
        version = READERS[self._suffix(index)].version if self._contents.stored == "files" else _VERSION
        facts = [
            version,
            self._rows.digest[self._inside(index)].tobytes().hex(),
            None if label is None else self.label_names[label],
            self.split_of(index),
        ]
        return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()

    def stamp(self, index: int) -> str | None:
        """Return None: the fingerprint is in the index, and costs no read."""
        self._inside(index)
        return None

    def __getitem__(self, index: int) -> Shape:
        members = self._members(index)
        if self._contents.stored == "files":
            geometry, _ = self._read_files(index, members)
            return self._rules.shape(geometry, **self._named(index))
        points, parts = self._cloud(index, members)
        source = self.source(index)
        cloud = finite_points(points[: self.points], source)
        check_shape(cloud, source)
        return Shape(
            id=self.id(index),
            points=cloud,
            label=self.label(index),
            part_labels=None if parts is None else parts[: self.points],
            split=self.split_of(index),
        )

    def inspect(self, index: int) -> Inspection:
        members = self._members(index)
        if self._contents.stored == "files":
            geometry, contents = self._read_files(index, members)
            return self._rules.inspection(geometry, contents, **self._named(index))
        points, _ = self._cloud(index, members)
        check_shape(finite_points(points, self.source(index)), self.source(index))
        return inspect_cloud(Cloud(points))

    def _members(self, index: int) -> list[tuple[str, bytes]]:
        """Read the members of a shape, in one read. Raises ShapeError for other bytes than were packed."""
        row, source = self._inside(index), self.source(index)
        shard = self._contents.shards[int(self._rows.shard[row])]
        file = ShardFile(path=shard.path, bytes=shard.bytes, sha256=shard.sha256)
        offset, size = int(self._rows.offset[row]), int(self._rows.size[row])
        where = f"{self._storage.location}/{shard.path}"
        data = asked(lambda: self._storage.read_range(file, offset, size), where)
        if len(data) != size:
            raise ShapeError(
                source, f"expected {size} bytes at {offset} of the shard, which ends before; copy it again"
            )
        if hashlib.sha256(data).digest() != self._rows.digest[row].tobytes():
            raise ShapeError(source, "its bytes do not have the SHA-256 in the index; copy the shard again")
        try:
            return tar_members(data)
        except Malformed as error:
            raise ShapeError(source, str(error)) from error

    def _cloud(self, index: int, members: Sequence[tuple[str, bytes]]) -> tuple[np.ndarray, np.ndarray | None]:
        """Return stored points [N, 3] float32 and parts [N] int16 or None."""
        source, N = self.source(index), self._contents.points
        held = {name.partition(".")[2]: data for name, data in members}
        try:
            if POINTS_MEMBER not in held:
                raise Malformed(f"has no member {POINTS_MEMBER}")
            points = array_from_npy(held[POINTS_MEMBER], kinds="f")
            parts = array_from_npy(held[PARTS_MEMBER], kinds="i") if self.part_names else None
        except (Malformed, KeyError) as error:
            raise ShapeError(source, f"is not a packed cloud: {error}") from error
        if points.shape != (N, 3) or (parts is not None and parts.shape != (N,)):
            shapes = f"{points.shape} points" + ("" if parts is None else f", {parts.shape} parts")
            raise ShapeError(source, f"holds {shapes}; expected {N} of each")
        if parts is not None and not (parts.min() >= 0 and parts.max() < len(self.part_names)):
            raise ShapeError(
                source,
                f"part labels run from {parts.min()} to {parts.max()}; there are {len(self.part_names)} part names",
            )
        return points, None if parts is None else parts.astype(np.int16)

    def _read_files(self, index: int, members: Sequence[tuple[str, bytes]]) -> tuple[Surface | Cloud, list[bytes]]:
        """Return the geometry of a shape, and the contents of its files. Raises ShapeError and MachineFault."""
        source, suffix = self.source(index), self._suffix(index)
        try:
            files = _files(members, suffix)
        except Malformed as error:
            raise ShapeError(source, str(error)) from error
        read = _from_disk if READERS[suffix].needs_disk else read_held
        try:
            return read(files, self._rules.reading), list(files.values())
        except ShapeError as error:
            kind = UnreadHere if isinstance(error, UnreadHere) else ShapeError
            raise kind(source, error.reason) from error

    def _named(self, index: int) -> dict[str, Any]:
        """Return what `FileRules` has to know of a shape."""
        return {
            "id": self.id(index),
            "label": self.label(index),
            "split": self.split_of(index),
            "source": self.source(index),
        }

    def _suffix(self, index: int) -> str:
        return self._contents.suffixes[int(self._rows.suffix[self._inside(index)])]

    def _inside(self, index: int) -> int:
        if not 0 <= index < len(self._rows):
            raise IndexError(f"index {index} is outside 0..{len(self._rows) - 1}")
        return index


def _from_disk(files: Mapping[str, bytes], reading: ReadOptions) -> Surface | Cloud:
    """Read as `read_held` does, through a temporary folder: for libraries that open files by their names."""
    with tempfile.TemporaryDirectory(prefix="i2p-shape-") as folder:
        for name, data in files.items():
            path = Path(folder, *name.split("/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        try:
            return read_geometry(Path(folder, *next(iter(files)).split("/")), reading)
        except ShapeError as error:
            raise type(error)(error.source, error.reason.replace(f"{folder}/", "")) from error


def _files(members: Sequence[tuple[str, bytes]], suffix: str) -> dict[str, bytes]:
    """Return the contents of a shape's files by their relative paths, its own first. Raises Malformed.

    Their paths are in the JSON member's "shape_files" where a shape has several; they stay below one folder.
    """
    contents = [(name, data) for name, data in members if not name.lower().endswith((".json", ".cls"))]
    names = member_json(members).get("shape_files")
    if names is None:  # shards of others: the only file of the kind that the index names
        own = [(name, data) for name, data in contents if name.lower().endswith(suffix)]
        if len(own) != 1:
            raise Malformed(f"has {len(own)} members that end in {suffix}; expected one")
        return {f"shape{suffix}": own[0][1]}
    if not isinstance(names, list) or not 0 < len(names) <= _MAX_FILES or len(names) != len(contents):
        raise Malformed(f"its JSON names other files than its {len(contents)} members")
    for name in names:
        parts = name.split("/") if isinstance(name, str) else []
        if not parts or not all(map(_plain, parts)):
            raise Malformed(f"its JSON names a file {str(name)[:80]!a}; expected a path below one folder")
    if len(set(names)) < len(names) or not names[0].lower().endswith(suffix):
        raise Malformed(f"its JSON names files twice, or not first the {suffix} file that the index names")
    return {name: data for name, (_, data) in zip(names, contents, strict=True)}


def _plain(part: str) -> bool:
    """Check that a part of a path names something in its folder, and can be written."""
    fits = part not in (".", "..") and not name_fault(part) and len(part.encode()) <= 255
    return fits and not set(_APART) & set(part)
