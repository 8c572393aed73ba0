"""Pack a corpus into tar shards with an index (`kinds.shards` reads them), in parallel and resumable.

A shard's number alone says which shapes it holds, and equal shapes give equal bytes, so shards may be packed in any
order, by any number of processes, and again. A shard counts with its receipt, the corpus with ``shards.json``.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.base import Corpus, CorpusError, ShapeError
from pipeline.corpora.entrance import name_fault
from pipeline.corpora.faults import patiently, read_file
from pipeline.corpora.files import Entry, FileCorpus
from pipeline.corpora.kinds.fewshot import EpisodeCorpus
from pipeline.corpora.kinds.shards import PARTS_MEMBER, POINTS_MEMBER
from pipeline.corpora.processes import cores, spread
from pipeline.corpora.rows import RowCorpus
from pipeline.corpora.shard_index import (
    CONTENTS,
    PLAN,
    REFUSED,
    ROWS_PER_INDEX,
    Contents,
    Rows,
    ShardOfShapes,
    asked,
    encode_contents,
    encode_rows,
    index_path,
    receipt_path,
    shard_path,
    tar_bytes,
)
from teacher_cache.documents import Fields, canonical, decode_document, encode_document
from teacher_cache.errors import ManifestError
from teacher_cache.format.tar_shards import END, member_key, npy_header
from teacher_cache.location import Location
from teacher_cache.storage.base import Storage
from teacher_cache.storage.opening import storage_at
from teacher_cache.storage.shard_files import ShardFile

__all__ = ["Packed", "Row", "finish", "pack"]

MAX_PROCESSES = 16


@dataclass(frozen=True)
class Packed:
    """What a corpus of shards holds: shapes, shards and bytes of their tar files; how many shapes were refused, and
    the first of them as (id, reason); whether it was complete already.
    """

    shapes: int
    shards: int
    bytes: int
    refused: int
    first: tuple[tuple[str, str], ...]
    already: bool


def pack(
    corpus: Corpus,
    out: Location,
    *,
    stored: str | None = None,
    shapes_per_shard: int = 1024,
    processes: int | None = None,
    progress: Callable[[int, int], None] = lambda done, refused: None,
) -> Packed:
    """Pack a corpus into ``out``, a folder or a URL that takes files. A stopped one is resumed.

    stored     "files" keeps the files of a corpus of files, unread; "clouds" stores `corpus.points` points of each
               shape, of which a reader may ask for fewer; None: files where there are files.
    processes  how many read; None: one a core, at most 16. Shapes that are rows of arrays are read by this one.
    progress   is called with how many shapes have been packed, and how many of them were refused.

    Raises CorpusError where something else is packed there already, MachineFault.
    """
    stored = stored or ("files" if isinstance(corpus, FileCorpus) else "clouds")
    if stored == "files" and not isinstance(corpus, FileCorpus):
        raise CorpusError(f"{corpus.uri}: its shapes have no files of their own to keep; pack it as clouds")
    if stored == "clouds" and corpus.identity.get("pad") == "repeat":
        raise CorpusError(
            f"{corpus.uri}: with pad=repeat, fewer points are not a subset of more, so clouds packed once could not "
            "be read with fewer; leave pad= out, or keep the files"
        )
    if not 1 <= shapes_per_shard <= 100_000:
        raise CorpusError(f"shapes_per_shard = {shapes_per_shard}; expected 1..100000")
    storage = asked(lambda: storage_at(out), str(out))
    asked(storage.prepare, str(out))
    plan = _plan(corpus, stored, shapes_per_shard)
    _agree(storage, plan)
    shards = -(-len(corpus) // shapes_per_shard)
    receipts: dict[int, _Receipt] = {}
    for shard, data in enumerate(storage.read_many([receipt_path(shard) for shard in range(shards)])):
        if data is not None:
            receipts[shard] = _receipt(data, f"{storage.location}/{receipt_path(shard)}")
    already = len(receipts) == shards and _is_finished(storage)
    done, refused = sum(map(_shapes, receipts.values())), sum(len(r.refused) for r in receipts.values())
    progress(done, refused)
    missing = [shard for shard in range(shards) if shard not in receipts]
    whole = isinstance(corpus, RowCorpus | EpisodeCorpus)
    count = 1 if whole else min(processes or min(cores(), MAX_PROCESSES), max(1, len(missing)))
    base = corpus.holding([]) if isinstance(corpus, FileCorpus) else corpus
    packer = _Packer(base, storage, stored, shapes_per_shard)
    jobs: Iterable[_Job] = (_job(corpus, shard, shapes_per_shard) for shard in missing)
    ended = map(packer, jobs) if count == 1 else spread(packer, jobs, count, what=corpus.uri)
    for shard, data in ended:
        receipts[shard] = _receipt(data, receipt_path(shard))
        done, refused = done + _shapes(receipts[shard]), refused + len(receipts[shard].refused)
        progress(done, refused)
    ordered = [receipts[shard] for shard in range(shards)]
    contents = Contents(
        stored=stored,
        points=corpus.points if stored == "clouds" else 0,
        source=corpus.identity,
        reading=corpus.reading if stored == "files" and isinstance(corpus, FileCorpus) else {},
        label_names=corpus.label_names,
        part_names=corpus.part_names,
        splits=(),
        suffixes=(),
        shards=tuple(ShardOfShapes(r.file.path, r.file.bytes, r.file.sha256, len(r.rows)) for r in ordered),
        index=(),
        refused=refused,
    )
    if not already:
        finish(
            storage, contents, [row for r in ordered for row in r.rows], [pair for r in ordered for pair in r.refused]
        )
    storage.tidy()
    return Packed(
        shapes=sum(len(r.rows) for r in ordered),
        shards=shards,
        bytes=sum(r.file.bytes for r in ordered),
        refused=refused,
        first=tuple(pair for r in ordered for pair in r.refused)[:3],
        already=already,
    )


# -- one shard ---------------------------------------------------------------------------------------------------------

_Job = tuple[int, int, int, list[Entry] | None]
"""shard, its shapes first..end - 1, and their entries where the corpus is a list of files"""


@dataclass(frozen=True)
class Row:
    """One shape of a receipt; split and label None for none."""

    id: str
    shard: int
    offset: int
    size: int
    sha256: str
    label: int | None
    split: str | None
    suffix: str


@dataclass(frozen=True)
class _Receipt:
    file: ShardFile
    rows: tuple[Row, ...]
    refused: tuple[tuple[str, str], ...]


def _shapes(receipt: _Receipt) -> int:
    return len(receipt.rows) + len(receipt.refused)


def _job(corpus: Corpus, shard: int, size: int) -> _Job:
    start, stop = shard * size, min((shard + 1) * size, len(corpus))
    return shard, start, stop, corpus.entries(start, stop) if isinstance(corpus, FileCorpus) else None


@dataclass(frozen=True)
class _Packer:
    """The work of a process for each shard; -> its number, and its receipt."""

    corpus: Corpus
    storage: Storage
    stored: str
    size: int

    def __call__(self, job: _Job) -> tuple[int, bytes]:
        shard, start, stop, entries = job
        corpus, first = self.corpus, start
        if entries is not None:
            assert isinstance(corpus, FileCorpus)
            corpus, first = corpus.holding(entries), 0
        pieces: list[bytes] = []
        rows: list[Row] = []
        refused: list[tuple[str, str]] = []
        offset = 0
        for index in range(first, first + stop - start):
            id = corpus.id(index)
            try:
                suffix, group = self._group(corpus, index, member_key(shard, len(rows)))
            except ShapeError as error:
                refused.append((id, error.reason))
                continue
            digest = hashlib.sha256(group).hexdigest()
            label, split = corpus.label(index), corpus.split_of(index)
            rows.append(Row(id, shard, offset, len(group), digest, label, split, suffix))
            pieces.append(group)
            offset += len(group)
        note = receipt_path(shard)
        data = b""

        def receipt(files: list[ShardFile]) -> bytes:
            nonlocal data
            data = _encode_receipt(files[0], rows, refused)
            return data

        def settled() -> bool:
            return self._held(note) is not None

        # Another process may have packed it meanwhile: the first receipt stays, and its bytes are the same.
        if not asked(
            lambda: self.storage.commit(shard, [(shard_path(shard), [*pieces, END])], note, receipt, settled),
            f"{self.storage.location}/{shard_path(shard)}",
        ):
            data = self._held(note) or data
        return shard, data

    def _held(self, note: str) -> bytes | None:
        try:
            return self.storage.read(note)
        except FileNotFoundError:
            return None

    def _group(self, corpus: Corpus, index: int, key: str) -> tuple[str, bytes]:
        """Return the suffix of a shape and the bytes of its members."""
        label = corpus.label(index)
        about: dict[str, Any] = {
            "id": corpus.id(index),
            "label": label,
            "label_name": None if label is None or not corpus.label_names else corpus.label_names[label],
            "split": corpus.split_of(index),
        }
        if self.stored == "files":
            assert isinstance(corpus, FileCorpus)
            paths = corpus.paths(index)
            names = _relative(paths)
            contents = [read_file(path) for path in paths]
            suffix = paths[0].suffix.lower()
            members = [
                (f"{key}.{place}{path.suffix.lower()}" if place else f"{key}{suffix}", data)
                for place, (path, data) in enumerate(zip(paths, contents, strict=True))
            ]
            about["shape_files"] = names
        else:
            shape = patiently(lambda: corpus[index], corpus.source(index))
            suffix = ".npy"
            members = [(f"{key}.{POINTS_MEMBER}", _npy(shape.points.astype("<f4", copy=False)))]
            if shape.part_labels is not None:
                members.append((f"{key}.{PARTS_MEMBER}", _npy(shape.part_labels.astype("<i2"))))
        return suffix, tar_bytes([(f"{key}.json", canonical(about)), *members])


def _relative(paths: Sequence[Path]) -> list[str]:
    """Return the paths by which the first file, the shape's own, finds each, with /. Raises ShapeError."""
    own, *others = paths
    names = [own.name]
    for path in others:
        folder = own.parent if path.is_relative_to(own.parent) else own.parent.resolve()
        name = os.path.normpath(path.relative_to(folder))
        if folder.joinpath(name).resolve() != path.resolve():
            raise ShapeError(str(own), f"names the file {str(path)[:120]!a} through a link and `..`; name it directly")
        names.append(Path(name).as_posix())
    fault = next((fault for name in names if (fault := name_fault(name))), "")
    if fault:
        raise ShapeError(str(own), f"names a file whose name {fault}")
    return names


