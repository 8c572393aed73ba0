"""``fewshot:DIR``: the folds of ModelNet40 few-shot that the field is scored on, which are pickles.

A pickle is a program that may call anything. These need four names of NumPy, and what stands for those here only notes
their arguments: no function of NumPy, and none of anybody else, is called with what a file says. Arrays are made
afterwards, of numbers whose bytes are there.
"""

import hashlib
import io
import math
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.base import CorpusError, ShapeError
from pipeline.corpora.entrance import check_regular, check_size
from pipeline.corpora.episodes import QUERIES
from pipeline.corpora.faults import file_stamp, read_file
from pipeline.corpora.options import Options
from pipeline.corpora.releases import Release, ReleaseOptions
from pipeline.corpora.rows import RowCorpus

__all__ = ["FOLDS", "open_fold", "read_fold"]

FOLDS = 10
GET = (
    "The folds (ModelNetFewshot) are linked in DATASET.md of https://github.com/lulutang0608/Point-BERT; folds that "
    "its generator makes again are another benchmark."
)
MAX_BYTES = 2**31  # the largest of the release has 79 MB
MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")  # the last by NumPy 2
# What such a file is made of. Others could name more (EXT1), claim memory before its bytes are there (BYTEARRAY8), or
# make objects by ways of their own (NEWOBJ).
OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE"),
}
TYPES = {"f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"}


def open_fold(root: Path, options: Options, points: int) -> RowCorpus:
    """Open ``fewshot:DIR?way=5&shot=10&fold=0&split=train|test``, and seed, pad, order, counts.

    The file is DIR/5way_10shot/0.pkl.
    """
    way = options.integer("way", 5, low=2, high=1000)
    shot = options.integer("shot", 10, low=1, high=10**6)
    fold = options.integer("fold", 0, low=0, high=FOLDS - 1)
    split = options.choice("split", ("train", "test"), "train")
    common = ReleaseOptions.of(options, counts="official")
    options.finish()
    path = _path(root, way, shot, fold, options.uri)
    check_regular(path)
    stamp = file_stamp(path)
    items = read_fold(path)[split]
    classes = _classes(items, way, path, split)
    lost = [label for label in range(way) if not any(item.label == label for item in items)]
    release = Release(
        name=f"few-shot fold {fold} of {way} ways, {shot} shots",
        folder=root,
        expected={split: way * (shot if split == "train" else QUERIES)},
        found={split: len(items)},
        get=GET,
        faults=tuple(f"{split}: no shape of label {label}" for label in lost),
    )
    if common.official:
        release.check(options.uri)
    if lost:
        classes |= {label: f"label {label}" for label in lost}
    name = f"{way}way{shot}shot/{fold}/{split}"
    identity = {
        "kind": "fewshot", "points": points, "way": way, "shot": shot, "fold": fold, "split": split, **common.identity,
        "content": _identity_of(items),
    }  # fmt: skip
    return RowCorpus(
        uri=options.uri,
        identity=identity,
        label_names=[classes[label] for label in range(way)],
        ids=[f"{name}/{row:03d}" for row in range(len(items))],
        sources=[f"{path} {split} {row}" for row in range(len(items))],
        stamps=[stamp] * len(items),
        labels=[item.label for item in items],
        splits=[split] * len(items),
        read=lambda index: items[index].points[:, :3],
        points=points,
        format="pickle",
        release=release,
        **common.drawing,
    )


@dataclass(frozen=True)
class Item:
    """One cloud of a fold: points [M, 3 or more] float, label 0..way - 1, and the number of its class in ModelNet40."""

    points: np.ndarray
    label: int
    original: int


def read_fold(path: Path) -> dict[str, list[Item]]:
    """Read the items of both splits; nothing in the file is called.

    Raises CorpusError for a file that is damaged, or is more than a fold, and MachineFault.
    """
    try:
        data = read_file(path)
    except ShapeError as error:
        raise CorpusError(str(error)) from error
    if len(data) > MAX_BYTES:
        raise CorpusError(f"{path}: {len(data)} bytes; a fold has at most {MAX_BYTES}")
    try:
        _check_opcodes(data)
        content = _Reader(io.BytesIO(data)).load()
        if not isinstance(content, dict) or set(content) != {"train", "test"}:
            raise _Refused("does not contain a dict of 'train' and 'test'")
        return {split: [_item(item, split, row) for row, item in enumerate(_list(content, split))] for split in content}
    except _Refused as error:
        raise CorpusError(f"{path}: not a fold of few-shot clouds: {error}. {GET}") from None
    except CorpusError as error:  # of a cloud that is too small
        raise CorpusError(f"{path}: {error}") from error
    except Exception as error:  # of a pickle that is no program at all: pickle promises no set of exceptions
        raise CorpusError(
            f"{path}: not a complete pickle of a fold ({type(error).__name__}: {error}). Is the download complete?"
        ) from error


class _Refused(Exception):
    """Content that does not belong in a fold."""


