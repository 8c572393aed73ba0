"""Rewriting of finished caches' shards into another cache: the common part of `convert` and `merge`.

A plan says which records of which source make up each new shard; it follows from the sources alone, so a rerun finds
what an interrupted one committed.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, RecipeMismatch
from teacher_cache.format import paths
from teacher_cache.format.manifest import Receipt
from teacher_cache.location import Location, resolve
from teacher_cache.maintenance.sources import FindUntouched, Part, SourceReader
from teacher_cache.reading.cache import Cache
from teacher_cache.recipe import Recipe, cache_directory
from teacher_cache.storage.opening import storage_at
from teacher_cache.writer import CacheWriter, write_shard

__all__ = ["Rewritten", "in_threads", "in_turn", "new_location", "refilled", "rewrite"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """A cache made from others, and how much of it was written.

    path     where it is, a Path or a URL.
    records  in it.
    shards   in it, and
    written  of these by this call; the others were there already.
    bytes    of its shards.
    """

    path: Location
    records: int
    shards: int
    written: int
    bytes: int


def new_location(root: str | os.PathLike[str], source: Cache, recipe: Recipe, config: CacheConfig) -> Location:
    """Return ``<root>/<name>-<hash>`` of a cache made from `source`, whose name it keeps. Raises CacheError."""
    if set(storage_at(root).names("")) & {paths.RECIPE, paths.MANIFEST}:
        raise CacheError(f"{root}: expected a folder that contains caches, found a cache.\n  Give the folder above it.")
    name = str(resolve(source.path)).rpartition("/")[2]
    ending = f"-{source.recipe.hash[:12]}"
    kind = str(source.recipe.corpus.get("kind", ""))
    name = name.removesuffix(ending) if name.endswith(ending) else kind
    return cache_directory(replace(config, root=os.fspath(root), name=""), recipe, name)


def in_turn(parts: Iterable[Part]) -> dict[int, list[Part]]:
    """Map each part to a shard of its own, numbered from 0."""
    return {shard: [part] for shard, part in enumerate(parts)}


def refilled(parts: Iterable[Part], *, shapes_per_shard: int, poses: int) -> dict[int, list[Part]]:
    """Distribute shapes in order, as many per shard as a build puts there; -> parts by shard, numbered from 0.

    A shape that was refused takes a place, as in a build. Where it stood among the shapes of its shard is known from
    the list of what these were made from; without one, as in caches of 0.1.0, it is taken to have stood at the end.

    Raises CacheError when not all poses of a shape fit into a shard.
    """
    size = shapes_per_shard // poses
    if not size:
        raise CacheError(f"shapes_per_shard = {shapes_per_shard} is less than the {poses} poses of one shape")
    shards: dict[int, list[Part]] = {}
    taken = 0  # places, counted over all shards
    for part in parts:
        before = _usable_before(part, poses)
        begin, end = 0, len(before) - 1
        while begin < end:
            shard, used = divmod(taken, size)
            stop = min(end, begin + size - used)
            records = slice(before[begin] * poses, before[stop] * poses)
            refused = slice(begin - before[begin], stop - before[stop])
            piece = replace(
                part, records=part.records[records], ids=part.ids[records], quarantined=part.quarantined[refused]
            )
            shards.setdefault(shard, []).append(piece)
            taken += stop - begin
            begin = stop
    return shards


def _usable_before(part: Part, poses: int) -> list[int]:
    """Count, for each place among the shapes of a part and for the end, the shapes before it that have records."""
    usable, refused = list(part.ids[::poses]), [item.id for item in part.quarantined]
    held = {*usable, *refused}
    order = [id for id, _ in part.shapes if id in held]
    bad = set(refused)
    if [id for id in order if id not in bad] != usable or [id for id in order if id in bad] != refused:
        order = [*usable, *refused]
    before = [0]
    for id in order:
        before.append(before[-1] + (id not in bad))
    return before


def rewrite(
    sources: Sequence[Cache],
    shards: dict[int, list[Part]],
    writer: CacheWriter,
    *,
    planned: int,
    threads: int,
    on_progress: Progress | None = None,
    untouched: FindUntouched | None = None,
    event: str,
) -> Rewritten:
    """Write the planned shards that are missing, then the manifest.

    planned    of the new cache's manifest.
    threads    shards in work at once; each holds the decoded records of one shard.
    untouched  tokens [B, V, T] of a batch whose features are to be 0.
    event      the call, for the log.

    Raises RecipeMismatch when a committed shard holds other shapes than planned, or is not in the plan; CacheError for
    a damaged source; OSError when a disk fails. What is committed by then stays for a rerun.
    """
    if threads < 1:
        raise ValueError(f"threads = {threads}; expected 1 or more")
    committed = writer.committed()
    missing = _missing(shards, committed, writer.directory)
    total, done = len(shards), len(shards) - len(missing)
    tell = on_progress or (lambda done, total: None)
    tell(done, total)
    read = SourceReader(sources)
    if missing:
        writer.log({"event": event, "sources": [str(source.path) for source in sources], "missing": len(missing)})

    def write(shard: int) -> Receipt:
        records = []
        for part in shards[shard]:
            records += read.records(part, writer.description.storage, untouched)
        refused = [item for part in shards[shard] for item in part.quarantined]
        return write_shard(writer.handle, shard, records, refused, shapes=_shapes(shards[shard]))

    for receipt in in_threads(write, missing, threads):
        writer.log({"event": "shard", "shard": receipt.shard, "records": receipt.records, "bytes": receipt.total_bytes})
        committed[receipt.shard] = receipt
        done += 1
        tell(done, total)
    writer.finish(planned=planned)  # last: without a manifest the new cache counts as unfinished
    return Rewritten(
        path=writer.directory,
        records=sum(receipt.records for receipt in committed.values()),
        shards=total,
        written=len(missing),
        bytes=sum(receipt.total_bytes for receipt in committed.values()),
    )


def _shapes(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """List what the shapes of some parts were made from, where their sources record it."""
    found = []
    for part in parts:
        held = {*part.ids, *(item.id for item in part.quarantined)}
        found += [(id, made_of) for id, made_of in part.shapes if id in held]
    return found


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> Iterator[Any]:
    """Yield results as they arrive; after an error, or when the caller leaves, nothing more is started."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="rewrite")
    try:
        for future in as_completed([pool.submit(function, item) for item in items]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _missing(shards: dict[int, list[Part]], committed: dict[int, Receipt], where: Location) -> list[int]:
    """List planned shards that are not committed. Raises RecipeMismatch for committed ones unlike the plan."""
    missing = []
    for shard, parts in shards.items():
        receipt = committed.get(shard)
        if receipt is None:
            missing.append(shard)
            continue
        ids = [id for part in parts for id in part.ids]
        refused = [item.id for part in parts for item in part.quarantined]
        if (list(receipt.ids), [item.id for item in receipt.quarantined]) != (ids, refused):
            raise RecipeMismatch(
                f"{where}: shard {shard} is committed with other shapes ({receipt.records} records, first "
                f"{receipt.ids[:1]}) than these sources give it ({len(ids)} records, first {tuple(ids[:1])}): it was "
                "made by another build, from other sources or in another order.\n"
                "  Choose another root."
            )
        odd = receipt.made_of_other(_shapes(parts))
        if odd:
            raise RecipeMismatch(
                f"{where}: shard {shard} was made before the corpus of its sources changed: {len(odd)} shapes differ, "
                f"first {odd[0]!r}.\n"
                f"  Remove {where}, or choose another root."
            )
    more = sorted(set(committed) - set(shards))
    if more:
        raise RecipeMismatch(
            f"{where}: {len(more)} of its {len(committed)} shards (first {more[0]}) do not come from these sources.\n"
            "  Give the sources that it was made from, or choose another root."
        )
    return missing
