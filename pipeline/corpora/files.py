"""Reading of any supported file as a geometry, and the corpus that is a list of such files."""

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.base import CorpusError, Inspection, Shape, ShapeError, UnreadHere
from pipeline.corpora.entrance import MAX_PARTS, check_ids, check_names, name_fault
from pipeline.corpora.faults import check_present, file_stamp, patiently, read_file
from pipeline.corpora.formats.dae import read_dae
from pipeline.corpora.formats.e57 import read_e57
from pipeline.corpora.formats.geometry import (
    Cloud,
    Format,
    Malformed,
    ReaderMissing,
    ReadOptions,
    Surface,
    sample_geometry,
)
from pipeline.corpora.formats.gltf import beside_gltf, read_gltf
from pipeline.corpora.formats.las import read_las
from pipeline.corpora.formats.numpy_files import read_npy, read_npz
from pipeline.corpora.formats.obj import read_obj
from pipeline.corpora.formats.off import read_off
from pipeline.corpora.formats.pcd import read_pcd
from pipeline.corpora.formats.ply import read_ply
from pipeline.corpora.formats.stl import read_stl
from pipeline.corpora.formats.text import read_text
from pipeline.corpora.formats.threemf import read_3mf
from pipeline.corpora.formats.usd import beside_usd, read_usd
from pipeline.corpora.inspection import DIGEST_BYTES, inspect_cloud, inspect_mesh
from pipeline.corpora.releases import Release

__all__ = ["READERS", "Entry", "FileCorpus", "files_of", "part_table", "read_geometry"]

_GLTF = Format(read_gltf, "gltf", version=3, beside=beside_gltf)
_TEXT = Format(read_text, "text", version=2)
_LAS = Format(read_las, "las")
_USD = Format(read_usd, "usd", beside=beside_usd)

READERS: dict[str, Format] = {
    ".off": Format(read_off, "off", version=2),
    ".obj": Format(read_obj, "obj", version=3),
    ".ply": Format(read_ply, "ply", version=2),
    ".stl": Format(read_stl, "stl", version=2),
    ".glb": _GLTF,
    ".gltf": _GLTF,
    ".npy": Format(read_npy, "npy", version=2),
    ".npz": Format(read_npz, "npz", version=2),
    ".xyz": _TEXT,
    ".pts": _TEXT,
    ".txt": _TEXT,
    ".csv": _TEXT,
    ".pcd": Format(read_pcd, "pcd", version=2),
    ".las": _LAS,
    ".laz": _LAS,
    ".usd": _USD,
    ".usda": _USD,
    ".usdc": _USD,
    ".usdz": _USD,
    ".e57": Format(read_e57, "e57"),
    ".dae": Format(read_dae, "dae"),
    ".3mf": Format(read_3mf, "3mf"),
}


def files_of(path: Path) -> list[Path]:
    """List the file and those beside it that belong to the same shape. Raises Malformed, ShapeError, MachineFault."""
    beside = READERS[path.suffix.lower()].beside
    return [path] if beside is None else [path, *beside(path)]


def read_geometry(path: Path, options: ReadOptions | None = None, *, held: bytes | None = None) -> Surface | Cloud:
    """Read a file by its extension.

    Raises ShapeError for any fault of the file, MachineFault if it could not be read through no fault of its own, and
    nothing else.

    held  its bytes, where they have been read already.
    """
    reader = READERS[path.suffix.lower()].read

    def read() -> Surface | Cloud:
        data = read_file(path) if held is None else held
        if not data:
            raise ShapeError(str(path), "the file is empty")
        return reader(data, path, options or ReadOptions())

    try:
        return patiently(read, str(path))
    except Malformed as error:
        check_present(path)  # files beside it may be missing because the disk is
        kind = UnreadHere if isinstance(error, ReaderMissing) else ShapeError
        raise kind(str(path), str(error)) from error


@dataclass(frozen=True)
class Entry:
    """One file of a corpus: its id, path, label (or None), split (or None), and why it could not be read when it was
    listed (None: nothing spoke against it).
    """

    id: str
    path: Path
    label: int | None
    split: str | None
    fault: str | None = None