def _npy(array: np.ndarray) -> bytes:
    return npy_header(array.shape, array.dtype) + np.ascontiguousarray(array).tobytes()


def _encode_receipt(file: ShardFile, rows: Sequence[Row], refused: Sequence[tuple[str, str]]) -> bytes:
    return encode_document(
        {
            "path": file.path,
            "bytes": file.bytes,
            "file_sha256": file.sha256,
            "rows": [vars(row) for row in rows],
            "refused": [{"id": id, "reason": reason} for id, reason in refused],
        }
    )


def _receipt(data: bytes, where: str) -> _Receipt:
    try:
        fields = decode_document(data, where)
        return _Receipt(
            ShardFile(
                path=fields.text("path"), bytes=fields.integer("bytes", 0, 1 << 62), sha256=fields.digest("file_sha256")
            ),
            tuple(_row(item) for item in fields.objects("rows")),
            tuple((item.text("id"), item.text("reason")) for item in fields.objects("refused")),
        )
    except ManifestError as error:
        raise CorpusError(
            f"{error}\n  Delete this receipt and run the command again, which packs its shard again."
        ) from error


def _row(item: Fields) -> Row:
    return Row(
        id=item.text("id"),
        shard=item.integer("shard", 0, 1 << 30),
        offset=item.integer("offset", 0, 1 << 62),
        size=item.integer("size", 0, 1 << 40),
        sha256=item.digest("sha256"),
        label=None if item.values.get("label") is None else item.integer("label", 0, 1 << 16),
        split=None if item.values.get("split") is None else item.text("split"),
        suffix=item.text("suffix"),
    )


