"""The plan of missing shards: a pure function of the corpus' ids and the committed receipts.

Shapes are identified by their ids. Those that no committed shard holds are distributed, in the corpus' order, over the
free shard indices: first those missing between committed ones, then new ones. So a killed build resumes with exactly
the shards it would have made, and a grown corpus, wherever its new shapes stand, adds shards and touches no old one.

A cache shared by several experiments may hold shapes of the others, and so may the shards that are rebuilt: those get
exactly the shapes back that they had.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import BuildError

__all__ = ["CommittedShard", "ShardTask", "plan_shards", "surplus_shards"]


@dataclass(frozen=True)
class CommittedShard:
    """Ids of the shapes of a committed shard: those with records, and those in quarantine."""

    ids: Sequence[str]
    quarantined: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to build: the corpus' shapes at `indices`, in this order, become shard `shard`."""

    shard: int
    indices: tuple[int, ...]


def surplus_shards(ids: Sequence[str], committed: Mapping[int, CommittedShard]) -> list[int]:
    """List committed shards, from the last one on, whose shapes must move because the corpus became smaller.

    After a removal there may be fewer shapes left than missing shards; a shard is never empty, and none is left out.
    Shapes that the corpus lost must not be in `committed`.
    """
    kept = dict(committed)
    held = {shard: len(receipt.ids) + len(receipt.quarantined) for shard, receipt in kept.items()}
    left = len(ids) - sum(held.values())
    surplus: list[int] = []
    while held and left < max(held) + 1 - len(held):
        last = max(held)
        left += held.pop(last)
        surplus.append(last)
    return surplus


def plan_shards(
    ids: Sequence[str],
    committed: Mapping[int, CommittedShard],
    *,
    shapes_per_shard: int,
    wanted: Collection[str] | None = None,
    restore: Mapping[int, Sequence[str]] | None = None,
) -> list[ShardTask]:
    """Plan the shards still to be built, ascending; with the committed ones they hold every wanted shape once.

    ids               of the whole corpus, in its order, unique.
    committed         shards by index; any index may be missing, and they may hold shapes the corpus lacks.
    shapes_per_shard  at least 1. Every planned shard holds that many but the last, and those that fill gaps that are
                      too small (a shard closed early by growth, then lost); none is empty.
    wanted            shapes that must be present; None: the whole corpus. If given, indices for which no shape is left
                      may stay free: those of an interrupted build of another experiment.
    restore           only with `wanted`: shards that get back what they held, their shapes in order, wanted or not.
                      Shapes that another shard holds, or that the corpus lacks, are left out.

    Raises BuildError when an id comes twice, or when shards of a whole corpus are missing for which no shapes are left.
    O(len(ids)).
    """
    held = {id for receipt in committed.values() for id in receipt.ids}
    held.update(id for receipt in committed.values() for id in receipt.quarantined)
    places = {id: index for index, id in enumerate(ids)}
    if len(places) != len(ids):
        raise BuildError(
            f"the corpus has {len(ids)} shapes but only {len(places)} distinct ids; every shape needs a unique id"
        )
    tasks: list[ShardTask] = []
    taken = set(committed)
    for shard, shapes in sorted((restore or {}).items()):
        again = [id for id in shapes if id in places and id not in held]
        if again and shard not in taken:
            tasks.append(ShardTask(shard=shard, indices=tuple(places[id] for id in again)))
            held.update(again)
            taken.add(shard)
    left = [index for id, index in places.items() if id not in held and (wanted is None or id in wanted)]
    last = max(taken, default=-1)
    gaps = [shard for shard in range(last) if shard not in taken]
    if len(left) < len(gaps) and wanted is None:
        raise BuildError(
            f"shards {gaps[0]}..{gaps[-1]} are missing, but only {len(left)} shapes are left for these {len(gaps)}: "
            "files were removed from or added to this cache by hand.\n"
            "  Build into another cache.root."
        )
    start = 0
    for position, shard in enumerate(gaps):
        size = shapes_per_shard
        if wanted is None:  # one at least for each gap to come
            size = min(size, len(left) - start - (len(gaps) - position - 1))
        if some := left[start : start + size]:
            tasks.append(ShardTask(shard=shard, indices=tuple(some)))
            start += len(some)
    for shard, begin in enumerate(range(start, len(left), shapes_per_shard), start=last + 1):
        tasks.append(ShardTask(shard=shard, indices=tuple(left[begin : begin + shapes_per_shard])))
    return sorted(tasks, key=lambda task: task.shard)
