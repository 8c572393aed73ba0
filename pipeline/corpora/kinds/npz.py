"""``npz:FILE``: clouds of one size as arrays in one NPZ file."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from pipeline.corpora.base import CorpusError
from pipeline.corpora.entrance import MAX_PARTS, check_names, check_regular, check_size, checked_labels, text_array
from pipeline.corpora.faults import file_stamp, patiently
from pipeline.corpora.formats.geometry import Malformed
from pipeline.corpora.formats.numpy_files import ZIP_ERRORS, array_from_npy, member_bytes
from pipeline.corpora.options import Options
from pipeline.corpora.rows import RowCorpus

__all__ = ["open_npz"]

MAX_ARRAY_BYTES = 16 * 2**30  # all clouds of one file; the arrays are held in memory
TEXT_KEYS = ("label_names", "split", "ids", "part_names")


def open_npz(path: Path, options: Options, points: int) -> RowCorpus:
    """Open ``npz:FILE?split=all|WORD&seed=0&pad=refuse|repeat``.

    points       [n, N, 3] float16, float32 or float64
    label        [n] integers, -1 for none; label_names [classes] text         (optional)
    split        [n] text; ids [n] text, unique                                 (optional)
    part         [n, N] integers; part_names [parts] text                       (optional)

    Other arrays are ignored. Nothing is unpickled.
    """
    wanted = options.text("split", "all")
    seed = options.integer("seed", 0, low=0)
    pad = options.choice("pad", ("refuse", "repeat"), "refuse")
    options.finish()
    check_regular(path)
    stamp = file_stamp(path)
    arrays, content = patiently(lambda: _load(path), str(path))

    def fail(reason: str) -> CorpusError:
        return CorpusError(f"{path}: {reason}")

    if "points" not in arrays:
        raise fail(f"no array 'points'; it holds {', '.join(arrays) or 'no arrays that are used'}")
    clouds = arrays["points"]
    if clouds.ndim != 3 or clouds.shape[2] != 3 or clouds.dtype.kind != "f":
        raise fail(
            f"'points' has shape {clouds.shape} and type {clouds.dtype}; "
            "expected (n, points, 3) of float16, float32 or float64"
        )
    n, N, _ = clouds.shape
    check_size(n, N, str(path))
    for key, shape in (("label", (n,)), ("split", (n,)), ("ids", (n,)), ("part", (n, N))):
        if key in arrays and arrays[key].shape != shape:
            raise fail(f"'{key}' has shape {arrays[key].shape}; expected {shape} for {n} clouds of {N} points")
    label, part = arrays.get("label"), arrays.get("part")
    for key, array in (("label", label), ("part", part)):
        if array is not None and array.dtype.kind not in "iu":
            raise fail(f"'{key}' is of type {array.dtype}; expected integers")
    given = arrays.get("label_names")
    for key in ("label_names", "part_names"):
        if key in arrays and arrays[key].ndim != 1:
            raise fail(f"'{key}' has shape {arrays[key].shape}; expected a list of names")
    if label is not None and len(label):
        low, high = label.min(), label.max()
        if given is not None and not (low >= -1 and high < len(given)):
            raise fail(f"labels run from {low} to {high}; there are {len(given)} label names")
        label = checked_labels(label, str(path), names=None if given is None else len(given))
    if part is not None and part.size and not (part.min() >= -MAX_PARTS and part.max() < MAX_PARTS):
        raise fail(f"part labels run from {part.min()} to {part.max()}; expected 0..{MAX_PARTS - 1}")
    names = _names(given, label, path)
    splits = text_array(arrays["split"], "'split'", str(path)) if "split" in arrays else None
    check_names(sorted(set(splits or [])), "split", str(path))
    rows = np.arange(n)
    if wanted != "all":
        held = sorted(set(splits or []))
        if wanted not in held:
            raise fail(f"no shapes of split {wanted!r}; its splits are {', '.join(held) or '(none)'}")
        rows = np.flatnonzero(np.asarray(splits) == wanted)
    ids = (
        text_array(arrays["ids"], "'ids'", str(path))
        if "ids" in arrays
        else [f"{path.stem}/{row:06d}" for row in range(n)]
    )
    identity = {"kind": "npz", "content": content, "points": points, "seed": seed, "split": wanted, "pad": pad}
    return RowCorpus(
        uri=options.uri,
        identity=identity,
        label_names=names,
        ids=[ids[row] for row in rows],
        sources=[f"{path} row {row}" for row in rows],
        stamps=[stamp] * len(rows),
        labels=None if label is None else label[rows],
        splits=None if splits is None else [splits[row] for row in rows],
        read=lambda index: clouds[rows[index]],
        points=points,
        seed=seed,
        repeat=pad == "repeat",
        parts=None if part is None else part[rows],
        part_names=_names(arrays.get("part_names"), part, path),
        format="npz",
    )


def _names(given: np.ndarray | None, numbers: np.ndarray | None, path: Path) -> list[str]:
    """Return the names given, or the numbers themselves as names."""
    if given is not None:
        return check_names(text_array(given, "a list of names", str(path)), "name", str(path))
    return [] if numbers is None or not numbers.size else [str(k) for k in range(int(numbers.max()) + 1)]


def _load(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Load the arrays that are used, and hash their content.

    The hash is of the checksums that a zip file keeps of its members.
    """
    arrays: dict[str, np.ndarray] = {}
    content = hashlib.sha256()
    try:
        held = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                key = info.filename.removesuffix(".npy")
                if key not in ("points", "label", "part", *TEXT_KEYS):
                    continue
                if key in arrays:
                    raise CorpusError(f"{path}: holds two arrays '{key}'")
                content.update(f"{key} {info.file_size} {info.CRC:08x}\n".encode())
                try:
                    data = member_bytes(archive, info, held, MAX_ARRAY_BYTES)
                except Malformed as error:
                    raise CorpusError(f"{path}: {error}") from error
                arrays[key] = array_from_npy(data, kinds="U" if key in TEXT_KEYS else "fiu")
    except ZIP_ERRORS as error:
        raise CorpusError(f"{path}: not a complete NPZ file: {error}") from error
    except Malformed as error:
        raise CorpusError(f"{path}: '{key}': {error}") from error
    return arrays, content.hexdigest()