# -- the whole ---------------------------------------------------------------------------------------------------------


def _plan(corpus: Corpus, stored: str, shapes_per_shard: int) -> bytes:
    ids = hashlib.sha256()
    for index in range(len(corpus)):
        ids.update(json.dumps([corpus.id(index), corpus.label(index), corpus.split_of(index)]).encode())
    return encode_document(
        {
            "source": dict(corpus.identity),
            "stored": stored,
            "shapes_per_shard": shapes_per_shard,
            "shapes": len(corpus),
            "ids": ids.hexdigest(),
        }
    )


def _agree(storage: Storage, plan: bytes) -> None:
    """Write the plan, or compare it with the one that is there. Raises CorpusError naming what differs."""
    where = f"{storage.location}/{PLAN}"
    found = asked(lambda: storage.write_new(PLAN, plan), where)
    if found == plan:
        return
    try:
        then, now = decode_document(found, where).values, decode_document(plan, where).values
    except ManifestError as error:
        raise CorpusError(str(error)) from error
    differ = [
        f"{key} was {str(then.get(key))[:200]}, is now {str(now[key])[:200]}"
        for key in now
        if then.get(key) != now[key]
    ]
    raise CorpusError(
        f"{storage.location}: something else is packed here:\n  " + "\n  ".join(differ) + "\n  Choose another folder."
    )


