"""Datasets of HDF5 files that nobody promised anything about: what is checked before they are read.

An HDF5 file may name other files of the machine (links, external storage, virtual datasets), claim any number of
values that no byte backs, and unpack a chunk to a million times its bytes.
"""

import math
import zlib
from pathlib import Path
from typing import Any

from pipeline.corpora.base import CorpusError
from pipeline.corpora.entrance import check_unpacked, held_names

__all__ = ["check_chunks", "stored_dataset"]

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000  # HDF5's numbers of filters
_FLETCHER_BYTES = 4


def stored_dataset(file: Any, name: str, path: Path, most: int) -> Any:
    """The dataset `name` at the root of an open h5py.File: numbers that lie in this file and do not unpack to more than
    `most` bytes, or than theirs can mean. Raises CorpusError.
    """
    import h5py

    link = file.get(name, getlink=True)
    found = file.get(name) if isinstance(link, h5py.HardLink) else None
    what = f"dataset '{name}'"
    if link is not None and found is None:
        raise CorpusError(
            f"{path}: '{name}' is a link, to elsewhere perhaps; it is not followed. Copy the data into it."
        )
    if not isinstance(found, h5py.Dataset):
        raise CorpusError(f"{path}: holds {held_names(file) or 'nothing'}; expected the datasets 'data' and 'label'")
    if found.external or found.is_virtual:
        raise CorpusError(f"{path}: '{name}' is stored in other files, which are not read. Copy the data into it.")
    if found.dtype.kind not in "fiu" or found.shape is None:
        raise CorpusError(f"{path}: {what} has shape {found.shape} and type {found.dtype}; expected numbers")
    filters = _filters(found)
    if not set(filters) <= {DEFLATE, SHUFFLE, FLETCHER32, LZF} or len({DEFLATE, LZF} & set(filters)) > 1:
        raise CorpusError(f"{path}: {what} is packed by the filters {filters}; pack it with `h5repack -f GZIP=4`")
    packed = min(found.id.get_storage_size(), path.stat().st_size)  # the file's own tables may claim any number
    check_unpacked(found.nbytes, packed, what, str(path), most)
    if found.chunks is not None:
        check_unpacked(_chunk_bytes(found), packed, f"one chunk of {what}", str(path), most)
    return found


def check_chunks(dataset: Any, path: Path) -> None:
    """Raise CorpusError for a chunk that inflates to more than its size: HDF5 would inflate it to the end, a gigabyte
    from a megabyte. Takes the memory of one chunk.
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
                    f"{path}: a chunk of '{dataset.name[1:]}' inflates to more than its {most} bytes; it is damaged, "
                    "or made to fill the memory"
                )


def _filters(dataset: Any) -> list[int]:
    properties = dataset.id.get_create_plist()
    return [int(properties.get_filter(number)[0]) for number in range(properties.get_nfilters())]


def _chunk_bytes(dataset: Any) -> int:
    return math.prod(dataset.chunks) * int(dataset.dtype.itemsize)
