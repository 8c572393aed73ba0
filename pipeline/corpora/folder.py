"""``folder:DIR``: every mesh or cloud in a tree of folders, its label from a folder's name."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.corpora.base import CorpusError
from pipeline.corpora.files import READERS, Entry, FileCorpus
from pipeline.corpora.options import Options

__all__ = ["open_folder"]

logger = logging.getLogger(__name__)

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}


def open_folder(root: Path, options: Options, points: int) -> FileCorpus:
    """``folder:DIR?seed=0&split=all|train|test|val&label=parent|top|none&formats=off,ply&pad=refuse|repeat``.

    Ids are paths below DIR, sorted. A folder named train, test or val (any case) gives the split, not the label; of the
    others the innermost (``label=parent``) or the outermost (``label=top``) is the label. Hidden files and unknown
    extensions are ignored and counted.
    """
    seed = options.integer("seed", 0, low=0)
    split = options.choice("split", ("all", "train", "test", "val"), "all")
    rule = options.choice("label", ("parent", "top", "none"), "parent")
    formats = options.words("formats", tuple(suffix[1:] for suffix in READERS))
    pad = options.choice("pad", ("refuse", "repeat"), "refuse")
    options.finish()
    if not root.is_dir():
        raise CorpusError(f"{options.uri}: {root} is not a folder")
    wanted = {f".{name}" for name in formats}
    found: list[tuple[str, Path, str | None, str | None]] = []
    ignored = 0
    for relative in _walk(root):
        name = relative.name
        if name.startswith(".") or relative.suffix.lower() not in wanted or not _is_text(str(relative)):
            ignored += 1
            continue
        folders = relative.parts[:-1]
        splits = [SPLIT_FOLDERS[part.lower()] for part in folders if part.lower() in SPLIT_FOLDERS]
        classes = [part for part in folders if part.lower() not in SPLIT_FOLDERS]
        label = None if rule == "none" or not classes else classes[-1 if rule == "parent" else 0]
        found.append((relative.as_posix(), root / relative, label, splits[-1] if splits else None))
    if not found:
        raise CorpusError(
            f"{options.uri}: no shapes in {root} ({ignored} other files); these are read: {' '.join(sorted(wanted))}"
        )
    # Labels are numbered over all splits, so that a number means the same in each.
    label_names = sorted({label for _, _, label, _ in found if label is not None})
    number = {name: k for k, name in enumerate(label_names)}
    entries = [
        Entry(id, path, None if label is None else number[label], where)
        for id, path, label, where in sorted(found)
        if split in ("all", where)
    ]
    if not entries:
        raise CorpusError(f"{options.uri}: none of the {len(found)} shapes in {root} lies in a folder named {split}")
    if ignored:
        logger.info("%s: %d files ignored (hidden, or of another kind)", options.uri, ignored)
    identity = {
        "kind": "folder",
        "name": root.resolve().name,
        "points": points,
        "seed": seed,
        "split": split,
        "label": rule,
        "formats": sorted(formats),
        "pad": pad,
        "labels": label_names,
    }
    return FileCorpus(
        uri=options.uri,
        identity=identity,
        label_names=label_names,
        entries=entries,
        points=points,
        seed=seed,
        repeat=pad == "repeat",
        ignored=ignored,
    )


def _walk(root: Path) -> Iterator[Path]:
    """Regular files below root as relative paths. Links are followed, but never into a folder that is being walked
    already.
    """

    def inside(folder: Path, relative: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
        try:
            status = folder.stat()
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise CorpusError(f"{folder}: the folder cannot be read: {error.strerror or error}") from error
        key = (status.st_dev, status.st_ino)
        if key in above:
            return
        for name in names:
            path = folder / name
            if path.is_dir():
                if not name.startswith("."):
                    yield from inside(path, relative / name, above | {key})
            elif path.is_file():
                yield relative / name

    yield from inside(root, Path(), frozenset())


def _is_text(name: str) -> bool:
    """Whether a file's name can be written down (Linux allows any bytes)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