def _is_finished(storage: Storage) -> bool:
    try:
        storage.read(CONTENTS)
    except FileNotFoundError:
        return False
    return True


def finish(storage: Storage, contents: Contents, rows: Sequence[Row], refused: Sequence[tuple[str, str]]) -> None:
    """Write the index, the refused shapes and, last, ``shards.json``."""
    if not rows:
        why = "it holds no samples"
        if refused:
            why = f"none of {len(refused)} shapes can be used; {refused[0][0]}: {refused[0][1]}"
        raise CorpusError(f"{storage.location}: {why}")
    label_names = contents.label_names
    if not label_names:  # labels that have no names are named by their numbers, as in NPZ files
        label_names = tuple(
            str(k) for k in range(1 + max((row.label for row in rows if row.label is not None), default=-1))
        )
    splits = tuple(sorted({row.split for row in rows if row.split is not None}))
    suffixes = tuple(sorted({row.suffix for row in rows}))
    documents: dict[str, bytes] = {}
    index = []
    for part in range(0, len(rows), ROWS_PER_INDEX):
        data = encode_rows(_table(rows[part : part + ROWS_PER_INDEX], splits, suffixes))
        path = index_path(part // ROWS_PER_INDEX)
        documents[path] = data
        index.append((path, hashlib.sha256(data).hexdigest(), len(rows[part : part + ROWS_PER_INDEX])))
    if refused:
        lines = [json.dumps({"id": id, "reason": reason}) + "\n" for id, reason in refused]
        documents[REFUSED] = "".join(lines).encode()
    whole = Contents(
        **{**vars(contents), "label_names": label_names, "splits": splits, "suffixes": suffixes, "index": tuple(index)}
    )
    documents[CONTENTS] = encode_contents(whole)
    asked(lambda: storage.write_documents(documents), f"{storage.location}/{CONTENTS}")


def _table(rows: Sequence[Row], splits: Sequence[str], suffixes: Sequence[str]) -> Rows:
    numbered = {split: number for number, split in enumerate(splits)}
    kinds = {suffix: number for number, suffix in enumerate(suffixes)}
    return Rows(
        [row.id for row in rows],
        shard=np.array([row.shard for row in rows], np.int32),
        offset=np.array([row.offset for row in rows], np.int64),
        size=np.array([row.size for row in rows], np.int64),
        digest=np.frombuffer(bytes.fromhex("".join(row.sha256 for row in rows)), np.uint8).reshape(-1, 32),
        label=np.array([-1 if row.label is None else row.label for row in rows], np.int32),
        split=np.array([-1 if row.split is None else numbered[row.split] for row in rows], np.int16),
        suffix=np.array([kinds[row.suffix] for row in rows], np.int16),
    )
