"""The files of a corpus in shards: where they lie, their index, and the documents beside them (docs/corpora.md).

A shard is a tar file that webdataset reads. The index says where in which shard the members of each shape lie, and
their SHA-256, so one read of one range fetches a shape, from a disk or from a store.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pipeline.corpora.base import CorpusError, MachineFault
from pipeline.corpora.faults import patiently
from pipeline.corpora.formats.geometry import Malformed
from pipeline.corpora.formats.numpy_files import array_from_npy
from teacher_cache.documents import Fields, decode_document, encode_document
from teacher_cache.errors import CacheError, ManifestError, StorageError
from teacher_cache.format.tar_shards import BLOCK, END, npy_header, tar_header
from teacher_cache.storage.base import Storage

__all__ = [
    "CONTENTS",
    "FORMAT",
    "PLAN",
    "REFUSED",
    "Contents",
    "Rows",
    "ShardOfShapes",
    "asked",
    "decode_rows",
    "encode_contents",
    "encode_rows",
    "index_path",
    "join_rows",
    "member_json",
    "read_contents",
    "read_rows",
    "receipt_path",
    "shard_path",
    "tar_bytes",
    "tar_members",
]

T = TypeVar("T")

FORMAT, VERSION = "i2p-corpus-shards", 1
CONTENTS = "shards.json"  # written last: with it there is a corpus
PLAN = "pack.json"  # written first: what is being packed, compared when a stopped run is resumed
REFUSED = "refused.jsonl"
ROWS_PER_INDEX = 1 << 20  # about 100 bytes each: one file stays below what a store may send at once
MAX_SHAPE_BYTES = 1 << 31
_COLUMNS = {"shard": "<i4", "offset": "<i8", "size": "<i8", "label": "<i4", "split": "<i2", "suffix": "<i2"}
_DIGEST = 32


def asked(call: Callable[[], T], source: str) -> T:
    """Return the result of a call to a storage.

    Raises MachineFault where the store or the machine failed, CorpusError for documents that are damaged.
    """
    try:
        return patiently(call, source)
    except StorageError as error:  # the storage has tried again by itself
        raise MachineFault(source, str(error).partition("\n")[0], "Check the store and the network.") from error
    except FileNotFoundError as error:  # of a store; a folder's has an error number, and is settled above
        raise MachineFault(source, "no such file", "It existed when the corpus was packed.") from error
    except CacheError as error:
        raise CorpusError(f"{source}: {error}") from error


def shard_path(shard: int) -> str:
    """Return the path of a shard's tar file."""
    return f"shards/{shard:06d}.tar"


def receipt_path(shard: int) -> str:
    """Return the path of a shard's receipt, with which it counts as packed."""
    return f"receipts/{shard:06d}.json"


def index_path(part: int) -> str:
    """Return the path of one file of the index."""
    return f"index/{part:03d}.tar"


@dataclass(frozen=True)
class Rows:
    """One row a shape, in the corpus' order.

    ids     n texts
    shard   [n] int32, number of the shard
    offset  [n] int64, byte of the shard at which the first tar header of the shape's members lies
    size    [n] int64, bytes of all its members with their headers and padding
    digest  [n, 32] uint8, SHA-256 of these bytes
    label   [n] int32, -1 for none
    split   [n] int16, index into `Contents.splits`, -1 for none
    suffix  [n] int16, index into `Contents.suffixes`
    """

    ids: list[str]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    digest: np.ndarray
    label: np.ndarray
    split: np.ndarray
    suffix: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> "Rows":
        """Return some of the rows, by index [m]."""
        return Rows([self.ids[row] for row in rows], **{key: getattr(self, key)[rows] for key in (*_COLUMNS, "digest")})


@dataclass(frozen=True)
class ShardOfShapes:
    """One tar file: path below the corpus, size, SHA-256 and number of shapes."""

    path: str
    bytes: int
    sha256: str
    shapes: int


@dataclass(frozen=True)
class Contents:
    """What ``shards.json`` says.

    stored     "clouds": sampled points; "files": the files themselves
    points     of each stored cloud; 0 for files
    source     identity of the corpus that was packed, JSON
    reading    how files are read (`FileCorpus.reading`), JSON; empty for clouds
    label_names, part_names, splits, suffixes  what numbers of rows and parts mean
    shards     tar files, in order
    index      (path, SHA-256, rows) of the index' files, in order
    refused    shapes that were left out; ``refused.jsonl`` names them with their reasons
    """

    stored: str
    points: int
    source: Mapping[str, Any]
    reading: Mapping[str, Any]
    label_names: tuple[str, ...]
    part_names: tuple[str, ...]
    splits: tuple[str, ...]
    suffixes: tuple[str, ...]
    shards: tuple[ShardOfShapes, ...]
    index: tuple[tuple[str, str, int], ...]
    refused: int


