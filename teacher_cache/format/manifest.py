"""The three documents beside the shards: recipe, receipts and manifest.

``recipe.json`` is written when the cache is created. ``receipts/NNNNNN.json`` is written when a shard is committed and
holds the checksums of its files. ``manifest.json`` is written when the build finishes and holds the checksums of the
receipts. All three are functions of recipe and records alone: no times, hosts or paths.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from teacher_cache.config import MAX_SHAPES_PER_SHARD, CacheConfig
from teacher_cache.documents import Fields, decode_document, encode_document
from teacher_cache.errors import ManifestError
from teacher_cache.format.basis import Basis
from teacher_cache.format.records import CacheSchema, Quarantined
from teacher_cache.recipe import Recipe
from teacher_cache.storage.shard_files import ShardEntry, ShardFile

__all__ = ["Description", "Manifest", "Receipt", "ShardFile"]

MAX_SHARDS = 1 << 28
_MAX_COUNT = 1 << 53
_MAX_LABEL = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The contents of one committed shard; the shard counts from the moment its receipt is on disk.

    ids, labels  of its records, in stored order.
    quarantined  the shapes of this shard that left no record.
    files        the shard's files, in the order the format lists them.
    shapes       (shape id, SHA-256 of what the shape was made from). Includes shapes in quarantine, except those that
                 only lacked a library; empty if not known, as in receipts of 0.1.0.
    """

    shard: int
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    quarantined: tuple[Quarantined, ...]
    files: tuple[ShardFile, ...]
    shapes: tuple[tuple[str, str], ...] = ()

    @property
    def records(self) -> int:
        return len(self.ids)

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def made_of_other(self, shapes: Iterable[tuple[str, str]]) -> list[str]:
        """Return the ids of shapes that this shard holds in a version other than the given one.

        shapes  (shape id, SHA-256 of what the shape was made from). Shapes whose hash is unknown on either side are
        skipped.
        """
        own = dict(self.shapes)
        return [id for id, made_of in shapes if own.get(id, made_of) != made_of]

    @property
    def encoded(self) -> bytes:
        """The receipt's file contents; made anew each time, as a build holds the receipts of all shards."""
        return encode_document(
            {
                "shard": self.shard,
                "records": [{"id": id, "label": label} for id, label in zip(self.ids, self.labels, strict=True)],
                "quarantined": [_quarantined_json(item) for item in self.quarantined],
                "files": [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in self.files],
            }
            | ({"shapes": [{"id": id, "sha256": made_of} for id, made_of in self.shapes]} if self.shapes else {})
        )

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the receipt's file, in hexadecimal."""
        return hashlib.sha256(self.encoded).hexdigest()

    @classmethod
    def decode(cls, data: bytes, where: str, *, shard: int, paths: Iterable[str]) -> "Receipt":
        """Parse a receipt of ``shard`` whose files must be exactly ``paths``. Raises ManifestError."""
        document = decode_document(data, where)
        found = document.integer("shard", 0, MAX_SHARDS)
        if found != shard:
            raise ManifestError(f"{where}: expected the receipt of shard {shard}, found that of shard {found}")
        records = document.objects("records")
        if len(records) > MAX_SHAPES_PER_SHARD:
            raise ManifestError(f"{where}: expected at most {MAX_SHAPES_PER_SHARD} records, found {len(records)}")
        files = tuple(
            ShardFile(path=item.text("path"), bytes=item.integer("bytes", 0, _MAX_COUNT), sha256=item.digest("sha256"))
            for item in document.objects("files")
        )
        # Compared, never followed: a forged receipt cannot point outside the cache.
        if [file.path for file in files] != list(paths):
            raise ManifestError(f"{where}: expected files {list(paths)}, found {[file.path for file in files]}")
        shapes = document.objects("shapes") if "shapes" in document.values else []
        if len(shapes) > MAX_SHAPES_PER_SHARD:
            raise ManifestError(f"{where}: expected at most {MAX_SHAPES_PER_SHARD} shapes, found {len(shapes)}")
        ids = tuple(item.text("id") for item in records)
        one = {id: id for id in ids}  # the text of an id is held once
        receipt = cls(
            shard=shard,
            shapes=tuple((one.get(id := item.text("id"), id), item.digest("sha256")) for item in shapes),
            ids=ids,
            labels=tuple(item.integer("label", -1, _MAX_LABEL) for item in records),
            quarantined=tuple(_quarantined(item) for item in document.objects("quarantined")),
            files=files,
        )
        receipt.__dict__["sha256"] = hashlib.sha256(data).hexdigest()  # of the file that is there
        held = {*receipt.ids, *(item.id for item in receipt.quarantined)}
        known = {id for id, _ in receipt.shapes}
        if len(known) != len(shapes) or not known <= held:
            raise ManifestError(
                f"{where}: 'shapes' lists a shape twice, or one that has no record and is not quarantined"
            )
        return receipt


