"""The missing shards of a cache: a pure function of the corpus' ids and the receipts that are on disk.

Shapes are known by their ids. Those that no committed shard holds are spread, in the corpus' order, over the shard
indices that are free: first those that are missing between committed ones, then new ones. So a build that was killed
comes back to the very shards it would have made, and a corpus that has grown, wherever its new shapes stand, adds
shards and touches no old one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import BuildError

__all__ = ["CommittedShard", "ShardTask", "plan_shards", "surplus_shards"]


class _Refused(Protocol):
    @property
    def id(self) -> str: ...


class CommittedShard(Protocol):
    """What the plan needs of a receipt: ids of its records, and of the shapes that left none."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def quarantined(self) -> Sequence[_Refused]: ...


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to build: the corpus' shapes at `indices`, in this order, become shard `shard`."""

    shard: int
    indices: tuple[int, ...]


def surplus_shards(ids: Sequence[str], committed: Mapping[int, CommittedShard]) -> list[int]:
    """Committed shards, from the last one on, whose shapes have to move up because the corpus became smaller.

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
    ids: Sequence[str], committed: Mapping[int, CommittedShard], *, shapes_per_shard: int
) -> list[ShardTask]:
    """The shards that are still to be built, ascending; with the committed ones they hold every shape once.

    ids               of the whole corpus, in its order, unique.
    committed         receipts by shard index; any index may be missing.
    shapes_per_shard  at least 1. Every planned shard holds that many but the last, and those that fill gaps that are
                      too small (a shard closed early by growth, then lost); none is empty.

    Raises BuildError when a committed shape is not in the corpus any more, when an id comes twice, or when shards are
    missing for which no shapes are left. O(len(ids)).
    """
    held = {id for receipt in committed.values() for id in receipt.ids}
    held.update(item.id for receipt in committed.values() for item in receipt.quarantined)
    known = set(ids)
    if len(known) != len(ids):
        raise BuildError(
            f"the corpus has {len(ids)} shapes but {len(known)} different ids; every shape needs an id of its own"
        )
    if not held <= known:
        gone = sorted(held - known)
        raise BuildError(
            f"{len(gone)} shapes of the cache are not in the corpus any more, first {gone[0]!r}; a cache only grows.\n"
            "  Bring them back, or build the corpus as it is now into another cache.root."
        )
    left = [index for index, id in enumerate(ids) if id not in held]
    last = max(committed, default=-1)
    gaps = [shard for shard in range(last) if shard not in committed]
    if len(left) < len(gaps):
        raise BuildError(
            f"shards {gaps[0]}..{gaps[-1]} are missing and {len(left)} shapes are left for {len(gaps)} of them: files "
            "were removed from or added to this cache by hand.\n  Build into another cache.root."
        )
    tasks: list[ShardTask] = []
    start = 0
    for position, shard in enumerate(gaps):
        size = min(
            shapes_per_shard, len(left) - start - (len(gaps) - position - 1)
        )  # one at least for each gap to come
        tasks.append(ShardTask(shard=shard, indices=tuple(left[start : start + size])))
        start += size
    for shard, begin in enumerate(range(start, len(left), shapes_per_shard), start=last + 1):
        tasks.append(ShardTask(shard=shard, indices=tuple(left[begin : begin + shapes_per_shard])))
    return tasks