def part_table(entries: Sequence[Entry], reading: ReadOptions, named: Sequence[str], uri: str) -> tuple[str, ...]:
    """Collect the part names of a whole corpus, so that a number means the same part in every shape.

    named  the user's own list; where it is empty every file is read, and the names found are sorted. Files whose parts
           are numbers have no names; neither has a file that cannot be read.

    Raises CorpusError for names that are not printable or occur twice, and for more parts than 16-bit labels can
    number; MachineFault.
    """
    found: set[str] = set()
    for entry in () if named else entries:
        try:
            if not _is_lost(entry):
                # A name that cannot be shown is left out, and so refuses the shapes that have it, and no others.
                found.update(name for name in read_geometry(entry.path, reading).part_names if not name_fault(name))
        except ShapeError:
            continue
        if len(found) > MAX_PARTS:
            raise CorpusError(
                f"{uri}: more than {MAX_PARTS} parts, up to {entry.path}; they do not fit in part labels of 16 bits. "
                "Select some with part_names=, or use a coarser parts=."
            )
    names = check_names(named or sorted(found), "part", uri)
    if len(names) > MAX_PARTS:
        raise CorpusError(f"{uri}: {len(names)} names in part_names=; at most {MAX_PARTS} fit in part labels")
    return tuple(names)


