"""Writing a cache: a driver creates and finishes it, workers write whole shards.

A worker gets a ``CacheHandle`` (a few strings, picklable) and calls ``write_shard``, which returns a receipt; nothing
else passes between them. A shard counts from the moment its receipt is on disk; files without one are written again.
The first receipt of a shard wins: a second builder of the same shard discards its own work.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, ManifestError, RecipeMismatch, SchemaError
from teacher_cache.format import paths
from teacher_cache.format.basis import Basis, basis_differences
from teacher_cache.format.manifest import Description, Manifest, Receipt
from teacher_cache.format.receipts import iter_receipts, read_receipt
from teacher_cache.format.records import CacheSchema, Quarantined, TeacherRecord, record_problems
from teacher_cache.location import Location, join
from teacher_cache.recipe import Recipe
from teacher_cache.storage.base import Storage
from teacher_cache.storage.opening import storage_at
from teacher_cache.storage.shard_files import ShardEntry, ShardFile

__all__ = ["CacheHandle", "CacheWriter", "create_cache", "stored_basis", "write_shard"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CacheHandle:
    """Location and description of a cache, for workers that write its shards. Picklable and small."""

    directory: str
    description: Description


def create_cache(
    directory: str | os.PathLike[str],
    recipe: Recipe,
    schema: CacheSchema,
    config: CacheConfig,
    *,
    label_names: Sequence[str] = (),
    basis: Basis | None = None,
) -> "CacheWriter":
    """Create a cache, or reopen one of the same recipe to continue it. Call it in one process, the driver.

    directory    the cache's own folder (see ``cache_directory``), made if absent; or a URL that fsspec can write to.
    label_names  names of the labels 0, 1, ...; a later call may append names, never change them.
    basis        of the features, where config.channels asks for one; a later call gives the same or none.

    Raises RecipeMismatch naming the settings that differ, ValueError when config and recipe.storage disagree,
    ManifestError when what is there does not parse, CacheError when the folder holds something else, StorageError when
    a store behind a URL does not answer.
    """
    if recipe.storage != config.storage():
        raise ValueError(f"create_cache: recipe.storage is {recipe.storage}; this config stores {config.storage()}")
    if config.channels not in (0, schema.channels):
        raise ValueError(f"create_cache: schema.channels is {schema.channels}; this config stores {config.channels}")
    if basis is not None and basis.channels != config.channels:
        raise ValueError(f"create_cache: basis has {basis.channels} channels; this config stores {config.channels}")
    storage = storage_at(directory)
    description = Description(recipe=recipe, schema=schema, label_names=tuple(label_names), basis=basis)
    stored = _stored(storage)
    if stored is None:
        others = storage.files()
        stored = _stored(storage) if others else None  # another builder may have begun meanwhile: those are its files
    if stored is None:
        _check_not_set_aside(storage)
        if others:
            raise CacheError(
                f"{storage.location}: expected an empty folder or a cache, found other files and no {paths.RECIPE}.\n"
                "  Choose another folder, or empty this one."
            )
        if config.channels and basis is None:
            raise ValueError(f"create_cache: cache.channels = {config.channels} needs a basis")
    for name in storage.prepare():
        logger.info("%s: removed the unfinished work of %s", storage.location, name)
    # Another builder may have been here since: the recipe that is there first stands, and its basis.
    stored = stored or _decode(storage, storage.write_new(paths.RECIPE, description.encoded))
    _check_same(stored, description, storage.location)
    longer = max(stored.label_names, description.label_names, key=len)
    description = replace(stored, label_names=longer)
    storage.write_documents({paths.RECIPE: description.encoded})
    return CacheWriter(storage, description)


def stored_basis(directory: str | os.PathLike[str]) -> Basis | None:
    """Read the basis of the cache created at a path or URL, finished or not; None where there is none.

    Raises ManifestError when its recipe.json does not parse, StorageError when a store behind a URL does not answer.
    """
    stored = _stored(storage_at(directory))
    return None if stored is None else stored.basis


class CacheWriter:
    """The driver's handle of a cache that is being built.

    directory (a Path, or a URL), storage, description, handle (for workers), recipe, schema, label_names, basis.
    """

    def __init__(self, storage: Storage, description: Description) -> None:
        self.storage = storage
        self.directory = storage.location
        self.description = description
        self.recipe = description.recipe
        self.schema = description.schema
        self.label_names = description.label_names
        self.basis = description.basis
        # Without the basis, which may be a megabyte and would travel with every task: `stored_basis` has it.
        self.handle = CacheHandle(directory=str(storage.location), description=replace(description, basis=None))

    def committed(self) -> dict[int, Receipt]:
        """Read the receipt of every committed shard, by index.

        A damaged receipt, or one whose files are not there in full size, is skipped with a warning, so that its shard
        is built again.
        """
        return {receipt.shard: receipt for receipt in iter_receipts(self.storage, self.description)}

    def withdraw(self, shards: Sequence[int]) -> None:
        """Withdraw committed shards and remove their files.

        A crash in between leaves an unfinished cache, and debris that the next build of these shards replaces or `gc`
        finds.
        """
        self.storage.remove([paths.MANIFEST, *(paths.receipt_path(shard) for shard in shards)])  # the manifest first
        self.storage.remove([path for shard in shards for path in paths.shard_paths(self.description.storage, shard)])

    def finish(self, *, planned: int | None = None) -> Location:
        """Write the manifest over all committed shards; -> its location. Rewriting the same touches nothing.

        planned  shapes in the corpus; the cache is complete when each is a record or in quarantine. None: as many as
                 there are.

        Raises CacheError when a shape's id is in two shards.
        """
        entries: list[ShardEntry] = []
        quarantined: list[tuple[int, Quarantined]] = []
        digests = bytearray()  # 8 bytes a shape stay in memory, whatever the length of ids
        for receipt in iter_receipts(self.storage, self.description):
            digests += b"".join(map(_digest, _ids(receipt)))
            quarantined.extend((receipt.shard, item) for item in receipt.quarantined)
            entries.append(
                ShardEntry(
                    shard=receipt.shard,
                    records=receipt.records,
                    quarantined=len(receipt.quarantined),
                    bytes=receipt.total_bytes,
                    receipt=receipt.sha256,
                )
            )
        # Equal digests are only suspects, since 64 bits may collide: `_check_once` compares the ids themselves.
        shapes = np.sort(np.frombuffer(digests, "<u8"))
        self._check_once(set(shapes[1:][shapes[1:] == shapes[:-1]].tolist()))
        manifest = Manifest(
            description=self.description,
            planned=shapes.size if planned is None else planned,
            shards=tuple(entries),
            quarantined=tuple(quarantined),
        )
        used = entries[-1].shard + 1 if entries else 0
        named = paths.names_dimensions(self.storage, self.description)
        documents = paths.metadata_files(self.description, used, named=named)
        self.storage.write_documents(documents | {paths.MANIFEST: manifest.encoded})  # the manifest last
        self.storage.flush()
        self.storage.tidy()
        return join(self.directory, paths.MANIFEST)

    def _check_once(self, suspects: set[int]) -> None:
        """Check that no id with one of these digests is in two shards. Raises CacheError."""
        if not suspects:
            return
        seen: dict[str, int] = {}
        for receipt in iter_receipts(self.storage, self.description):
            for id in _ids(receipt):
                if int.from_bytes(_digest(id), "little") not in suspects:
                    continue
                other = seen.setdefault(id, receipt.shard)
                if other != receipt.shard:
                    raise CacheError(
                        f"{self.directory}: expected each shape once, found {id!r} in shards {other} and "
                        f"{receipt.shard}.\n  Delete {paths.receipt_path(receipt.shard)} and run the build again."
                    )

    def log(self, event: Mapping[str, Any], *, flush: bool = False) -> None:
        """Append one line to logs/build.jsonl, with the time. The log is not part of the cache's bytes.

        An object store cannot append: there it is logs/build-<time>-<builder>.jsonl, sent twice a minute, at the end,
        and with ``flush``.
        """
        line = json.dumps({"time": round(time.time(), 3)} | dict(event)) + "\n"
        self.storage.append(paths.LOG, line.encode(), flush=flush)


def write_shard(
    handle: CacheHandle,
    shard: int,
    records: Sequence[TeacherRecord],
    quarantined: Sequence[Quarantined] = (),
    *,
    shapes: Sequence[tuple[str, str]] = (),
    replace: bool = False,
) -> Receipt:
    """Write one shard and commit it. Call it in any process; two at once do no harm.

    shard        its index, >= 0.
    records      at most shapes_per_shard, in stored order.
    quarantined  shapes of this shard that leave no record.
    shapes       (shape id, SHA-256 of what it was made from) of the shard, if known: by it a later build detects that
                 a shape has changed.
    replace      write it even if it is committed already (to repair); else the committed receipt comes back.

    Raises SchemaError for a record that does not fit, RecipeMismatch when the committed shard holds other shapes, or
    the same made from something else, OSError when the disk fails; then nothing is committed and what was written aside
    is removed.
    """
    description, storage = handle.description, storage_at(handle.directory)
    _check_records(records, quarantined, shard, description)
    expected = _shapes(records, quarantined)
    others = {id for id, _ in shapes} - {*expected[0], *expected[1]}
    if others:
        raise SchemaError(f"shard {shard}: {min(others)!r} in `shapes` is neither a record nor quarantined")
    found: Receipt | None = None
    made: Receipt | None = None

    def settled() -> bool:
        nonlocal found
        found = None if replace else _committed(storage, shard, description, expected, shapes)
        return found is not None

    def receipt(files: list[ShardFile]) -> bytes:
        nonlocal made
        made = Receipt(
            shard=shard,
            ids=tuple(record.id for record in records),
            labels=tuple(int(record.label) for record in records),
            quarantined=tuple(quarantined),
            files=tuple(files),
            shapes=tuple(shapes),
        )
        return made.encoded

    # Asked here to spare the encoding, and again by `commit` under its lock, which decides.
    if not settled():
        files = paths.shard_format(description.storage).encode(records, description, shard)
        storage.commit(shard, files, paths.receipt_path(shard), receipt, settled)
    result = found or made
    assert result is not None
    return result


def _ids(receipt: Receipt) -> Iterator[str]:
    """Yield the ids of all shapes of a shard, those in quarantine included."""
    yield from receipt.ids
    yield from (item.id for item in receipt.quarantined)


def _digest(id: str) -> bytes:
    return hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _committed(
    storage: Storage,
    shard: int,
    description: Description,
    expected: tuple[list[str], list[str]],
    shapes: Sequence[tuple[str, str]],
) -> Receipt | None:
    try:
        receipt = read_receipt(storage, shard, description)
    except ManifestError:
        return None
    if (list(receipt.ids), [item.id for item in receipt.quarantined]) != expected:
        raise RecipeMismatch(
            f"{storage.location}: shard {shard} is committed with other shapes ({receipt.records} records, first "
            f"{receipt.ids[:1]}) than were given ({len(expected[0])} records, first {expected[0][:1]}).\n"
            "  Plan the build again from the committed receipts, or build into another folder."
        )
    odd = receipt.made_of_other(shapes)
    if odd:
        raise RecipeMismatch(
            f"{storage.location}: shard {shard} was committed meanwhile by a builder that read other files: "
            f"{len(odd)} shapes differ, first {odd[0]!r}.\n"
            "  Give all builders the same corpus, and run the build again."
        )
    return receipt


def _shapes(records: Sequence[TeacherRecord], quarantined: Sequence[Quarantined]) -> tuple[list[str], list[str]]:
    return [record.id for record in records], [item.id for item in quarantined]


def _check_records(
    records: Sequence[TeacherRecord], quarantined: Sequence[Quarantined], shard: int, description: Description
) -> None:
    if shard < 0:
        raise ValueError(f"write_shard: shard = {shard}; expected 0 or more")
    config = description.storage
    if len(records) > config.shapes_per_shard:
        raise SchemaError(f"shard {shard}: {len(records)} records; expected at most {config.shapes_per_shard}")
    seen: set[str] = set()
    for position, record in enumerate(records):
        problems = list(
            record_problems(
                record,
                description.schema,
                features=config.features,
                depth=config.depth != "none",
                class_token=config.class_token != "none",
            )
        )
        if record.id in seen:
            problems.append("this id occurs twice in the shard")
        if problems:
            raise SchemaError(f"shard {shard}, record {position} ({record.id!r}):\n  " + "\n  ".join(problems))
        seen.add(record.id)
    for item in quarantined:
        if item.id in seen:
            raise SchemaError(f"shard {shard}: shape {item.id!r} is both a record and quarantined, or listed twice")
        seen.add(item.id)


def _check_not_set_aside(storage: Storage) -> None:
    """Raise CacheError where `compact` was killed between its two renames: the complete cache lies beside its place."""
    if isinstance(storage.location, Path) and paths.set_aside(storage.location.resolve()).is_dir():
        raise CacheError(
            f"{storage.location}: compacting this cache was interrupted; the complete cache stands beside its path.\n"
            f"  Run `i2p cache compact {storage.location}` again to finish."
        )


def _stored(storage: Storage) -> Description | None:
    """Read the description a cache was created with; None where there is none."""
    try:
        return _decode(storage, storage.read(paths.RECIPE))
    except FileNotFoundError:
        return None


def _decode(storage: Storage, data: bytes) -> Description:
    return Description.decode(data, str(join(storage.location, paths.RECIPE)))


def _check_same(stored: Description, given: Description, root: Location) -> None:
    lines = stored.recipe.differences(given.recipe)
    for name, here in stored.schema.to_json().items():
        there = given.schema.to_json()[name]
        if here != there:
            lines.append(f"schema.{name}: {here} here, {there} there")
    common = min(len(stored.label_names), len(given.label_names))
    if stored.label_names[:common] != given.label_names[:common]:
        lines.append(f"label_names: {list(stored.label_names)} here, {list(given.label_names)} there")
    lines += basis_differences(stored.basis, given.basis or stored.basis)
    if lines:
        raise RecipeMismatch(
            f"{root}: contains a cache of another recipe (here) than the requested one (there):\n  "
            + "\n  ".join(lines)
            + "\n  Build into another folder; cache_directory gives every recipe a path of its own."
        )