@dataclass(frozen=True, kw_only=True)
class Description:
    """``recipe.json``: what the cache is, known before its first record.

    basis  of the stored features if ``storage.channels`` is set. A worker's copy leaves it out, to stay small.
    """

    recipe: Recipe
    schema: CacheSchema
    label_names: tuple[str, ...]
    basis: Basis | None = None

    @cached_property
    def storage(self) -> CacheConfig:
        return CacheConfig.from_storage(dict(self.recipe.storage))

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_json(),
            "recipe_hash": self.recipe.hash,
            "schema": self.schema.to_json(),
            "label_names": list(self.label_names),
        } | ({} if self.basis is None else {"basis": self.basis.to_json()})

    @cached_property
    def encoded(self) -> bytes:
        return encode_document(self.to_json())

    @classmethod
    def parse(cls, document: Fields) -> "Description":
        recipe = Recipe.from_json(document.values.get("recipe"), f"{document.where}: recipe")
        if document.digest("recipe_hash") != recipe.hash:
            raise ManifestError(f"{document.where}: recipe_hash does not match the recipe, whose hash is {recipe.hash}")
        storage = CacheConfig.from_storage(dict(recipe.storage))  # refuses unknown storage now, not at the first record
        schema = CacheSchema.from_json(document.inner("schema"))
        if storage.channels not in (0, schema.channels):
            raise ManifestError(
                f"{document.where}: schema.channels is {schema.channels}, but the recipe stores {storage.channels} "
                "channels"
            )
        if not storage.channels and "basis" in document.values:
            raise ManifestError(f"{document.where}: contains a basis, but its recipe stores the teacher's own channels")
        return cls(
            recipe=recipe,
            schema=schema,
            label_names=document.texts("label_names"),
            basis=Basis.from_json(document.inner("basis"), storage.channels) if storage.channels else None,
        )

    @classmethod
    def decode(cls, data: bytes, where: str) -> "Description":
        """Parse ``recipe.json``. Raises ManifestError, UnsupportedVersion, SchemaError."""
        return cls.parse(decode_document(data, where))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """``manifest.json``: the whole cache.

    planned     shapes of the corpus when the build finished.
    shards      ascending by shard index; record i of the cache is counted through them in this order.
    quarantined (shard, entry) pairs, ascending.
    """

    description: Description
    planned: int
    shards: tuple[ShardEntry, ...]
    quarantined: tuple[tuple[int, Quarantined], ...]

    @property
    def records(self) -> int:
        return sum(entry.records for entry in self.shards)

    @property
    def complete(self) -> bool:
        """True when every planned shape is a record or in quarantine."""
        return self.records + len(self.quarantined) == self.planned

    @cached_property
    def encoded(self) -> bytes:
        return encode_document(
            self.description.to_json()
            | {
                "planned": self.planned,
                "complete": self.complete,
                "records": self.records,
                "shards": [
                    {
                        "shard": entry.shard,
                        "records": entry.records,
                        "quarantined": entry.quarantined,
                        "bytes": entry.bytes,
                        "receipt": entry.receipt,
                    }
                    for entry in self.shards
                ],
                "quarantined": [{"shard": shard} | _quarantined_json(item) for shard, item in self.quarantined],
            }
        )

    @classmethod
    def decode(cls, data: bytes, where: str) -> "Manifest":
        """Parse ``manifest.json``. Raises ManifestError, UnsupportedVersion, SchemaError."""
        document = decode_document(data, where)
        description = Description.parse(document)
        limit = description.storage.shapes_per_shard
        shards = tuple(
            ShardEntry(
                shard=item.integer("shard", 0, MAX_SHARDS),
                records=item.integer("records", 0, limit),
                quarantined=item.integer("quarantined", 0, limit),
                bytes=item.integer("bytes", 0, _MAX_COUNT),
                receipt=item.digest("receipt"),
            )
            for item in document.objects("shards")
        )
        if any(a.shard >= b.shard for a, b in pairwise(shards)):
            raise ManifestError(f"{where}: expected shards in ascending order, each once")
        quarantined = tuple(
            (item.integer("shard", 0, MAX_SHARDS), _quarantined(item)) for item in document.objects("quarantined")
        )
        manifest = cls(
            description=description,
            planned=document.integer("planned", 0, _MAX_COUNT),
            shards=shards,
            quarantined=quarantined,
        )
        if document.integer("records", 0, _MAX_COUNT) != manifest.records:
            raise ManifestError(f"{where}: records differs from the sum over the shards, {manifest.records}")
        if document.boolean("complete") != manifest.complete:
            raise ManifestError(f"{where}: complete contradicts planned, records and quarantined")
        return manifest


def _quarantined_json(item: Quarantined) -> dict[str, str]:
    return {"id": item.id, "source": item.source, "reason": item.reason}


def _quarantined(item: Fields) -> Quarantined:
    return Quarantined(id=item.text("id"), source=item.text("source"), reason=item.text("reason"))
