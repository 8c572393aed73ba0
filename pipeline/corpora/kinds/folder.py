"""``folder:DIR``: every mesh or cloud in a tree of folders, its label from a folder's name."""

import errno
import logging
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpora.base import CorpusError
from pipeline.corpora.faults import patiently
from pipeline.corpora.files import READERS, Entry, FileCorpus, part_table
from pipeline.corpora.formats.geometry import ReadOptions
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
MAX_DEPTH = 64  # folders within folders
MAX_VISITS = 1000  # paths by which links may lead to one folder
SHOWN = 3
TABLES = frozenset({".npy", ".npz", ".xyz", ".pts", ".txt", ".csv", ".pcd"})  # where `columns=` means something
_NOWHERE = {
    errno.ENOENT: "which does not exist",
    errno.ENOTDIR: "a path through something that is not a folder",
    errno.ELOOP: "which leads back to itself",
    errno.ENAMETOOLONG: "a name too long for this disk",
    errno.EACCES: "which this user may not enter",
    errno.EPERM: "which this user may not enter",
}


@dataclass(frozen=True, slots=True)
class _Found:
    """A file, or a folder that cannot be listed, below the root.

    id       its path below the root, as the disk spells it: two spellings are two files
    folders  that lead to it, in Unicode's composed form; one tuple for all files of a folder
    fault    why it cannot be read, where that is known already
    """

    id: str
    folders: tuple[str, ...]
    fault: str | None = None

    @property
    def name(self) -> str:
        """The id in Unicode's composed form, in which patterns are compared."""
        return unicodedata.normalize("NFC", self.id)

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.id)[1].lower()


def open_folder(root: Path, options: Options, points: int) -> FileCorpus:
    """Open a folder tree of meshes and clouds.

    ``folder:DIR?seed=0&split=all|train|test|val&label=parent|top|none&formats=off,ply&pad=refuse|repeat``, and
    ``split_level=auto|none|0..9&match=PATTERNS&exclude=PATTERNS&columns=2,3,4&parts=group&part_names=a,b&up=y|z``.

    Ids are paths below DIR, sorted. The folders of one level may name the split (train, test, val, any case) and then
    are no labels; of the others the innermost (``label=parent``) or the outermost (``label=top``) is the label. Names
    are compared in Unicode's composed form. Hidden files, other extensions and what the patterns leave out are ignored
    and counted. Raises CorpusError.
    """
    seed = options.integer("seed", 0, low=0)
    split = options.choice("split", ("all", "train", "test", "val"), "all")
    rule = options.choice("label", ("parent", "top", "none"), "parent")
    formats = options.words("formats", tuple(suffix[1:] for suffix in READERS))
    pad = options.choice("pad", ("refuse", "repeat"), "refuse")
    level = options.choice("split_level", ("auto", "none", *map(str, range(10))), "auto")
    match, exclude = options.text("match", ""), options.text("exclude", "")
    columns, parts = options.text("columns", ""), options.text("parts", "")
    named = options.text("part_names", "")
    up = options.choice("up", ("file", "y", "z"), "file")
    options.finish()
    if not root.is_dir():
        raise CorpusError(f"{options.uri}: {root} is not a folder")
    reading = ReadOptions(columns=_list(columns), parts=parts, up=up)
    if columns and (len(set(reading.columns)) != 3 or len(reading.columns) != 3 or "" in reading.columns):
        different = len(set(reading.columns) - {""})
        raise CorpusError(f"{options.uri}: columns={columns} names {different} columns; expected x, y and z")
    if named and not parts:
        raise CorpusError(f"{options.uri}: part_names= is given without parts=, which says where the parts are")
    wanted = {f".{name}" for name in formats}
    found, ignored, lost, nameless = _select(root, wanted, _patterns(match), _patterns(exclude), options.uri)
    if not found:
        raise CorpusError(
            f"{options.uri}: no shapes in {root} ({ignored + len(lost) + len(nameless)} other files); these are read: "
            f"{' '.join(sorted(wanted))}"
        )
    tables = sorted(wanted & TABLES)
    if columns and not any(item.suffix in TABLES for item in found):
        raise CorpusError(
            f"{options.uri}: columns={columns} selects the columns of x, y and z, but none of the files is a table "
            f"({' '.join(tables) or 'formats= leaves them out'})"
        )
    at = _split_level(found, level, options.uri)
    shapes = [(item, *_meaning(item, at, rule)) for item in found]
    # Labels are numbered over all splits, so that a number means the same in each.
    label_names = sorted({label for _, label, _ in shapes if label is not None})
    number = {name: k for k, name in enumerate(label_names)}
    above = str(root / "x")[:-1]
    everything = [
        Entry(item.id, above + item.id.removesuffix("/"), None if label is None else number[label], where, item.fault)
        for item, label, where in shapes
    ]
    entries = [entry for entry in everything if split in ("all", entry.split)]
    if not entries:
        how = "" if at is not None else "; no level of folders names splits, set split_level= if one does"
        raise CorpusError(
            f"{options.uri}: none of the {len(found)} shapes in {root} lies in a folder named {split}{how}"
        )
    entries.sort(key=lambda entry: entry.id)
    if ignored:
        logger.info("%s: %d files ignored (hidden, of another kind, or left out by a pattern)", options.uri, ignored)
    for names, what in (
        (lost, "links are broken, and their names are not those of shapes"),
        (nameless, "files are skipped, because their names are not valid UTF-8"),
    ):
        if names:
            shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            logger.warning("%s: %d %s: %s", options.uri, len(names), what, shown)
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
        "readers": {suffix[1:]: READERS[suffix].version for suffix in sorted(wanted)},
        # absent where not given, so that a later option renames no cache
        **{
            key: value
            for key, value, default in (
                ("split_level", level, "auto"),
                ("match", match, ""),
                ("exclude", exclude, ""),
                ("columns", columns, ""),
                ("parts", parts, ""),
                ("up", up, "file"),
            )
            if value != default
        },
    }
    # Over all splits, as labels are: a part must be one number in the shapes that train and those that test.
    part_names = part_table(everything, reading, _list(named), options.uri) if parts else ()
    if part_names:
        identity["part_names"] = list(part_names)
    return FileCorpus(
        uri=options.uri,
        identity=identity,
        label_names=label_names,
        entries=entries,
        points=points,
        seed=seed,
        repeat=pad == "repeat",
        ignored=ignored + len(lost) + len(nameless),
        reading=reading,
        part_names=part_names,
        up=up,
    )


