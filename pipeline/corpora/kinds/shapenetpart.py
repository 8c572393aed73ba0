"""``shapenetpart:DIR``: ShapeNetPart, the release with normals.

<synset>/<id>.txt holds x y z nx ny nz part a line; synsetoffset2category.txt names the 16 categories;
train_test_split/shuffled_{train,val,test}_file_list.json list shape_data/<synset>/<id>. Parts are numbered 0..49 over
all categories, and a category's own are consecutive.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path

from pipeline.corpora.base import CorpusError, ShapeError
from pipeline.corpora.faults import read_file
from pipeline.corpora.files import Entry, FileCorpus
from pipeline.corpora.formats.geometry import ReadOptions
from pipeline.corpora.options import Options
from pipeline.corpora.releases import Release, ReleaseOptions
from teacher_cache.foreign import decode_text

__all__ = ["CATEGORIES", "PART_NAMES", "open_shapenetpart"]

# Name -> (synset, number of parts), in the order of the labels; parts are numbered through.
CATEGORIES = {
    "Airplane": ("02691156", 4),
    "Bag": ("02773838", 2),
    "Cap": ("02954340", 2),
    "Car": ("02958343", 4),
    "Chair": ("03001627", 4),
    "Earphone": ("03261776", 3),
    "Guitar": ("03467517", 3),
    "Knife": ("03624134", 2),
    "Lamp": ("03636649", 4),
    "Laptop": ("03642806", 2),
    "Motorbike": ("03790512", 6),
    "Mug": ("03797390", 2),
    "Pistol": ("03948459", 3),
    "Rocket": ("04099429", 3),
    "Skateboard": ("04225987", 3),
    "Table": ("04379243", 3),
}
PART_NAMES = tuple(f"{name}/{part}" for name, (_, parts) in CATEGORIES.items() for part in range(parts))
SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
LISTED = {"train": 12137, "val": 1870, "test": 2874}
ABSENT = 9  # of the listed shapes to train and validate on: 13,998 of 14,007 have a file
FOLDER = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
GET = (
    f"{FOLDER}.zip is at https://shapenet.cs.stanford.edu/media; unpack it, and give the folder that it contains or "
    "the one above."
)


def open_shapenetpart(root: Path, options: Options, points: int) -> FileCorpus:
    """Open ``shapenetpart:DIR?split=train|val|trainval|test|all``, and seed, pad, order, counts."""
    split = options.choice("split", (*SPLITS, "all"), "train")
    common = ReleaseOptions.of(options, counts="official")
    options.finish()
    folder = _folder(root, options.uri)
    faults = _table_faults(folder)
    wanted = tuple(LISTED) if split == "all" else SPLITS[split]
    listed = {name: _listed(folder, name) for name in LISTED}
    place: dict[str, str] = {}
    for name, ids in listed.items():
        for id in ids:
            if id in place:
                raise CorpusError(
                    f"{_list_path(folder, name)}: {id} is in the list of {place[id]} too; a shape is in one split"
                )
            place[id] = name
    number = {synset: label for label, (synset, _) in enumerate(CATEGORIES.values())}
    entries, digest = [], hashlib.sha256()
    for name in wanted:
        for id in listed[name]:
            synset, _, stem = id.partition("/")
            entries.append(Entry(id, str(folder / synset / f"{stem}.txt"), number[synset], name))
            digest.update(f"{name} {id}\n".encode())
    held = Counter(entry.label for entry in entries)
    lost = [name for label, name in enumerate(CATEGORIES) if not held[label]]
    if lost:
        faults.append(f"{split}: no shape of {', '.join(lost)}")
    release = Release(
        name="ShapeNetPart with normals",
        folder=folder,
        expected={name: LISTED[name] for name in wanted},
        found={name: len(listed[name]) for name in wanted},
        get=GET,
        absent=ABSENT if {"train", "val"} & set(wanted) else 0,
        faults=tuple(faults),
    )
    if common.official:
        release.check(options.uri)
    identity = {
        "kind": "shapenetpart", "points": points, "split": split, **common.identity, "content": digest.hexdigest(),
    }  # fmt: skip
    first, ranges = 0, []
    for _, parts in CATEGORIES.values():
        ranges.append(range(first, first + parts))
        first += parts
    return FileCorpus(
        uri=options.uri,
        identity=identity,
        label_names=tuple(CATEGORIES),
        entries=entries,
        points=points,
        beside=[_list_path(folder, wanted[0]), folder],
        reading=ReadOptions(columns=("1", "2", "3"), parts="7"),
        part_names=PART_NAMES,
        parts_of_label=ranges,
        release=release,
        **common.drawing,
    )


def _folder(root: Path, uri: str) -> Path:
    for folder in (root, root / FOLDER):
        if (folder / "train_test_split").is_dir() and (folder / "synsetoffset2category.txt").is_file():
            return folder
    others = {
        "points_label": "the release without normals (points/ and points_label/)",
        "train_hdf5_file_list.txt": "the HDF5 release of PointNet",
    }
    for path in (path for place in (root, *sorted(root.glob("*/"))) for path in place.glob("*")):
        other = others.get(path.name) or (others["points_label"] if (path / "points_label").is_dir() else "")
        if other:
            raise CorpusError(
                f"{uri}: {path.parent} contains {other}, which has other points. Use the one with normals: {GET}"
            )
    raise CorpusError(
        f"{uri}: no ShapeNetPart in {root}; expected synsetoffset2category.txt and train_test_split/ there or in "
        f"{FOLDER}.\n  {GET}"
    )


def _table_faults(folder: Path) -> list[str]:
    """List how the file of categories differs from the table. Raises CorpusError for a contradiction."""
    path = folder / "synsetoffset2category.txt"
    found = {}
    for at, line in enumerate(_text(path).splitlines(), 1):
        name, synset = [*line.split(), "", ""][:2]
        if not line.strip():
            continue
        if name not in CATEGORIES or CATEGORIES[name][0] != synset:
            raise CorpusError(
                f"{path} line {at}: {line[:60]!r} is none of the 16 categories of ShapeNetPart, whose labels and "
                "parts are fixed"
            )
        found[name] = at
    order = [name for name in CATEGORIES if name in found]
    if order != list(found):
        raise CorpusError(f"{path}: its lines are in another order, which numbers the labels. Download it again")
    lost = [name for name in CATEGORIES if name not in found]
    return [f"{path.name}: without {', '.join(lost)}"] if lost else []


def _list_path(folder: Path, name: str) -> Path:
    return folder / "train_test_split" / f"shuffled_{name}_file_list.json"


def _listed(folder: Path, name: str) -> list[str]:
    """<synset>/<id> of a split's shapes. Raises CorpusError for a list that is none, or names what cannot be."""
    path = _list_path(folder, name)
    if not path.is_file():
        raise CorpusError(f"{path}: this list is missing. {GET}")
    try:
        lines = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: not a JSON list: {error}. Is the download complete?") from error
    if not isinstance(lines, list):
        raise CorpusError(f"{path}: holds a {type(lines).__name__}; expected a list of shape_data/<synset>/<id>")
    synsets = {synset for synset, _ in CATEGORIES.values()}
    ids = []
    for at, line in enumerate(lines):
        words = line.split("/") if isinstance(line, str) else []
        # Ids have several lengths and alphabets, so only the form of the path is checked.
        if len(words) != 3 or words[0] != "shape_data" or words[1] not in synsets or words[2] in ("", ".", ".."):
            raise CorpusError(
                f"{path} entry {at}: {str(line)[:80]!r}; expected shape_data/<synset>/<id> of the 16 synsets"
            )
        ids.append(f"{words[1]}/{words[2]}")
    twice = [id for id, times in Counter(ids).items() if times > 1]
    if twice:
        raise CorpusError(f"{path}: {twice[0]} occurs twice in this list; a shape counts once")
    return ids


def _text(path: Path) -> str:
    try:
        return decode_text(read_file(path))
    except (ShapeError, ValueError) as error:
        raise CorpusError(f"{path}: cannot be read: {error}. Is the download complete?") from error
