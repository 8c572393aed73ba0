"""``scanobjectnn:DIR``: ScanObjectNN's HDF5 release in the three variants that are evaluated on.

OBJ-BG and OBJ-ONLY have the same file names in two folders, main_split and main_split_nobg. Which of them a file is,
its dataset ``mask`` tells: -1 is background, and only OBJ-BG and PB-T50-RS have it.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.corpora.base import CorpusError
from pipeline.corpora.faults import patiently
from pipeline.corpora.kinds.hdf5 import MAX_BYTES, CloudFile, check_chunks, content_digest, stored_dataset
from pipeline.corpora.options import Options
from pipeline.corpora.releases import Archive, Release, ReleaseOptions
from pipeline.corpora.rows import RowCorpus

__all__ = ["CLASSES", "VARIANTS", "open_scanobjectnn"]

SPLITS = {"train": "training", "test": "test"}
# Variant -> (its name, folder, what its files end in, shapes to train and to test on). The release has others, of other
# perturbations, which are not evaluated on.
VARIANTS = {
    "obj_bg": ("OBJ-BG", "main_split", "objectdataset", (2309, 581)),
    "obj_only": ("OBJ-ONLY", "main_split_nobg", "objectdataset", (2309, 581)),
    "pb_t50_rs": ("PB-T50-RS", "main_split", "objectdataset_augmentedrot_scale75", (11416, 2882)),
}
CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink",
    "sofa", "toilet",
)  # fmt: skip
POINTS = 2048
BACKGROUND = -1
ROWS = 512  # of the mask read at a time
ARCHIVE = Archive("h5_files.zip", 13_099_259_542, "md5", "36876af479f9ad39abad5ebcd89038dd")
GET = (
    "h5_files.zip is available through a form on https://hkust-vgd.github.io/scanobjectnn; unpack it, and give the "
    "folder that contains h5_files."
)


def open_scanobjectnn(root: Path, options: Options, points: int) -> RowCorpus:
    """Open ``scanobjectnn:DIR?variant=obj_bg|obj_only|pb_t50_rs&split=train|test|all``; seed, pad, order, counts."""
    variant = options.choice("variant", tuple(VARIANTS), "")
    split = options.choice("split", (*SPLITS, "all"), "train")
    common = ReleaseOptions.of(options, counts="official")
    options.finish()
    if not variant:
        raise CorpusError(
            f"{options.uri}: no variant; add variant=obj_bg, variant=obj_only or variant=pb_t50_rs, which are "
            "separate benchmarks"
        )
    title, named, stem, counts = VARIANTS[variant]
    wanted = tuple(SPLITS) if split == "all" else (split,)
    folder = _folder(root, named, stem, wanted, options.uri, title)
    files = {name: CloudFile(folder / f"{SPLITS[name]}_{stem}.h5") for name in wanted}
    expected = dict(zip(SPLITS, counts, strict=True))
    for file in files.values():
        _check_file(file, title, named)
    faults = [
        f"{file.path.name}: clouds of {file.shape[1]} points, {POINTS} in the release"
        for file in files.values()
        if file.shape[1] != POINTS
    ] + [f"{name}: no shape of {', '.join(_empty(file))}" for name, file in files.items() if _empty(file)]
    release = Release(
        name=f"ScanObjectNN {title}",
        folder=folder,
        expected={name: expected[name] for name in wanted},
        found={name: len(file.labels) for name, file in files.items()},
        get=GET,
        archives=(ARCHIVE,),
        faults=tuple(faults),
    )
    if common.official:
        release.check(options.uri)
    places = [(name, file, row) for name, file in files.items() for row in range(len(file.labels))]
    identity = {
        "kind": "scanobjectnn", "variant": variant, "points": points, "split": split, **common.identity,
        "content": content_digest(CLASSES, list(files.values())),
    }  # fmt: skip

    def read(index: int) -> np.ndarray:
        _, file, row = places[index]
        return file.row(row)

    return RowCorpus(
        uri=options.uri,
        identity=identity,
        label_names=CLASSES,
        ids=[f"{variant}/{name}/{row:05d}" for name, _, row in places],
        sources=[f"{file.path} row {row}" for _, file, row in places],
        stamps=[file.stamp for _, file, _ in places],
        labels=[int(file.labels[row]) for _, file, row in places],
        splits=[name for name, _, _ in places],
        read=read,
        points=points,
        format="hdf5",
        release=release,
        **common.drawing,
    )


def _folder(root: Path, named: str, stem: str, wanted: tuple[str, ...], uri: str, title: str) -> Path:
    places = [root / named, root / "h5_files" / named, root / "ScanObjectNN" / named, root]
    names = [f"{SPLITS[split]}_{stem}.h5" for split in wanted]
    lost = names
    for place in places:
        missing = [name for name in names if not (place / name).is_file()]
        if not missing:
            return place
        if len(missing) < len(names):
            lost = missing
    looked = ", ".join(map(str, places))
    raise CorpusError(f"{uri}: {title} lacks {' and '.join(lost)}; looked in {looked}.\n  {GET}")


def _check_file(file: CloudFile, title: str, named: str) -> None:
    """Raise CorpusError for labels out of range, and for the file of another variant."""
    wrong = np.flatnonzero(file.labels >= len(CLASSES))
    if len(wrong):
        raise CorpusError(
            f"{file.path}: label {file.labels[wrong[0]]} of shape {wrong[0]}; expected 0..{len(CLASSES) - 1}, the "
            f"{len(CLASSES)} classes of ScanObjectNN"
        )
    background = patiently(lambda: _has_background(file), str(file.path))
    if background != (named == "main_split"):
        holds, lacks = ("holds", "none") if background else ("holds no", "them")
        raise CorpusError(
            f"{file.path}: its mask {holds} background points, but {title} has {lacks}. OBJ-BG and OBJ-ONLY have the "
            f"same file names: {title} lies in {named}"
        )


def _has_background(file: CloudFile) -> bool:
    """Check whether some, but not all, of a file's points are marked as background."""
    import h5py

    try:
        with h5py.File(file.path, "r") as opened:
            if "mask" not in opened:
                raise CorpusError(
                    f"{file.path}: no dataset 'mask', which distinguishes OBJ-BG from OBJ-ONLY. Is it the release of "
                    "the authors?"
                )
            mask = stored_dataset(opened, "mask", file.path, MAX_BYTES)
            if mask.shape != file.shape[:2] or mask.dtype.kind not in "iu":
                raise CorpusError(
                    f"{file.path}: dataset 'mask' has shape {mask.shape} and type {mask.dtype}; expected whole numbers "
                    f"{file.shape[:2]}"
                )
            check_chunks(mask, file.path)
            some = every = False
            for start in range(0, mask.shape[0], ROWS):
                found = np.asarray(mask[start : start + ROWS]) == BACKGROUND
                some, every = some or bool(found.any()), every or not found.all()
                if some and every:
                    return True
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{file.path}: cannot be read as HDF5: {error}. Is the download complete?") from error
    return False


def _empty(file: CloudFile) -> list[str]:
    held = Counter(file.labels.tolist())
    return [name for label, name in enumerate(CLASSES) if not held[label]]