def _list(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",")) if text else ()


# -- which files -------------------------------------------------------------------------------------------------------


def _select(
    root: Path, wanted: set[str], match: Sequence[re.Pattern[str]], exclude: Sequence[re.Pattern[str]], uri: str
) -> tuple[list[_Found], int, list[str], list[str]]:
    """Select the shapes below root.

    ->  them, the number of other files, dangling links, and shapes whose names are no text.
    """
    found: list[_Found] = []
    ignored = 0
    lost: list[str] = []
    nameless: list[str] = []
    for folder, names in _walk(root, uri):
        path = "/".join((*folder, ""))
        composed = tuple(unicodedata.normalize("NFC", part) for part in folder)
        if isinstance(names, str):
            found.append(_Found(path, composed, names))
            continue
        files = {name for name, _ in names}
        for name, dangling in names:
            item = _Found(path + name, composed, dangling)
            other = os.path.splitext(name)[1].lower() not in wanted
            if other and dangling is not None and not name.startswith("."):
                lost.append(ascii(item.id)[1:-1])
            elif not other and not name.startswith(".") and not _is_text(item.id):
                nameless.append(ascii(item.id)[1:-1])
            elif (
                other
                or name.startswith(".")
                # Occupancy Networks keep query points, which lie off the surface, beside the cloud of the surface.
                or (name == "points.npz" and "pointcloud.npz" in files)
                or (match and not any(pattern.fullmatch(item.name) for pattern in match))
                or any(pattern.fullmatch(item.name) for pattern in exclude)
            ):
                ignored += 1
            else:
                found.append(item)
    return found, ignored, lost, nameless


def _walk(root: Path, uri: str) -> Iterator[tuple[tuple[str, ...], list[tuple[str, str | None]] | str]]:
    """Yield each folder below root, as names, with its files, or with the reason why it cannot be listed.

    Each file comes with its fault (None: none visible). Links are followed, but never into a folder that is being
    walked already.
    """
    visits: Counter[tuple[int, int]] = Counter()
    stack: list[tuple[tuple[str, ...], frozenset[tuple[int, int]]]] = [((), frozenset())]
    while stack:
        folder, above = stack.pop()
        path = root.joinpath(*folder)
        if len(folder) > MAX_DEPTH:
            raise CorpusError(f"{uri}: folders are nested more than {MAX_DEPTH} deep, first {'/'.join(folder)[:120]}")
        try:
            status, entries = patiently(lambda path=path: (os.stat(path), _entries(path)), str(path))  # type: ignore[misc]
        except (_Closed, OSError) as error:  # OSErrors that are the machine's came as MachineFault
            reason = error.strerror if isinstance(error, OSError) else error
            if not folder:
                raise CorpusError(f"{uri}: {path} cannot be listed: {reason}") from None
            yield folder, f"is a folder that cannot be listed: {reason}"
            continue
        key = (status.st_dev, status.st_ino)
        if key in above:
            continue
        visits[key] += 1
        if visits[key] > MAX_VISITS:
            raise CorpusError(f"{uri}: links lead to {'/'.join(folder)} on more than {MAX_VISITS} paths; remove some")
        files = []
        below = []
        for name, is_folder, fault in entries:
            if is_folder:
                if not name.startswith("."):
                    below.append(((*folder, name), above | {key}))
            else:
                files.append((name, fault))
        stack += reversed(below)
        yield folder, files


