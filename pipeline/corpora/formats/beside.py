"""The files beside a file of a shape, which it names: on a disk, or in memory where it came from a shard."""

import posixpath
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.corpora.base import ShapeError
from pipeline.corpora.faults import read_file
from pipeline.corpora.formats.geometry import Malformed

__all__ = ["Beside", "HeldFiles", "InFolder"]


class Beside(Protocol):
    """Files by relative paths with /, none of them outside the folder of the file that names them."""

    def find(self, name: str) -> Hashable | None:
        """Return what identifies a file, however its path is spelled; None where there is none in the folder."""

    def read(self, name: str) -> bytes:
        """Read a file that `find` found. Raises Malformed, MachineFault."""


@dataclass(frozen=True)
class InFolder:
    """The files below a folder of a disk."""

    folder: Path

    def find(self, name: str) -> Path | None:
        try:
            folder = self.folder.resolve()
            target = folder.joinpath(name).resolve()
            return target if target.is_relative_to(folder) and target.is_file() else None
        except (OSError, ValueError, RuntimeError):
            return None

    def read(self, name: str) -> bytes:
        target = self.folder.joinpath(name).resolve()
        try:
            return read_file(target)
        except ShapeError as error:
            raise Malformed(f"{target.name}: {error.reason}") from error


@dataclass(frozen=True)
class HeldFiles:
    """Files in memory, by their paths in normal form."""

    files: Mapping[str, bytes]

    def find(self, name: str) -> str | None:
        plain = posixpath.normpath(name)
        return plain if plain in self.files else None

    def read(self, name: str) -> bytes:
        return self.files[posixpath.normpath(name)]
