"""``shapenet55:DIR``: ShapeNet-55 in Point-BERT's layout.

DIR/ShapeNet-55/train.txt and test.txt list names like 02691156-<hash>.npy; DIR/shapenet_pc/<name> holds [8192, 3]
float32.
"""

import hashlib
from pathlib import Path

from pipeline.corpora.base import CorpusError, ShapeError
from pipeline.corpora.faults import read_file
from pipeline.corpora.files import Entry, FileCorpus
from pipeline.corpora.options import Options
from teacher_cache.foreign import decode_text

__all__ = ["SYNSETS", "open_shapenet55"]

SPLITS = ("train", "test")
# Common layouts: DIR may be the folder itself, the one above it, or the one with the lists.
LIST_FOLDERS = ("ShapeNet-55", ".", "ShapeNet55-34/ShapeNet-55", "data/ShapeNet55-34/ShapeNet-55")
CLOUD_FOLDERS = ("shapenet_pc", "ShapeNet55-34/shapenet_pc", "data/ShapeNet55-34/shapenet_pc", "../shapenet_pc")

# WordNet synset offsets of ShapeNetCore v2 and their names, in ascending order: the label is the place in this table.
SYNSETS = {
    "02691156": "airplane",
    "02747177": "trash bin",
    "02773838": "bag",
    "02801938": "basket",
    "02808440": "bathtub",
    "02818832": "bed",
    "02828884": "bench",
    "02843684": "birdhouse",
    "02871439": "bookshelf",
    "02876657": "bottle",
    "02880940": "bowl",
    "02924116": "bus",
    "02933112": "cabinet",
    "02942699": "camera",
    "02946921": "can",
    "02954340": "cap",
    "02958343": "car",
    "02992529": "cellphone",
    "03001627": "chair",
    "03046257": "clock",
    "03085013": "keyboard",
    "03207941": "dishwasher",
    "03211117": "display",
    "03261776": "earphone",
    "03325088": "faucet",
    "03337140": "file cabinet",
    "03467517": "guitar",
    "03513137": "helmet",
    "03593526": "jar",
    "03624134": "knife",
    "03636649": "lamp",
    "03642806": "laptop",
    "03691459": "loudspeaker",
    "03710193": "mailbox",
    "03759954": "microphone",
    "03761084": "microwave",
    "03790512": "motorbike",
    "03797390": "mug",
    "03928116": "piano",
    "03938244": "pillow",
    "03948459": "pistol",
    "03991062": "flowerpot",
    "04004475": "printer",
    "04074963": "remote",
    "04090263": "rifle",
    "04099429": "rocket",
    "04225987": "skateboard",
    "04256520": "sofa",
    "04330267": "stove",
    "04379243": "table",
    "04401088": "telephone",
    "04460130": "tower",
    "04468005": "train",
    "04530566": "watercraft",
    "04554684": "washer",
}


def open_shapenet55(root: Path, options: Options, points: int) -> FileCorpus:
    """Open ``shapenet55:DIR?split=train|test|all&seed=0&pad=refuse|repeat``."""
    split = options.choice("split", (*SPLITS, "all"), "train")
    seed = options.integer("seed", 0, low=0)
    pad = options.choice("pad", ("refuse", "repeat"), "refuse")
    options.finish()
    wanted = SPLITS if split == "all" else (split,)
    lists = _list_folder(root, wanted, options.uri)
    clouds = _cloud_folder(root, options.uri)
    number = {synset: k for k, synset in enumerate(SYNSETS)}
    entries, digest = [], hashlib.sha256()
    for name in wanted:
        path = lists / f"{name}.txt"
        for at, line in enumerate(_lines(path), 1):
            stem = line.removesuffix(".npy")
            synset, _, rest = stem.partition("-")
            if synset not in number or not rest or Path(line).name != line:
                raise CorpusError(
                    f"{path} line {at}: found {line[:80]!r}; expected <synset>-<hash>.npy with one of the "
                    f"{len(SYNSETS)} synsets of ShapeNet-55"
                )
            entries.append(Entry(f"{synset}/{rest}", str(clouds / f"{stem}.npy"), number[synset], name))
            digest.update(f"{name} {stem}\n".encode())
    identity = {
        "kind": "shapenet55",
        "content": digest.hexdigest(),
        "points": points,
        "seed": seed,
        "split": split,
        "pad": pad,
    }
    return FileCorpus(
        uri=options.uri,
        identity=identity,
        label_names=list(SYNSETS.values()),
        entries=entries,
        points=points,
        seed=seed,
        repeat=pad == "repeat",
        beside=[lists / f"{wanted[0]}.txt", clouds],
    )


def _list_folder(root: Path, wanted: tuple[str, ...], uri: str) -> Path:
    for folder in LIST_FOLDERS:
        if all((root / folder / f"{name}.txt").is_file() for name in wanted):
            return root / folder
    files = " and ".join(f"{name}.txt" for name in wanted)
    raise CorpusError(f"{uri}: no {files}; looked in {', '.join(str(root / folder) for folder in LIST_FOLDERS)}")


def _cloud_folder(root: Path, uri: str) -> Path:
    for folder in CLOUD_FOLDERS:
        if (root / folder).is_dir():
            return root / folder
    raise CorpusError(
        f"{uri}: no folder shapenet_pc; looked for {', '.join(str(root / folder) for folder in CLOUD_FOLDERS)}"
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in decode_text(read_file(path)).splitlines() if line.strip()]
    except (ShapeError, ValueError) as error:
        raise CorpusError(f"{path}: the list cannot be read: {error}") from error
