"""Checks of datasets in untrusted HDF5 files, made before they are read.

An HDF5 file may name other files of the machine (links, external storage, virtual datasets), claim any number of
values that no byte backs, and unpack a chunk to a million times its bytes.
"""

import hashlib
import math
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.base import CorpusError, MachineFault, ShapeError
from pipeline.corpora.entrance import check_regular, check_size, check_unpacked, checked_labels, held_names
from pipeline.corpora.faults import file_stamp, patiently

__all__ = ["CloudFile", "check_chunks", "content_digest", "stored_dataset"]

MAX_BYTES = 8 * 2**30  # of one file's clouds, which are held in memory

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000  # HDF5's numbers of filters
_FLETCHER_BYTES = 4


def stored_dataset(file: Any, name: str, path: Path, most: int) -> Any:
    """Return the numeric dataset `name` at the root of an open h5py.File.

    Raises CorpusError unless it lies in this file and unpacks to at most `most` bytes, and no more than its bytes can
    mean.
    """
    import h5py

    link = file.get(name, getlink=True)
    found = file.get(name) if isinstance(link, h5py.HardLink) else None
    what = f"dataset '{name}'"
    if link is not None and found is None:
        raise CorpusError(f"{path}: '{name}' is a link, which is not followed. Copy the data into the file.")
    if not isinstance(found, h5py.Dataset):
        raise CorpusError(f"{path}: holds {held_names(file) or 'nothing'}; expected the datasets 'data' and 'label'")
    if found.external or found.is_virtual:
        raise CorpusError(
            f"{path}: '{name}' is stored in other files, which are not read. Copy the data into the file."
        )
    if found.dtype.kind not in "fiu" or found.shape is None:
        raise CorpusError(f"{path}: {what} has shape {found.shape} and type {found.dtype}; expected numbers")
    filters = _filters(found)
    if not set(filters) <= {DEFLATE, SHUFFLE, FLETCHER32, LZF} or len({DEFLATE, LZF} & set(filters)) > 1:
        raise CorpusError(
            f"{path}: {what} is compressed with the filters {filters}; compress it with `h5repack -f GZIP=4`"
        )
    packed = min(found.id.get_storage_size(), path.stat().st_size)  # the file's own tables may claim any number
    check_unpacked(found.nbytes, packed, what, str(path), most)
    if found.chunks is not None:
        check_unpacked(_chunk_bytes(found), packed, f"one chunk of {what}", str(path), most)
    return found


def check_chunks(dataset: Any, path: Path) -> None:
    """Raise CorpusError for a chunk that inflates to more than its size.

    HDF5 would inflate it to the end, a gigabyte from a megabyte. Takes the memory of one chunk.
    """
    filters = _filters(dataset)
    if DEFLATE not in filters:
        return  # the others do not grow beyond a small factor
    most = _chunk_bytes(dataset) + _FLETCHER_BYTES * filters.count(FLETCHER32)
    packed: list[tuple[int, int]] = []

    def note(chunk: Any) -> None:
        if chunk.byte_offset is not None and not chunk.filter_mask >> filters.index(DEFLATE) & 1:
            packed.append((chunk.byte_offset, chunk.size))

    dataset.id.chunk_iter(note)
    with path.open("rb") as raw:
        for at, size in packed:
            raw.seek(at)
            inflate = zlib.decompressobj()
            try:
                grown = len(inflate.decompress(raw.read(size), most + 1))
            except zlib.error:
                continue  # HDF5 says so of what it reads
            if grown > most:
                raise CorpusError(
                    f"{path}: a chunk of '{dataset.name[1:]}' inflates to more than its {most} bytes; it is damaged "
                    "or malicious"
                )


class CloudFile:
    """One HDF5 file of clouds: its labels at once, its points when the first of them is asked for; then they stay.

    Attributes:
        path: of the file
        shape: of its dataset ``data``, (n, N, 3)
        labels: [n] int64, at least 0
        stamp: `faults.file_stamp` of the file, taken before it was opened
    """

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        self._points: np.ndarray | None = None
        self._lock = threading.Lock()

        check_regular(path)
        self.stamp = file_stamp(path)

        def head() -> np.ndarray:
            with h5py.File(path, "r") as file:
                data, label = (stored_dataset(file, name, path, MAX_BYTES) for name in ("data", "label"))
                self.shape = tuple(int(size) for size in data.shape)
                if len(self.shape) != 3 or self.shape[2] != 3 or data.dtype.kind != "f":
                    raise CorpusError(
                        f"{path}: dataset 'data' has shape {self.shape} and type {data.dtype}; "
                        "expected (n, points, 3) floating point"
                    )
                check_size(self.shape[0], self.shape[1], str(path))
                if label.size != self.shape[0]:
                    return np.empty(0)
                check_chunks(label, path)
                return np.asarray(label).reshape(-1)

        try:
            numbers = patiently(head, str(path))
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{path}: cannot be read as HDF5: {error}. Is the download complete?") from error
        if len(numbers) != self.shape[0]:
            raise CorpusError(
                f"{path}: dataset 'label' does not hold one whole number for each of the {self.shape[0]} clouds"
            )
        self.labels = checked_labels(numbers, f"{path}: dataset 'label'", names=None, least=0)

    def row(self, row: int) -> np.ndarray:
        """Return the points of one cloud [N, 3]."""
        import h5py

        def whole() -> np.ndarray:
            with h5py.File(self.path, "r") as file:
                data = stored_dataset(file, "data", self.path, MAX_BYTES)
                check_chunks(data, self.path)
                points = np.asarray(data)
            if points.shape != self.shape:
                raise ShapeError(
                    str(self.path), f"dataset 'data' has shape {points.shape}; it had {self.shape} when it was opened"
                )
            return points

        with self._lock:
            if self._points is None:
                try:
                    self._points = patiently(whole, str(self.path))
                except MachineFault:
                    raise
                except CorpusError as error:  # of what only the whole of the data shows
                    raise ShapeError(str(self.path), str(error).removeprefix(f"{self.path}: ")) from error
                except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
                    raise ShapeError(str(self.path), f"dataset 'data' cannot be read: {error}") from error
                if file_stamp(self.path) != self.stamp:  # points of one file under labels and hashes of another
                    self._points = None
                    raise MachineFault(
                        str(self.path), "it was rewritten since it was opened", "Wait until it is complete."
                    )
        return self._points[row]


def content_digest(names: Sequence[str], files: Sequence["CloudFile"]) -> str:
    """SHA-256 (hex) of the class names and of each file's name, shape, size and labels, for an identity."""
    lines = [
        f"{file.path.name} {file.shape} {file.path.stat().st_size} {_digest(str(file.labels.tolist()))}"
        for file in files
    ]
    return _digest("\n".join([*names, *lines]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _filters(dataset: Any) -> list[int]:
    properties = dataset.id.get_create_plist()
    return [int(properties.get_filter(number)[0]) for number in range(properties.get_nfilters())]


def _chunk_bytes(dataset: Any) -> int:
    return math.prod(dataset.chunks) * int(dataset.dtype.itemsize)
