"""A folder of recorded files: read on demand, nothing unpickled, and what is not there is said by name."""

import json
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.parity.compare import Row, compare, missing
from trainer.checkpoints.reference.pth_file import ReferenceFile, read_reference
from trainer.errors import CheckpointError

__all__ = ["Arrays", "Missing", "Recorded", "Table", "groups_of"]


class Missing(Exception):
    """Something that a comparison needs is not in the folder, or cannot be read.

    what  the file, or the array or key in it
    why   what is wrong with it
    """

    def __init__(self, what: str, why: str = "not in the folder"):
        super().__init__(f"{what}: {why}")
        self.what = what
        self.why = why


class Table(dict[str, Any]):
    """A JSON object that says where it is from when a key is not there."""

    def __init__(self, values: dict[str, Any], where: str):
        super().__init__({key: _tables(value, f"{where}: {key}") for key, value in values.items()})
        self._where = where

    def __missing__(self, key: str) -> Any:
        raise Missing(f"{self._where}: {key}")


class Arrays:
    """The arrays of one .npz file.

    Raises Missing for an array that is not there or cannot be read.
    """

    def __init__(self, path: Path):
        self.file = path.name
        try:
            self._npz = np.load(path, allow_pickle=False)
            self.names: tuple[str, ...] = tuple(self._npz.files)
        except FileNotFoundError:
            raise Missing(self.file) from None
        except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            raise Missing(self.file, f"not a whole .npz file ({error})") from error
        self._read: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise Missing(f"{self.file}: {name}")
        if name not in self._read:
            try:
                self._read[name] = self._npz[name]
            except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
                raise Missing(f"{self.file}: {name}", f"damaged ({error})") from error
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def tensor(self, name: str, device: torch.device | None = None) -> Tensor:
        """An array as a tensor; whole numbers become int64."""
        array = self[name]
        return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array).to(device)

    def check(self, what: str, name: str, ours: Any, tolerance: str, *, at: Any = ...) -> Row:
        """Compare with the array `name`, or with its values `at` an index; a row that says so where it is missing."""
        try:
            recorded = self[name][at]
        except Missing as absent:
            return missing(absent.what, absent.why)
        return compare(what, ours, recorded, tolerance)

    def levels(self, pattern: str) -> range:
        """0, 1, ... as long as there is an array of that name: `pattern` holds "{}".

        Raises Missing where there is none at all.
        """
        count = 0
        while pattern.format(count) in self:
            count += 1
        if not count:
            raise Missing(f"{self.file}: {pattern.format(0)}")
        return range(count)

    def unread(self) -> list[str]:
        """Names that nobody has asked for."""
        return [name for name in self.names if name not in self._read]


class Recorded:
    """The folder. Every file is opened once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.arrays = cache(self._arrays)
        self.table = cache(self._table)
        self.checkpoint = cache(self._checkpoint)

    def path(self, name: str) -> Path:
        """The path of a file; raises Missing where there is none."""
        path = self.folder / name
        if not path.is_file():
            raise Missing(name)
        return path

    def _checkpoint(self, name: str) -> ReferenceFile:
        try:
            return read_reference(self.path(name))
        except CheckpointError as error:
            raise Missing(name, str(error)) from error

    def _arrays(self, stem: str) -> Arrays:
        return Arrays(self.folder / f"{stem}.npz")

    def _table(self, stem: str) -> Table:
        """A JSON object."""
        path = self.path(f"{stem}.json")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise Missing(path.name, f"not JSON ({error})") from error
        if not isinstance(values, dict):
            raise Missing(path.name, "not a JSON object")
        return Table(values, path.name)

    def sizes(self, *keys: str) -> Any:
        """An entry of config.json's `config`, for instance sizes("pre")."""
        value = self.table("config")["config"]
        for key in keys:
            value = value[key]
        return value


def _tables(value: Any, where: str) -> Any:
    return Table(value, where) if isinstance(value, dict) else value


def groups_of(arrays: Arrays, separator: str = "__") -> Iterator[str]:
    """What stands before the separator in the names of a file's arrays, each once, in order."""
    yield from dict.fromkeys(name.partition(separator)[0] for name in arrays.names if separator in name)
