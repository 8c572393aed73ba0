"""Any supported file as a geometry, and the corpus that is a list of such files."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpora.base import CorpusError, Shape, ShapeError
from pipeline.corpora.faults import check_present, patiently, read_file
from pipeline.corpora.formats.geometry import Cloud, Format, Malformed, ReadOptions, Surface, sample_geometry
from pipeline.corpora.formats.gltf import read_gltf
from pipeline.corpora.formats.numpy_files import read_npy, read_npz
from pipeline.corpora.formats.obj import read_obj
from pipeline.corpora.formats.off import read_off
from pipeline.corpora.formats.pcd import read_pcd
from pipeline.corpora.formats.ply import read_ply
from pipeline.corpora.formats.stl import read_stl
from pipeline.corpora.formats.text import read_text

__all__ = ["READERS", "Entry", "FileCorpus", "files_of", "read_geometry"]

_GLTF = Format(read_gltf, "gltf")
_TEXT = Format(read_text, "text", version=2)

READERS: dict[str, Format] = {
    ".off": Format(read_off, "off"),
    ".obj": Format(read_obj, "obj"),
    ".ply": Format(read_ply, "ply"),
    ".stl": Format(read_stl, "stl"),
    ".glb": _GLTF,
    ".gltf": _GLTF,
    ".npy": Format(read_npy, "npy", version=2),
    ".npz": Format(read_npz, "npz", version=2),
    ".xyz": _TEXT,
    ".pts": _TEXT,
    ".txt": _TEXT,
    ".csv": _TEXT,
    ".pcd": Format(read_pcd, "pcd", version=2),
}


def files_of(path: Path) -> list[Path]:
    """The file and those beside it that belong to the same shape. Raises Malformed, ShapeError and MachineFault."""
    beside = READERS[path.suffix.lower()].beside
    return [path] if beside is None else [path, *beside(read_file(path), path)]


def read_geometry(path: Path, options: ReadOptions | None = None) -> Surface | Cloud:
    """Read a file by its extension. Raises ShapeError for whatever is wrong with it, MachineFault where it could not be
    read through no fault of its own, and nothing else."""
    reader = READERS[path.suffix.lower()].read

    def read() -> Surface | Cloud:
        data = read_file(path)
        if not data:
            raise ShapeError(str(path), "the file is empty")
        return reader(data, path, options or ReadOptions())

    try:
        return patiently(read, str(path))
    except Malformed as error:
        check_present(path)  # files beside it may be missing because the disk is
        raise ShapeError(str(path), str(error)) from error


@dataclass(frozen=True)
class Entry:
    """One file of a corpus: its id, path, label (or None) and split (or None)."""

    id: str
    path: Path
    label: int | None
    split: str | None


class FileCorpus:
    """A corpus that is a list of files, one shape each.

    Attributes:
        uri, identity, label_names, part_names: see Corpus
        points: points of each shape
        ignored: files that were passed over when the list was made
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
    ) -> None:
        """
        beside  of a corpus by a list: the list and the folder of its files. While they are there, a listed file that is
                absent is missing from the corpus; else, and where the files themselves were listed, the disk is.
        """
        if not entries:
            raise CorpusError(f"{uri}: no shapes")
        self.uri = uri
        self.identity = dict(identity)
        self.label_names = tuple(label_names)
        self.part_names: tuple[str, ...] = ()
        self.points = points
        self.ignored = ignored
        self._entries = list(entries)
        self._seed = seed
        self._repeat = repeat
        self._beside = tuple(beside)

    def __len__(self) -> int:
        return len(self._entries)

    def id(self, index: int) -> str:
        return self._entry(index).id

    def source(self, index: int) -> str:
        return str(self._entry(index).path)

    def label(self, index: int) -> int | None:
        return self._entry(index).label

    def fingerprint(self, index: int) -> str:
        path = self._present(index).path
        return hashlib.sha256(read_file(path)).hexdigest()

    def __getitem__(self, index: int) -> Shape:
        entry = self._present(index)
        geometry = read_geometry(entry.path)
        points = sample_geometry(
            geometry, count=self.points, seed=self._seed, id=entry.id, source=str(entry.path), repeat=self._repeat
        )
        return Shape(id=entry.id, points=points, label=entry.label, split=entry.split)

    def _present(self, index: int) -> Entry:
        """The entry; a file that a list names and that is not there is a ShapeError while all else of the corpus is."""
        entry = self._entry(index)
        if self._beside and not os.path.lexists(entry.path) and all(map(_stands, self._beside)):
            raise ShapeError(str(entry.path), f"is listed in {self._beside[0].name}, and is not there")
        return entry

    def _entry(self, index: int) -> Entry:
        if not 0 <= index < len(self._entries):
            raise IndexError(f"index {index} is outside 0..{len(self._entries) - 1}")
        return self._entries[index]


def _stands(path: Path) -> bool:
    """Whether a list, or a folder that holds something (a mount point that lost its disk is empty), is there."""
    try:
        return next(os.scandir(path), None) is not None if path.is_dir() else path.is_file()
    except OSError:
        return False