class _Call:
    """A name of NumPy that a file may call: what comes of it is a note of the arguments."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> "_Note":
        return _Note(self.name, arguments)


class _Note:
    """A call that was not made, and the state that was to be set on what it would have returned."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


_NAMES = {name: _Call(name) for name in ("_reconstruct", "scalar", "ndarray", "dtype")}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        home = "numpy" if name in ("ndarray", "dtype") else "multiarray"
        if name not in _NAMES or module not in MODULES or not module.endswith(home):
            raise _Refused(f"it names {module[:60]}.{name[:60]}, but only four names of NumPy are allowed")
        return _NAMES[name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to something outside the file")


def _check_opcodes(data: bytes) -> None:
    """Walk the program without running it. Raises _Refused, or what pickletools does for one that is cut."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data), 1):
        if opcode.name not in OPCODES:
            raise _Refused(f"it uses {opcode.name}, which arrays and numbers never need")
        # The memo is an array as long as its largest index: 4 bytes could claim gigabytes.
        if opcode.name in ("BINPUT", "LONG_BINPUT") and (argument or 0) > count:
            raise _Refused(f"it numbers object {argument} among {count}")


def _list(content: dict[Any, Any], split: str) -> list[Any]:
    found = content[split]
    if not isinstance(found, list) or not found:
        raise _Refused(f"'{split}' is not a list of items")
    return found


def _item(item: Any, split: str, row: int) -> Item:
    if not isinstance(item, tuple) or len(item) != 3:
        raise _Refused(f"'{split}' {row} is not (points, label, class)")
    points = _array(item[0])
    if points is None or points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind != "f":
        raise _Refused(f"'{split}' {row} has no points [n, 3 or more] of float32 or float64")
    check_size(1, points.shape[0], f"'{split}' {row}")
    label, original = _whole(item[1]), _whole(item[2])
    if label is None or original is None:
        raise _Refused(f"'{split}' {row} has a label or class that is not a whole number")
    return Item(points, label, original)


def _whole(value: Any) -> int | None:
    """A whole number: Python's, a NumPy scalar, or an array of one."""
    if type(value) is int:
        return value
    if isinstance(value, _Note) and value.name == "scalar":
        arguments = value.arguments
        array = _from_bytes((), arguments[0], arguments[1]) if len(arguments) == 2 else None
    else:
        array = _array(value)
    if array is None or array.size != 1 or array.dtype.kind not in "iu":
        return None
    return int(array.reshape(-1)[0])


def _array(value: Any) -> np.ndarray | None:
    """The array that a note of `_reconstruct` describes; None where it describes none."""
    if not isinstance(value, _Note) or value.name != "_reconstruct":
        return None
    state = value.state
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[1], tuple):
        return None
    _, shape, dtype, fortran, data = state
    return _from_bytes(shape, dtype, data, fortran=fortran is True)


def _from_bytes(shape: tuple[Any, ...], dtype: Any, data: Any, *, fortran: bool = False) -> np.ndarray | None:
    kind = dtype.arguments[0] if isinstance(dtype, _Note) and dtype.name == "dtype" and dtype.arguments else None
    state = dtype.state if kind in TYPES else None
    if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
        return None
    if any(part is not None for part in state[2:5]) or not all(type(size) is int and size >= 0 for size in shape):
        return None
    wanted = np.dtype(kind).newbyteorder(state[1])
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * wanted.itemsize or len(shape) > 8:
        return None
    return np.frombuffer(data, wanted).reshape(shape, order="F" if fortran else "C")


def _path(root: Path, way: int, shot: int, fold: int, uri: str) -> Path:
    if root.is_file():
        raise CorpusError(f"{uri}: {root} is a file; give the folder that contains {way}way_{shot}shot/{fold}.pkl")
    # The loaders of the field say it with an underscore, its instructions without.
    places = [root / f"{way}way_{shot}shot" / f"{fold}.pkl", root / f"{way}way{shot}shot" / f"{fold}.pkl"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise CorpusError(f"{uri}: no {' and no '.join(map(str, places))}. {GET}")
    return found


def _classes(items: list[Item], way: int, path: Path, split: str) -> dict[int, str]:
    """Label -> name of the class it stands for. Raises CorpusError for labels that are none."""
    found: dict[int, int] = {}
    for row, item in enumerate(items):
        if not 0 <= item.label < way:
            raise CorpusError(f"{path}: label {item.label} of {split} {row}; expected 0..{way - 1} for {way} ways")
        if found.setdefault(item.label, item.original) != item.original:
            raise CorpusError(
                f"{path}: label {item.label} has the classes {found[item.label]} and {item.original}; expected one"
            )
    if len(set(found.values())) < len(found):
        raise CorpusError(f"{path}: two labels of {split} have the same class")
    return {label: f"class {original}" for label, original in found.items()}


def _identity_of(items: list[Item]) -> str:
    """SHA-256 (hex) of the items' labels and bytes."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.label} {item.original} {item.points.dtype.str} {item.points.shape} ".encode())
        digest.update(item.points.tobytes())
    return digest.hexdigest()