class _Closed(Exception):
    """A folder that this user may not list."""


def _entries(path: Path) -> list[tuple[str, bool, str | None]]:
    """List a folder's entries, sorted: name, whether it is a folder, and its fault."""
    found = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                # A link is examined by itself: its target says nothing about the folder that contains it.
                is_folder, fault = _behind_link(entry.path) if entry.is_symlink() else (entry.is_dir(), None)
                found.append((entry.name, is_folder, fault))
    except PermissionError as error:
        raise _Closed(error.strerror) from None
    return sorted(found)


def _behind_link(path: str) -> tuple[bool, str | None]:
    """Check whether a link leads to a folder, and why it dangles, if so. Raises OSError for faults of the machine."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode), None
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        return False, f"is a link to {os.readlink(path)[:200]!a}, {_NOWHERE[error.errno]}"


def _patterns(text: str) -> list[re.Pattern[str]]:
    """Compile patterns for ids, separated by commas.

    ``*`` and ``?`` match within a name, ``**/`` any folders; a pattern without a slash is for the file's name, wherever
    it lies.
    """
    found = []
    for pattern in _list(unicodedata.normalize("NFC", text)):
        whole = pattern if "/" in pattern else f"**/{pattern}"
        tokens = re.split(r"(\*\*/|\*\*|\*|\?)", whole)
        spelled = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        found.append(re.compile("".join(spelled.get(token, re.escape(token)) for token in tokens), re.DOTALL))
    return found


def _is_text(name: str) -> bool:
    """Check whether a file's name is text (Linux allows any bytes)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split_level(found: Sequence[_Found], wanted: str, uri: str) -> int | None:
    """Find the level of folders that all name a split. Raises CorpusError where that is ambiguous."""
    if wanted == "none":
        return None
    if wanted != "auto":
        level = int(wanted)
        names = {item.folders[level] for item in found if len(item.folders) > level}
        if not any(name.lower() in SPLIT_FOLDERS for name in names):
            held = f"are {', '.join(sorted(names)[:SHOWN])}" if names else "do not exist"
            raise CorpusError(
                f"{uri}: with split_level={level} the folders of level {level} must name splits; they {held}. "
                f"Expected {', '.join(sorted(SPLIT_FOLDERS))}; the topmost level is 0."
            )
        return level
    depth = max(len(item.folders) for item in found)
    levels, doubt = [], ""
    for level in range(depth):
        names = {item.folders[level].lower() for item in found if len(item.folders) > level}
        splits = names & set(SPLIT_FOLDERS)
        if splits == names:
            levels.append(level)
        elif len({SPLIT_FOLDERS[name] for name in splits}) > 1:
            doubt = doubt or (
                f"{uri}: the folders of level {level} are {', '.join(sorted(splits))} and others "
                f"({', '.join(sorted(names - splits)[:SHOWN])}); splits, or classes of these names? Set "
                f"split_level={level} or split_level=none."
            )
    if doubt and not levels:  # beside a level that is certain, such names are classes
        raise CorpusError(doubt)
    if len(levels) > 1:
        raise CorpusError(
            f"{uri}: folders of the levels {' and '.join(map(str, levels))} are named like splits; set the level that "
            f"names the split, for instance split_level={levels[0]}; the others are then classes."
        )
    return levels[0] if levels else None


def _meaning(item: _Found, level: int | None, rule: str) -> tuple[str | None, str | None]:
    """Return label and split of a shape."""
    folders = item.folders
    classes = [name for at, name in enumerate(folders) if at != level]
    label = None if rule == "none" or not classes else classes[-1 if rule == "parent" else 0]
    where = SPLIT_FOLDERS.get(folders[level].lower()) if level is not None and len(folders) > level else None
    return label, where