def encode_contents(contents: Contents) -> bytes:
    """Encode ``shards.json``. Equal contents give equal bytes."""
    return encode_document(
        {
            "format": FORMAT,
            "version": VERSION,
            "stored": contents.stored,
            "points": contents.points,
            "source": dict(contents.source),
            "reading": dict(contents.reading),
            "label_names": list(contents.label_names),
            "part_names": list(contents.part_names),
            "splits": list(contents.splits),
            "suffixes": list(contents.suffixes),
            "shards": [vars(shard) for shard in contents.shards],
            "index": [{"path": path, "sha256": digest, "rows": rows} for path, digest, rows in contents.index],
            "refused": contents.refused,
        }
    )


def read_contents(storage: Storage) -> Contents:
    """Read ``shards.json``.

    Raises CorpusError where there is none, or a damaged one; StorageError; OSError of a failing disk.
    """
    where = f"{storage.location}/{CONTENTS}"
    try:
        fields = decode_document(storage.read(CONTENTS), where)
        if fields.text("format") != FORMAT or fields.integer("version", 1, 1 << 30) != VERSION:
            raise CorpusError(
                f"{where}: expected format {FORMAT}, version {VERSION}; found {fields.text('format')!r}, version "
                f"{fields.values.get('version')}. Was it packed by a later version of this package?"
            )
        return _contents(fields)
    except FileNotFoundError:
        try:
            storage.read(PLAN)
        except FileNotFoundError:
            what = (
                "`i2p corpus pack URI OUT` makes a corpus of shards, `i2p corpus index DIR` one of existing tar files"
            )
        else:
            what = "it is being packed, or packing was stopped; run the same `i2p corpus pack` again to finish it"
        raise CorpusError(f"{storage.location}: holds no {CONTENTS}: {what}") from None
    except ManifestError as error:
        raise CorpusError(str(error)) from error


def _contents(fields: Fields) -> Contents:
    shards = tuple(
        ShardOfShapes(
            _inside(item.text("path"), item.where),
            item.integer("bytes", 0, 1 << 62),
            item.digest("sha256"),
            item.integer("shapes", 0, 1 << 40),
        )
        for item in fields.objects("shards")
    )
    index = tuple(
        (_inside(item.text("path"), item.where), item.digest("sha256"), item.integer("rows", 0, ROWS_PER_INDEX))
        for item in fields.objects("index")
    )
    return Contents(
        stored=fields.choice("stored", ("clouds", "files")),
        points=fields.integer("points", 0, 1 << 30),
        source=fields.mapping("source"),
        reading=fields.mapping("reading"),
        label_names=fields.texts("label_names"),
        part_names=fields.texts("part_names"),
        splits=fields.texts("splits"),
        suffixes=fields.texts("suffixes"),
        shards=shards,
        index=index,
        refused=fields.integer("refused", 0, 1 << 40),
    )


def _inside(path: str, where: str) -> str:
    """Return a path of a document if it stays below the corpus. Raises ManifestError."""
    if not path or path.startswith("/") or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ManifestError(f"{where}: expected a path below the corpus, found {path[:80]!a}")
    return path


# -- the index ---------------------------------------------------------------------------------------------------------


def encode_rows(rows: Rows) -> bytes:
    """Encode rows as a tar of NPY arrays. Equal rows give equal bytes, whatever the version of NumPy."""
    ids = [id.encode() for id in rows.ids]
    arrays = {
        "ids": np.frombuffer(b"".join(ids), np.uint8),
        "ends": np.cumsum([len(id) for id in ids], dtype="<i8"),
        "digest": rows.digest,
        **{key: getattr(rows, key).astype(dtype) for key, dtype in _COLUMNS.items()},
    }
    members = [
        (f"{name}.npy", npy_header(array.shape, array.dtype) + array.tobytes()) for name, array in arrays.items()
    ]
    return tar_bytes(members) + END


