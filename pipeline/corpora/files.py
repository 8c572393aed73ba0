"""Reading of any supported file as a geometry, and the corpus that is a list of such files."""

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpora.base import CorpusError, Inspection, Shape, ShapeError, UnreadHere
from pipeline.corpora.entrance import MAX_PARTS, check_ids, check_names, name_fault
from pipeline.corpora.faults import check_present, file_stamp, patiently, read_file
from pipeline.corpora.file_rules import FileRules
from pipeline.corpora.formats.dae import read_dae
from pipeline.corpora.formats.e57 import read_e57
from pipeline.corpora.formats.geometry import (
    Cloud,
    Format,
    Malformed,
    ReaderMissing,
    ReadOptions,
    Surface,
)
from pipeline.corpora.formats.gltf import beside_gltf, read_gltf, read_held_gltf
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
from pipeline.corpora.releases import Release

__all__ = ["READERS", "Entry", "FileCorpus", "files_of", "part_table", "read_geometry", "read_held"]

_GLTF = Format(read_gltf, "gltf", version=3, beside=beside_gltf, held=read_held_gltf)
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
        return reader(_some(data, path), path, options or ReadOptions())

    try:
        return patiently(read, str(path))
    except Malformed as error:
        check_present(path)  # files beside it may be missing because the disk is
        raise _refused(error, path) from error


def read_held(files: Mapping[str, bytes], options: ReadOptions) -> Surface | Cloud:
    """Read a shape whose files are in memory by their relative paths, the first its own; none is on disk.

    Raises as `read_geometry` does. Its format is none that needs a disk.
    """
    (name, data), *others = files.items()
    path = Path(name)
    kind = READERS[path.suffix.lower()]
    assert not kind.needs_disk

    def read() -> Surface | Cloud:
        if kind.held is not None:
            return kind.held(_some(data, path), path, dict(others), options)
        return kind.read(_some(data, path), path, options)

    try:
        return patiently(read, name)
    except Malformed as error:
        raise _refused(error, path) from error


def _some(data: bytes, path: Path) -> bytes:
    if not data:
        raise ShapeError(str(path), "the file is empty")
    return data


def _refused(error: Malformed, path: Path) -> ShapeError:
    kind = UnreadHere if isinstance(error, ReaderMissing) else ShapeError
    return kind(str(path), str(error))


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a corpus: its id, path, label (or None), split (or None), and why it could not be read when it was
    listed (None: nothing spoke against it). Its path is text, which takes a third of a Path's memory.
    """

    id: str
    file: str
    label: int | None
    split: str | None
    fault: str | None = None

    @property
    def path(self) -> Path:
        return Path(self.file)

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.file)[1].lower()


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
                f"{uri}: more than {MAX_PARTS} parts, up to {entry.file}; they do not fit in part labels of 16 bits. "
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
        points ... parts_of_label   see `FileRules`.
        release which published set it is, of a kind that knows one.
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
        self.points = points
        self.ignored = ignored
        self._entries = list(entries)
        self._beside = tuple(beside)
        self._rules = FileRules(
            points=points,
            seed=seed,
            repeat=repeat,
            label_names=self.label_names,
            reading=reading or ReadOptions(),
            part_names=self.part_names,
            up=up,
            stored_order=stored_order,
            parts_of_label=tuple(parts_of_label),
        )
        self.release = release

    def __len__(self) -> int:
        return len(self._entries)

    def id(self, index: int) -> str:
        return self._entry(index).id

    def source(self, index: int) -> str:
        return self._entry(index).file

    def label(self, index: int) -> int | None:
        return self._entry(index).label

    def fingerprint(self, index: int) -> str:
        entry = self._present(index)
        reader = READERS[entry.suffix]
        contents = [hashlib.sha256(read_file(path)).hexdigest() for path in self._files(entry)]
        label = None if entry.label is None else self.label_names[entry.label]
        facts = [reader.name, reader.version, contents, label, entry.split]
        return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()

    def stamp(self, index: int) -> str | None:
        entry = self._entry(index)
        if entry.fault is None and READERS[entry.suffix].beside is None:
            return file_stamp(entry.file)
        return " ".join(file_stamp(path) for path in self._files(entry))

    def _files(self, entry: Entry) -> list[Path]:
        """List the shape's own file first, and those that it names; only its own if it cannot tell."""
        try:
            return [entry.path] if _is_lost(entry) else files_of(entry.path)
        except (Malformed, ShapeError):
            return [entry.path]

    def split_of(self, index: int) -> str | None:
        return self._entry(index).split

    def format_of(self, index: int) -> str:
        return self._entry(index).suffix.removeprefix(".") or "folder"

    @property
    def reading(self) -> dict[str, Any]:
        """How files become shapes, as JSON: what a corpus that stores the same files needs, to make the same shapes."""
        return self._rules.as_json()

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
        geometry = read_geometry(entry.path, self._rules.reading)
        return self._rules.shape(geometry, id=entry.id, label=entry.label, split=entry.split, source=entry.file)

    def inspect(self, index: int) -> Inspection:
        entry = self._present(index)
        contents = [read_file(path) for path in (entry.path, *self._files(entry)[1:])]
        geometry = read_geometry(entry.path, self._rules.reading, held=contents[0])
        return self._rules.inspection(
            geometry, contents, id=entry.id, label=entry.label, split=entry.split, source=entry.file
        )

    def _present(self, index: int) -> Entry:
        """Return the entry.

        A listed file that is missing is a ShapeError while all else of the corpus is there.
        """
        entry = self._entry(index)
        if _is_lost(entry):
            raise ShapeError(entry.file, str(entry.fault))
        if self._beside and not os.path.lexists(entry.file) and all(map(_stands, self._beside)):
            raise ShapeError(entry.file, f"is listed in {self._beside[0].name}, but does not exist")
        return entry

    def _entry(self, index: int) -> Entry:
        if not 0 <= index < len(self._entries):
            raise IndexError(f"index {index} is outside 0..{len(self._entries) - 1}")
        return self._entries[index]


def _is_lost(entry: Entry) -> bool:
    """Check whether a file's fault at listing time still stands."""
    return entry.fault is not None and not os.path.isfile(entry.file)


def _stands(path: Path) -> bool:
    """Check whether a list, or a non-empty folder, exists (a mount point that lost its disk is empty)."""
    try:
        return next(os.scandir(path), None) is not None if path.is_dir() else path.is_file()
    except OSError:
        return False
