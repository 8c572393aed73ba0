"""The shards of a cache that stand as they are, and those that are built again, for one experiment's shapes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.build.changes import Stamps, compare_corpus, refuse_stale, shapes_in
from pipeline.build.plan import surplus_shards
from pipeline.build.poses import shapes_of
from pipeline.build.quarantine import release_mended
from pipeline.build.selection import OwnShapes
from pipeline.config import BuildConfig
from pipeline.corpora import Corpus
from teacher_cache import CacheWriter
from teacher_cache.format.manifest import Receipt
from teacher_cache.format.receipts import noted_receipts

__all__ = ["Standing", "as_built", "bring_up_to_date"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The state of a cache at the start of a build.

    committed  receipts by shard, all of the corpus as it is as far as the experiment's shapes go
    shared     the cache holds shapes that the experiment is not about, or the experiment is about some of its corpus
    restore    of a shared cache, shapes by shard of those that are built again
    """

    committed: dict[int, Receipt]
    shared: bool
    restore: Mapping[int, Sequence[str]]


def bring_up_to_date(
    writer: CacheWriter,
    source: Corpus,
    own: OwnShapes,
    build: BuildConfig,
    stamps: Stamps,
    restore: Mapping[int, Sequence[str]],
    *,
    poses: int,
    threads: int,
) -> Standing:
    """Withdraw the shards with shapes of the experiment that changed or went, if the settings say so, those with
    refused ones that can be used by now, those with shapes that an earlier shard holds too, and those that have to move
    up in a corpus that became smaller.

    restore  shards that were withdrawn before, and what they held.

    Raises BuildError where shapes changed or went and build.changed is "refuse", MachineFault and CacheError.
    """
    found = list(noted_receipts(writer.storage, writer.description))
    noted = {receipt.shard: receipt for receipt, _ in found}
    committed = {receipt.shard: receipt for receipt, whole in found if whole}
    content = build.check == "content"
    changes = compare_corpus(source, own, noted, stamps, poses=poses, content=content, threads=threads)
    stamps.save()  # so that these files need not be read again, even if the build stops below
    if build.changed == "refuse":
        refuse_stale(changes, writer.directory)
    if changes.unknown:
        logger.warning(
            "%s: %d shapes were built before content hashes were recorded; whether they changed is unknown",
            writer.directory,
            changes.unknown,
        )
    shared = own.config.selects or bool(changes.others) or not all(map(own.places.__contains__, _ids(restore)))
    doomed = set(changes.shards)
    kept = {shard: receipt for shard, receipt in committed.items() if shard not in doomed}
    if twice := _held_twice(kept, poses):
        logger.warning(
            "%s: %d shards contain shapes that earlier shards contain too, as concurrent builds can leave them",
            writer.directory,
            len(twice),
        )
        doomed |= twice
        kept = {shard: receipt for shard, receipt in kept.items() if shard not in twice}
    if not shared:
        doomed |= set(surplus_shards(list(own.corpus), shapes_of(kept, poses)))
    if doomed:
        for line in changes.lines():
            logger.warning("%s: %s", writer.directory, line)
        logger.warning("%s: rebuilding %d shards", writer.directory, len(doomed))
        writer.withdraw(sorted(doomed))
    kept = {shard: receipt for shard, receipt in committed.items() if shard not in doomed}
    mended = release_mended(
        writer, source, own.places, kept, None if build.retry_refused else changes.suspects, threads=threads
    )
    for shard, some in sorted(mended.items()):
        logger.warning(
            "rebuilding shard %d: %d shapes that were refused can be used now, first %s", shard, len(some), some[0]
        )
    if not shared:
        return Standing(committed=kept, shared=False, restore={})
    # A shard that was withdrawn gets other experiments' shapes back even if it holds none of this one's. Files of a
    # shard may also be gone without its receipt: that one is made whole where it holds a shape of the experiment.
    again = dict(restore) | {
        shard: shapes
        for shard, receipt in noted.items()
        if shard not in kept and (own.places.keys() & (shapes := as_built(receipt, poses)) or shard in doomed)
    }
    if lost := sum(id not in own.corpus for id in _ids(again)):
        logger.warning(
            "%s: %d shapes of the rebuilt shards are not in this experiment's corpus and will leave the cache",
            writer.directory,
            lost,
        )
    return Standing(committed=kept, shared=True, restore=again)


def as_built(receipt: Receipt, poses: int) -> list[str]:
    """Shapes of a shard in the order in which they were read, as far as that is known."""
    shapes = [id for id, _ in receipt.shapes]
    known = set(shapes)
    return [*shapes, *(id for id in shapes_in(receipt, poses) if id not in known)]


def _held_twice(receipts: Mapping[int, Receipt], poses: int) -> set[int]:
    """Return the shards with a shape that an earlier shard holds; without them each shape is held once.

    Builds of two selections at once plan by the receipts that each of them found, and may put a shape into two shards.
    """
    held: set[str] = set()
    twice = set()
    for shard in sorted(receipts):
        shapes = shapes_in(receipts[shard], poses)
        if held.isdisjoint(shapes):
            held.update(shapes)
        else:
            twice.add(shard)
    return twice


def _ids(shards: Mapping[int, Sequence[str]]) -> list[str]:
    return [id for shapes in shards.values() for id in shapes]