class FileCorpus:
    """A corpus that is a list of files, one shape each.

    Attributes:
        uri, identity, label_names, part_names: see Corpus
        points: points of each shape
        ignored: files that were passed over when the list was made
        release: the published set that was found, or None
    """

    def __init__(
        self,
        *,
        uri: str,
        identity: Mapping[str, Any],
        label_names: Sequence[str],
        entries: Sequence[Entry],
        points: int,
        seed: int,
        repeat: bool,
        ignored: int = 0,
        beside: Sequence[Path] = (),
        reading: ReadOptions | None = None,
        part_names: Sequence[str] = (),
        up: str = "file",
        stored_order: bool = False,
        parts_of_label: Sequence[range] = (),
        release: Release | None = None,
    ) -> None:
        """
        reading     what the user says about the files.
        part_names  of the parts that `reading.parts` asks for, over all files; empty where parts are numbers.
        up          the axis that is up in the files: "y" is turned to z, "z" and "file" stay as they are.
        stored_order    the first points of each cloud instead of random ones.
        parts_of_label  for each label the parts that its shapes may have; empty: any.
        release         which published set it is, of a kind that knows one.
        beside  of a corpus by a list: the list and the folder of its files. While they are there, a listed file that is
                absent is missing from the corpus; else, and where the files themselves were listed, the disk is.
        """
        if not entries:
            raise CorpusError(f"{uri}: no shapes")
        if beside:  # names that a list gave
            check_ids([entry.id for entry in entries], uri)
        self.uri = uri
        self.identity = dict(identity)
        self.label_names = tuple(label_names)
        self.part_names: tuple[str, ...] = tuple(part_names)
        self._reading, self._up = reading or ReadOptions(), up
        self.points = points
        self.ignored = ignored
        self._entries = list(entries)
        self._seed = seed
        self._repeat = repeat
        self._beside = tuple(beside)
        self._stored_order, self._parts_of_label = stored_order, tuple(parts_of_label)
        self.release = release

    def __len__(self) -> int:
        return len(self._entries)

    def id(self, index: int) -> str:
        return self._entry(index).id

    def source(self, index: int) -> str:
        return str(self._entry(index).path)

    def label(self, index: int) -> int | None:
        return self._entry(index).label

    def fingerprint(self, index: int) -> str:
        entry = self._present(index)
        reader = READERS[entry.path.suffix.lower()]
        contents = [hashlib.sha256(read_file(path)).hexdigest() for path in self._files(entry)]
        label = None if entry.label is None else self.label_names[entry.label]
        facts = [reader.name, reader.version, contents, label, entry.split]
        return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()

    def stamp(self, index: int) -> str | None:
        return " ".join(file_stamp(path) for path in self._files(self._entry(index)))

    def _files(self, entry: Entry) -> list[Path]:
        """List the shape's own file first, and those that it names; only its own if it cannot tell."""
        try:
            return [entry.path] if _is_lost(entry) else files_of(entry.path)
        except (Malformed, ShapeError):
            return [entry.path]

    def split_of(self, index: int) -> str | None:
        return self._entry(index).split

    def format_of(self, index: int) -> str:
        return self._entry(index).path.suffix.lower().removeprefix(".") or "folder"

    @property
    def reading(self) -> dict[str, Any]:
        """How files become shapes, as JSON: what a corpus that stores the same files needs, to make the same shapes."""
        return {
            "columns": list(self._reading.columns),
            "parts": self._reading.parts,
            "read_up": self._reading.up,
            "up": self._up,
            "seed": self._seed,
            "repeat": self._repeat,
            "stored_order": self._stored_order,
            "parts_of_label": [[parts.start, parts.stop] for parts in self._parts_of_label],
        }

    def paths(self, index: int) -> list[Path]:
        """List the files of shape ``index``, its own first. Raises ShapeError and MachineFault."""
        return self._files(self._present(index))

    def entries(self, start: int, stop: int) -> list[Entry]:
        """Return shapes start..stop - 1, for `holding`."""
        return self._entries[start:stop]

    def holding(self, entries: Sequence[Entry]) -> "FileCorpus":
        """Return this corpus with only some of its entries, or none: for another process to read them."""
        found = copy.copy(self)
        found._entries = list(entries)
        return found

    def __getitem__(self, index: int) -> Shape:
        entry = self._present(index)
        return self._sampled(entry, read_geometry(entry.path, self._reading))

    def inspect(self, index: int) -> Inspection:
        entry = self._present(index)
        data = read_file(entry.path)
        others = [read_file(path) for path in self._files(entry)[1:]]
        digest = hashlib.sha256()
        for content in (data, *others):
            digest.update(f"{len(content)} ".encode())
            digest.update(content)
        geometry = read_geometry(entry.path, self._reading, held=data)
        self._sampled(entry, geometry)
        file, size = digest.digest()[:DIGEST_BYTES], len(data) + sum(map(len, others))
        if isinstance(geometry, Surface):
            return inspect_mesh(geometry, file=file, size=size)
        return inspect_cloud(geometry, file=file, size=size)

    def _sampled(self, entry: Entry, geometry: Surface | Cloud) -> Shape:
        points, parts = sample_geometry(
            geometry,
            count=self.points,
            seed=self._seed,
            id=entry.id,
            source=str(entry.path),
            repeat=self._repeat,
            stored_order=self._stored_order,
        )
        if self._up == "y":  # a quarter turn about x, exact: y up becomes z up
            points = np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1)
        if parts is None and self._reading.parts:
            raise ShapeError(str(entry.path), f"has no parts by parts={self._reading.parts}")
        if parts is not None:
            parts = self._numbered(parts, geometry.part_names, str(entry.path))
            self._check_category(entry, geometry)
        return Shape(id=entry.id, points=points, label=entry.label, part_labels=parts, split=entry.split)

    def _numbered(self, parts: np.ndarray, names: Sequence[str], source: str) -> np.ndarray:
        """Map parts of one file [N] to numbers of the corpus' table, int16."""
        if names:
            number = {name: k for k, name in enumerate(self.part_names)}
            unknown = [name for name in names if name not in number]
            if unknown:
                held = ", ".join(self.part_names)[:80]
                raise ShapeError(source, f"has a part {unknown[0][:40]!r}, which is none of part_names = {held}")
            parts = np.array([number[name] for name in names])[parts]
        most = len(self.part_names) or MAX_PARTS
        if parts.min() < 0 or parts.max() >= most:
            raise ShapeError(source, f"part labels run from {parts.min()} to {parts.max()}; expected 0..{most - 1}")
        return parts.astype(np.int16)

    def _check_category(self, entry: Entry, geometry: Surface | Cloud) -> None:
        """Raise ShapeError for a part of another category anywhere in the file, whichever points were drawn."""
        if not self._parts_of_label or entry.label is None or geometry.parts is None:
            return
        own = self._parts_of_label[entry.label]
        low, high = int(geometry.parts.min()), int(geometry.parts.max())
        if low < own.start or high >= own.stop:
            raise ShapeError(
                str(entry.path),
                f"part labels run from {low} to {high}; a {self.label_names[entry.label]} has {own.start} to "
                f"{own.stop - 1}. Does it lie in another category's folder?",
            )

    def _present(self, index: int) -> Entry:
        """Return the entry.

        A listed file that is missing is a ShapeError while all else of the corpus is there.
        """
        entry = self._entry(index)
        if _is_lost(entry):
            raise ShapeError(str(entry.path), str(entry.fault))
        if self._beside and not os.path.lexists(entry.path) and all(map(_stands, self._beside)):
            raise ShapeError(str(entry.path), f"is listed in {self._beside[0].name}, but does not exist")
        return entry

    def _entry(self, index: int) -> Entry:
        if not 0 <= index < len(self._entries):
            raise IndexError(f"index {index} is outside 0..{len(self._entries) - 1}")
        return self._entries[index]


def _is_lost(entry: Entry) -> bool:
    """Check whether a file's fault at listing time still stands."""
    return entry.fault is not None and not os.path.isfile(entry.path)


def _stands(path: Path) -> bool:
    """Check whether a list, or a non-empty folder, exists (a mount point that lost its disk is empty)."""
    try:
        return next(os.scandir(path), None) is not None if path.is_dir() else path.is_file()
    except OSError:
        return False
