"""An index for tar files that others made (WebDataset), so that `kinds.shards` reads them where they are."""

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.corpora.base import CorpusError, ShapeError
from pipeline.corpora.entrance import MAX_CLASSES, check_ids, name_fault
from pipeline.corpora.files import READERS
from pipeline.corpora.formats.geometry import Malformed
from pipeline.corpora.kinds.folder import SPLIT_FOLDERS
from pipeline.corpora.packing import Packed, Row, finish
from pipeline.corpora.shard_index import (
    CONTENTS,
    MAX_SHAPE_BYTES,
    PLAN,
    REFUSED,
    Contents,
    ShardOfShapes,
    asked,
    member_json,
)
from teacher_cache.format.tar_shards import BLOCK
from teacher_cache.storage.opening import storage_at

__all__ = ["index_tars", "tar_files"]

_CAPTIONS = {".txt", ".csv"}  # what stands beside a shape most often, and is one only where nothing else is
_READING = {
    "columns": [], "parts": "", "read_up": "file", "up": "file", "seed": 0, "repeat": False, "stored_order": False,
    "parts_of_label": [],
}  # fmt: skip


@dataclass(frozen=True)
class _Sample:
    """One sample of a tar: its key, where its members lie, and their names and contents but for large ones."""

    key: str
    offset: int
    size: int
    sha256: str
    members: list[tuple[str, bytes]]


