"""Any supported file as a geometry, and the corpus that is a list of such files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpora.base import CorpusError, Shape, ShapeError
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
_TEXT = Format(read_text, "text")

READERS: dict[str, Format] = {
    ".off": Format(read_off, "off"),
    ".obj": Format(read_obj, "obj"),
    ".ply": Format(read_ply, "ply"),
    ".stl": Format(read_stl, "stl"),
    ".glb": _GLTF,
    ".gltf": _GLTF,
    ".npy": Format(read_npy, "npy"),
    ".npz": Format(read_npz, "npz"),
    ".xyz": _TEXT,
    ".pts": _TEXT,
    ".txt": _TEXT,
    ".csv": _TEXT,
    ".pcd": Format(read_pcd, "pcd"),
}


def files_of(path: Path) -> list[Path]:
    """The file and those beside it that belong to the same shape. Raises Malformed and OSError."""
    beside = READERS[path.suffix.lower()].beside
    return [path] if beside is None else [path, *beside(path.read_bytes(), path)]


def read_geometry(path: Path, options: ReadOptions | None = None) -> Surface | Cloud:
    """Read a file by its extension. Raises ShapeError for whatever is wrong with it, and nothing else."""
    reader = READERS[path.suffix.lower()].read
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ShapeError(str(path), f"cannot be read: {error.strerror or error}") from error
    if not data:
        raise ShapeError(str(path), "the file is empty")
    try:
        return reader(data, path, options or ReadOptions())
    except Malformed as error:
        raise ShapeError(str(path), str(error)) from error
    except MemoryError as error:
        raise ShapeError(str(path), "its header asks for more memory than there is") from error


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
    ) -> None:
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

    def __len__(self) -> int:
        return len(self._entries)

    def id(self, index: int) -> str:
        return self._entry(index).id

    def source(self, index: int) -> str:
        return str(self._entry(index).path)

    def label(self, index: int) -> int | None:
        return self._entry(index).label

    def fingerprint(self, index: int) -> str:
        path = self._entry(index).path
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ShapeError(str(path), f"cannot be read: {error.strerror or error}") from error

    def __getitem__(self, index: int) -> Shape:
        entry = self._entry(index)
        geometry = read_geometry(entry.path)
        points = sample_geometry(
            geometry, count=self.points, seed=self._seed, id=entry.id, source=str(entry.path), repeat=self._repeat
        )
        return Shape(id=entry.id, points=points, label=entry.label, split=entry.split)

    def _entry(self, index: int) -> Entry:
        if not 0 <= index < len(self._entries):
            raise IndexError(f"index {index} is outside 0..{len(self._entries) - 1}")
        return self._entries[index]
