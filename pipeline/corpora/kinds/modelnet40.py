"""``modelnet40:DIR``: the 2048-point HDF5 release, or the "normal resampled" text release; which of them is seen from
the folder.

HDF5   train_files.txt and test_files.txt list the .h5 files (found by name in DIR, whatever folder the list says); each
       holds ``data`` [n, N, 3] and ``label`` [n, 1]; shape_names.txt names the labels.
Text   modelnet40_train.txt and modelnet40_test.txt list names like airplane_0001; airplane/airplane_0001.txt holds
       x,y,z,nx,ny,nz a line; modelnet40_shape_names.txt names the classes.
"""

import hashlib
import threading
from pathlib import Path

import numpy as np

from pipeline.corpora.base import Corpus, CorpusError, MachineFault, ShapeError
from pipeline.corpora.entrance import check_names, check_regular, check_size, checked_labels
from pipeline.corpora.faults import file_stamp, patiently, read_file
from pipeline.corpora.files import Entry, FileCorpus
from pipeline.corpora.kinds.hdf5 import check_chunks, stored_dataset
from pipeline.corpora.options import Options
from pipeline.corpora.rows import RowCorpus
from teacher_cache.foreign import decode_text

__all__ = ["open_modelnet40"]

SPLITS = ("train", "test")
MAX_BYTES = 8 * 2**30  # of one file's clouds, which are held in memory


def open_modelnet40(root: Path, options: Options, points: int) -> Corpus:
    """``modelnet40:DIR?split=train|test|all&seed=0&pad=refuse|repeat``."""
    split = options.choice("split", (*SPLITS, "all"), "train")
    seed = options.integer("seed", 0, low=0)
    pad = options.choice("pad", ("refuse", "repeat"), "refuse")
    options.finish()
    wanted = SPLITS if split == "all" else (split,)
    identity = {"kind": "modelnet40", "points": points, "seed": seed, "split": split, "pad": pad}
    for folder in (root, root / "modelnet40_ply_hdf5_2048"):
        if any((folder / f"{name}_files.txt").is_file() for name in SPLITS):
            return _open_hdf5(folder, wanted, identity, options.uri, points, seed, pad == "repeat")
    for folder in (root, root / "modelnet40_normal_resampled"):
        if any((folder / f"modelnet40_{name}.txt").is_file() for name in SPLITS):
            return _open_text(folder, wanted, identity, options.uri, points, seed, pad == "repeat")
    raise CorpusError(
        f"{options.uri}: no ModelNet40 in {root}; expected train_files.txt and test_files.txt (the HDF5 release) or "
        "modelnet40_train.txt and modelnet40_test.txt (the normal resampled text release). "
        "For the OFF files use folder:DIR"
    )


def _lines(path: Path) -> list[str]:
    """The non-empty lines of a list file."""
    if not path.exists():
        raise CorpusError(f"{path}: expected this list, it is not there. Is the download complete?")
    try:
        return [line.strip() for line in decode_text(read_file(path)).splitlines() if line.strip()]
    except (ShapeError, ValueError) as error:
        raise CorpusError(f"{path}: the list cannot be read: {error}. Is the download complete?") from error


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _open_text(
    folder: Path, wanted: tuple[str, ...], identity: dict, uri: str, points: int, seed: int, repeat: bool
) -> FileCorpus:
    names = check_names(_lines(folder / "modelnet40_shape_names.txt"), "class", str(folder))
    number = {name: k for k, name in enumerate(names)}
    entries, listed = [], []
    for split in wanted:
        for name in _lines(folder / f"modelnet40_{split}.txt"):
            kind = name.rpartition("_")[0]
            if kind not in number or Path(name).name != name:
                raise CorpusError(
                    f"{folder / f'modelnet40_{split}.txt'}: {name!r} is of no class in modelnet40_shape_names.txt"
                )
            entries.append(Entry(f"{kind}/{name}", folder / kind / f"{name}.txt", number[kind], split))
            listed.append(name)
    identity = {**identity, "release": "normal_resampled", "content": _digest(*names, *listed)}
    return FileCorpus(
        uri=uri,
        identity=identity,
        label_names=names,
        entries=entries,
        points=points,
        seed=seed,
        repeat=repeat,
        beside=[folder / f"modelnet40_{wanted[0]}.txt", folder],
    )


def _open_hdf5(
    folder: Path, wanted: tuple[str, ...], identity: dict, uri: str, points: int, seed: int, repeat: bool
) -> RowCorpus:
    ids, sources, labels, splits, places = [], [], [], [], []
    files: list[_File] = []
    for split in wanted:
        for line in _lines(folder / f"{split}_files.txt"):
            file = _File(folder / Path(line).name)
            files.append(file)
            for row, label in enumerate(file.labels.tolist()):
                ids.append(f"{file.path.stem}/{row:04d}")
                sources.append(f"{file.path} row {row}")
                labels.append(label)
                splits.append(split)
                places.append((file, row))
    count = max(labels, default=-1) + 1
    named = folder / "shape_names.txt"
    names = check_names(_lines(named), "class", str(named)) if named.is_file() else [f"class {k}" for k in range(count)]
    if count > len(names):
        raise CorpusError(f"{named}: {len(names)} names; the labels run to {count - 1}")
    content = _digest(
        *names,
        *(
            f"{file.path.name} {file.shape} {file.path.stat().st_size} {_digest(str(file.labels.tolist()))}"
            for file in files
        ),
    )

    def read(index: int) -> np.ndarray:
        file, row = places[index]
        return file.row(row)

    return RowCorpus(
        uri=uri,
        identity={**identity, "release": "hdf5", "content": content},
        label_names=names,
        ids=ids,
        sources=sources,
        stamps=[file.stamp for file, _ in places],
        labels=labels,
        splits=splits,
        read=read,
        points=points,
        seed=seed,
        repeat=repeat,
        format="hdf5",
    )


class _File:
    """One HDF5 file: its labels at once, its points (50 MB) when the first of them is asked for; then they stay."""

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
        """The points of one cloud [N, 3]."""
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
                    raise MachineFault(str(self.path), "it was written anew since it was opened", "Let it be finished.")
        return self._points[row]