def tar_files(folder: Path) -> list[Path]:
    """List the tar files below a folder, sorted by path. Raises CorpusError if there are none."""
    paths = [path for path in folder.rglob("*.tar") if path.is_file() and path.relative_to(folder).parts[0] != "index"]
    if not paths:
        raise CorpusError(f"{folder}: holds no tar files; compressed ones (.tar.gz) cannot be read at random")
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def index_tars(folder: Path, *, progress: Callable[[int, int], None] = lambda done, refused: None) -> Packed:
    """Write the index of all uncompressed tar files below a folder; the tar files stay as they are.

    A sample is what webdataset takes for one: adjacent members whose names are the same up to the first dot. Its shape
    is the one member of a kind that is read here; its label is the member ``.cls`` (a number or a name), or "label" in
    ``.json``; its split is the folder of its tar, if that is named like one.

    progress  is called with how many tar files have been read, and how many samples were refused.

    Raises CorpusError where there are no tar files, or another corpus; MachineFault.
    """
    if (folder / PLAN).exists():
        raise CorpusError(f"{folder}: is being packed by `i2p corpus pack`, which writes its own index")
    paths = tar_files(folder)
    rows: list[tuple[Row, int | str | None]] = []
    refused: list[tuple[str, str]] = []
    shards: list[ShardOfShapes] = []
    for number, path in enumerate(paths):
        relative = path.relative_to(folder)
        split = next((SPLIT_FOLDERS[p.lower()] for p in relative.parts[:-1] if p.lower() in SPLIT_FOLDERS), None)
        count = 0
        for sample in asked(lambda path=path: _samples(path), str(path)):  # type: ignore[misc]
            try:
                suffix, label = _shape(sample, str(path))
            except ShapeError as error:
                refused.append((sample.key, error.reason))
                continue
            count += 1
            rows.append(
                (Row(sample.key, number, sample.offset, sample.size, sample.sha256, None, split, suffix), label)
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        progress(number + 1, len(refused))
        shards.append(ShardOfShapes(relative.as_posix(), path.stat().st_size, digest.hexdigest(), count))
    if len({row.id for row, _ in rows}) < len(rows):  # keys that count from 0 in each tar: its path tells them apart
        stems = [shard.path.removesuffix(".tar") for shard in shards]
        rows = [(Row(**{**vars(row), "id": f"{stems[row.shard]}/{row.id}"}), label) for row, label in rows]
    check_ids([row.id for row, _ in rows], str(folder))
    names = _label_names([label for _, label in rows], str(folder))
    numbered = {name: k for k, name in enumerate(names)}
    labelled = [row if label is None else Row(**{**vars(row), "label": numbered[str(label)]}) for row, label in rows]
    contents = Contents(
        stored="files", points=0, source={"kind": "tar", "shards": [shard.sha256 for shard in shards]},
        reading=_READING, label_names=names, part_names=(), splits=(), suffixes=(), shards=tuple(shards), index=(),
        refused=len(refused),
    )  # fmt: skip
    before = (folder / CONTENTS).read_bytes() if (folder / CONTENTS).exists() else b""
    finish(storage_at(folder), contents, labelled, refused)
    if not refused:
        (folder / REFUSED).unlink(missing_ok=True)
    return Packed(
        shapes=len(rows),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        refused=len(refused),
        first=tuple(refused[:3]),
        already=(folder / CONTENTS).read_bytes() == before,
    )


def _samples(path: Path) -> list[_Sample]:
    """Return the samples of a tar file, in order. Raises CorpusError for one that is damaged or compressed."""
    try:
        with tarfile.open(path, mode="r:") as archive, path.open("rb") as file:
            groups: list[tuple[str, list[tarfile.TarInfo]]] = []
            for member in archive:
                if not member.isreg():
                    continue
                key = _key(member.name)
                if not groups or groups[-1][0] != key:
                    groups.append((key, []))
                groups[-1][1].append(member)
            return list(_read(groups, file))
    except (tarfile.TarError, EOFError) as error:
        raise CorpusError(f"{path}: is not a complete, uncompressed tar file ({error})") from error


def _read(groups: list[tuple[str, list[tarfile.TarInfo]]], file: BinaryIO) -> Iterator[_Sample]:
    for key, members in groups:
        start = members[0].offset
        size = members[-1].offset_data + -(-members[-1].size // BLOCK) * BLOCK - start
        if size > MAX_SHAPE_BYTES:
            raise CorpusError(f"sample {key!r} has {size} bytes; expected at most {MAX_SHAPE_BYTES}")
        file.seek(start)
        data = file.read(size)
        contents = []
        for member in members:
            at = member.offset_data - start
            small = member.name.lower().endswith((".json", ".cls"))
            contents.append((member.name, data[at : at + member.size] if small else b""))
        yield _Sample(key, start, size, hashlib.sha256(data).hexdigest(), contents)


def _key(name: str) -> str:
    """Return the part of a name that the members of a sample share, as webdataset does."""
    found = re.fullmatch(r"((?:.*/)?[^./]+)\.[^/]*", name)
    return found[1] if found else name


def _shape(sample: _Sample, source: str) -> tuple[str, int | str | None]:
    """Return suffix of the member that is the shape, and the label. Raises ShapeError."""
    fault = name_fault(sample.key)
    if fault:
        raise ShapeError(source, f"its name {fault}")
    suffixes = [Path(name).suffix.lower() for name, _ in sample.members]
    found = [suffix for suffix in suffixes if suffix in READERS and suffix not in _CAPTIONS]
    found = found or [suffix for suffix in suffixes if suffix in READERS]
    if len(found) != 1:
        held = ", ".join(name.rpartition("/")[2] for name, _ in sample.members)[:200]
        raise ShapeError(source, f"holds {len(found)} members that may be its shape ({held}); expected one")
    try:
        label = _label(sample)
    except Malformed as error:
        raise ShapeError(source, str(error)) from error
    return found[0], label


def _label(sample: _Sample) -> int | str | None:
    given: object = None
    for name, data in sample.members:
        if name.lower().endswith(".cls"):
            try:
                given = data.decode().strip()
            except UnicodeDecodeError as error:
                raise Malformed(f"{name} is not text") from error
            break
    else:
        about: Mapping[str, object] = member_json(sample.members)
        given = about.get("label_name")
        given = about.get("label") if given is None else given
    if given is None:
        return None
    if isinstance(given, str) and re.fullmatch(r"\d{1,9}", given):
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int | str) or (isinstance(given, int) and given < 0):
        raise Malformed(f"its label is {str(given)[:40]!a}; expected a name or a whole number from 0")
    if isinstance(given, str) and name_fault(given):
        raise Malformed(f"its label {name_fault(given)}")
    return given


def _label_names(labels: list[int | str | None], source: str) -> tuple[str, ...]:
    """Return the names that labels are numbered by: names sorted, or numbers as they are."""
    found = {label for label in labels if label is not None}
    words = sorted(label for label in found if isinstance(label, str))
    numbers = [label for label in found if isinstance(label, int)]
    if words and numbers:
        raise CorpusError(f"{source}: some labels are names ({words[0]!r}) and some numbers ({min(numbers)})")
    most = max(numbers, default=-1) + 1
    if max(most, len(words)) > MAX_CLASSES:
        raise CorpusError(f"{source}: more than {MAX_CLASSES} classes")
    return tuple(words) or tuple(str(k) for k in range(most))