def decode_rows(data: bytes, count: int, contents: Contents, where: str) -> Rows:
    """Decode and check one file of the index. Raises CorpusError for anything that does not fit its corpus."""
    try:
        arrays = {name: array_from_npy(member) for name, member in tar_members(data)}
        ids = arrays["ids.npy"].tobytes()
        ends = arrays["ends.npy"].astype(np.int64)
        columns = {key: arrays[f"{key}.npy"].astype(np.dtype(dtype)) for key, dtype in _COLUMNS.items()}
        digest = arrays["digest.npy"]
        shapes = {**{key: array.shape for key, array in columns.items()}, "ends": ends.shape}
        if set(shapes.values()) != {(count,)} or digest.shape != (count, _DIGEST) or digest.dtype != np.uint8:
            raise CorpusError(f"{where}: expected {count} rows in each column, found {shapes}")
        starts = np.concatenate([[0], ends[:-1]])
        if (ends < starts).any() or (count and (ends[0] < 0 or ends[-1] != len(ids))):
            raise CorpusError(f"{where}: the ends of its ids do not fit their {len(ids)} bytes")
        names = [ids[start:end].decode() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    except (Malformed, KeyError, UnicodeDecodeError) as error:
        raise CorpusError(f"{where}: is damaged ({type(error).__name__}: {error}); copy it again") from error
    limits = {
        "shard": (0, len(contents.shards)),
        "label": (-1, len(contents.label_names)),
        "split": (-1, len(contents.splits)),
        "suffix": (0, len(contents.suffixes)),
        "size": (BLOCK, MAX_SHAPE_BYTES),
        "offset": (0, 1 << 62),
    }
    for key, (low, high) in limits.items():
        column = columns[key]
        if count and not (column.min() >= low and column.max() < high):
            raise CorpusError(f"{where}: {key} runs from {column.min()} to {column.max()}; expected {low}..{high - 1}")
    ends_in_shard = columns["offset"] + columns["size"]
    sizes = np.array([shard.bytes for shard in contents.shards], np.int64)
    if count and (ends_in_shard > sizes[columns["shard"]]).any():
        raise CorpusError(f"{where}: places a shape beyond the end of its shard")
    return Rows(names, digest=digest, **columns)


def read_rows(storage: Storage, contents: Contents) -> Rows:
    """Read the whole index, and check it. Raises CorpusError, StorageError, OSError."""
    parts = []
    paths = [path for path, _, _ in contents.index]
    for (path, digest, count), data in zip(contents.index, storage.read_many(paths), strict=True):
        where = f"{storage.location}/{path}"
        if data is None:
            raise CorpusError(f"{where}: expected a file of the index, found none; copy the corpus again")
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorpusError(f"{where}: its SHA-256 is not the one in {CONTENTS}; copy it again")
        parts.append(decode_rows(data, count, contents, where))
    return join_rows(parts)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Join rows in order."""
    columns = {
        key: np.concatenate([getattr(part, key) for part in parts]) if parts else np.zeros(0, dtype)
        for key, dtype in _COLUMNS.items()
    }
    digest = np.concatenate([part.digest for part in parts]) if parts else np.zeros((0, _DIGEST), np.uint8)
    return Rows([id for part in parts for id in part.ids], digest=digest, **columns)


# -- tar ---------------------------------------------------------------------------------------------------------------


def tar_bytes(members: Sequence[tuple[str, bytes]]) -> bytes:
    """Return members with headers and padding, without the end of an archive. Equal members give equal bytes."""
    pieces = []
    for name, data in members:
        pieces += [tar_header(name, len(data)), data, bytes(-len(data) % BLOCK)]
    return b"".join(pieces)


def tar_members(data: bytes) -> list[tuple[str, bytes]]:
    """Return (name, content) of the regular files in a piece of a tar. Nothing is written to disk. Raises Malformed."""
    found = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                if member.isreg() and not member.issparse():  # a sparse member may claim any size
                    file = archive.extractfile(member)
                    assert file is not None
                    found.append((member.name, file.read()))
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise Malformed(f"not a tar file: {error}") from error
    return found


def member_json(members: Sequence[tuple[str, bytes]]) -> Mapping[str, Any]:
    """Return the JSON member of a shape, {} if it has none. Raises Malformed for one that is no object."""
    for name, data in members:
        if name.lower().endswith(".json"):
            try:
                found = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise Malformed(f"{name} is not JSON: {error}") from error
            if not isinstance(found, dict):
                raise Malformed(f"{name} does not contain a JSON object")
            return found
    return {}
