"""``modelnet40:DIR``: the 2048-point HDF5 release or the "normal resampled" text release, detected by its files.

HDF5   train_files.txt and test_files.txt list the .h5 files (found by name in DIR, whatever folder the list says); each
       holds ``data`` [n, N, 3] and ``label`` [n, 1]; shape_names.txt names the labels.
Text   modelnet40_train.txt and modelnet40_test.txt list names like airplane_0001; airplane/airplane_0001.txt holds
       x,y,z,nx,ny,nz a line; modelnet40_shape_names.txt names the classes.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.corpora.base import Corpus, CorpusError, ShapeError
from pipeline.corpora.entrance import check_names
from pipeline.corpora.faults import read_file
from pipeline.corpora.files import Entry, FileCorpus
from pipeline.corpora.kinds.hdf5 import CloudFile, content_digest
from pipeline.corpora.options import Options
from pipeline.corpora.releases import Archive, Release, ReleaseOptions
from pipeline.corpora.rows import RowCorpus
from teacher_cache.foreign import decode_text

__all__ = ["open_modelnet40"]

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
HDF5 = Archive(
    "modelnet40_ply_hdf5_2048.zip",
    435_212_151,
    "sha256",
    "07670e237db72ece0f723b9abb571534c9ad655a6456b389646587dc72bb8bae",
)
# Shapes of a whole release. The HDF5 one lacks three that the text release trains on.
HDF5_SHAPES = {"train": 9840, "test": 2468}
TEXT_SHAPES = {"train": 9843, "test": 2468}
GET_HDF5 = "modelnet40_ply_hdf5_2048.zip is at https://shapenet.cs.stanford.edu/media."
GET_TEXT = "modelnet40_normal_resampled.zip is at https://shapenet.cs.stanford.edu/media."


class _Asked(NamedTuple):
    """The arguments with which both releases are opened."""

    uri: str
    wanted: tuple[str, ...]
    points: int
    identity: dict[str, Any]
    common: ReleaseOptions


def open_modelnet40(root: Path, options: Options, points: int) -> Corpus:
    """Open ``modelnet40:DIR?split=train|test|all&order=random|stored&counts=any|official``, and seed, pad."""
    split = options.choice("split", (*SPLITS, "all"), "train")
    common = ReleaseOptions.of(options, counts="any")
    options.finish()
    identity = {"kind": "modelnet40", "points": points, "split": split, **common.identity}
    if not common.stored_order:  # caches of before know no order
        del identity["order"]
    asked = _Asked(options.uri, SPLITS if split == "all" else (split,), points, identity, common)
    for folder in (root, root / "modelnet40_ply_hdf5_2048"):
        if any((folder / f"{name}_files.txt").is_file() for name in SPLITS):
            return _open_hdf5(folder, asked)
    for folder in (root, root / "modelnet40_normal_resampled"):
        if any((folder / f"modelnet40_{name}.txt").is_file() for name in SPLITS):
            return _open_text(folder, asked)
    raise CorpusError(
        f"{options.uri}: no ModelNet40 in {root}; expected train_files.txt and test_files.txt (the HDF5 release) or "
        "modelnet40_train.txt and modelnet40_test.txt (the normal resampled text release). "
        f"For the OFF files use folder:DIR{_pickled(root)}"
    )


def _pickled(root: Path) -> str:
    """Return the remedy for another project's pickled cache, where one was named; "" otherwise."""
    found = [root] if root.suffix == ".dat" else sorted(root.glob("*.dat"))[:1]
    if not found:
        return ""
    return (
        ".\n"
        f"  {found[0].name} is a pickled cache of other projects, which is not read: a pickle runs code, and its "
        "points come from a random start that cannot be reproduced. Use the text release that it was made from. "
        f"{GET_TEXT}"
    )


def _settled(release: Release, asked: _Asked) -> Release:
    """Check the counts of a release and return it; warn of what is missing where that is allowed."""
    if asked.common.official:
        release.check(asked.uri)
    for problem in release.problems():
        logger.warning("%s does not contain all of %s: %s", release.folder, release.name, problem)
    return release


def _lines(path: Path) -> list[str]:
    """Read the non-empty lines of a list file."""
    if not path.exists():
        raise CorpusError(f"{path}: this list is missing. Is the download complete?")
    try:
        return [line.strip() for line in decode_text(read_file(path)).splitlines() if line.strip()]
    except (ShapeError, ValueError) as error:
        raise CorpusError(f"{path}: the list cannot be read: {error}. Is the download complete?") from error


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _open_text(folder: Path, asked: _Asked) -> FileCorpus:
    names = check_names(_lines(folder / "modelnet40_shape_names.txt"), "class", str(folder))
    number = {name: k for k, name in enumerate(names)}
    entries, listed = [], []
    for split in asked.wanted:
        for name in _lines(folder / f"modelnet40_{split}.txt"):
            kind = name.rpartition("_")[0]
            if kind not in number or Path(name).name != name:
                raise CorpusError(
                    f"{folder / f'modelnet40_{split}.txt'}: {name!r} has no class of modelnet40_shape_names.txt"
                )
            entries.append(Entry(f"{kind}/{name}", str(folder / kind / f"{name}.txt"), number[kind], split))
            listed.append(name)
    release = Release(
        name="ModelNet40, normal resampled",
        folder=folder,
        expected={split: TEXT_SHAPES[split] for split in asked.wanted},
        found={split: sum(entry.split == split for entry in entries) for split in asked.wanted},
        get=GET_TEXT,
    )
    return FileCorpus(
        uri=asked.uri,
        identity={**asked.identity, "release": "normal_resampled", "content": _digest(*names, *listed)},
        label_names=names,
        entries=entries,
        beside=[folder / f"modelnet40_{asked.wanted[0]}.txt", folder],
        points=asked.points,
        release=_settled(release, asked),
        **asked.common.drawing,
    )


def _open_hdf5(folder: Path, asked: _Asked) -> RowCorpus:
    ids, sources, labels, splits, places = [], [], [], [], []
    files: list[CloudFile] = []
    for split in asked.wanted:
        for line in _lines(folder / f"{split}_files.txt"):
            path = folder / Path(line).name
            if not path.exists():
                raise CorpusError(f"{path}: is listed in {split}_files.txt, but missing. {GET_HDF5}")
            file = CloudFile(path)
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
    content = content_digest(names, files)

    def read(index: int) -> np.ndarray:
        file, row = places[index]
        return file.row(row)

    release = Release(
        name="ModelNet40, HDF5 of 2048 points",
        folder=folder,
        expected={split: HDF5_SHAPES[split] for split in asked.wanted},
        found={split: splits.count(split) for split in asked.wanted},
        get=GET_HDF5,
        archives=(HDF5,),
    )
    return RowCorpus(
        uri=asked.uri,
        identity={**asked.identity, "release": "hdf5", "content": content},
        label_names=names,
        ids=ids,
        sources=sources,
        stamps=[file.stamp for file, _ in places],
        labels=labels,
        splits=splits,
        read=read,
        format="hdf5",
        points=asked.points,
        release=_settled(release, asked),
        **asked.common.drawing,
    )
