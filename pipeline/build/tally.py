"""The running count of a build: progress for the caller, a log line per shard, a report at the end."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pipeline.build.job import Failure
from pipeline.build.shard import STAGES, ShardReport
from pipeline.errors import BuildError, TooManyRefused
from teacher_cache import CacheError, CacheWriter, Quarantined, Receipt
from teacher_cache.format.paths import LOG
from teacher_cache.location import Location, join

__all__ = ["BuildProgress", "BuildReport", "Result", "Tally"]

logger = logging.getLogger(__name__)

_REASONS_SHOWN = 5

Result = ShardReport | Failure


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """Progress of a build, including what was committed before it.

    shards_done, shards_total  shards committed, and to be
    shapes_done, shapes_total  shapes of the experiment in committed shards, those in quarantine included, and in all
    quarantined                shapes in quarantine so far
    seconds                    since this build began
    """

    shards_done: int
    shards_total: int
    shapes_done: int
    shapes_total: int
    quarantined: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """A finished build.

    path              the cache
    shapes            of the experiment, in it
    shards            of the cache
    built             shards that this build added
    quarantined       every shape of the experiment that left no record
    seconds           this build took
    stages            seconds of work in read, project, teacher and write, added up over threads and workers
    teachers          forward passes that could run at once; 0 where that is not known, as on a cluster
    already_complete  nothing was missing
    others            shapes in the cache that the experiment is not about
    """

    path: Location
    shapes: int
    shards: int
    built: int
    quarantined: tuple[Quarantined, ...]
    seconds: float
    stages: dict[str, float]
    teachers: int
    already_complete: bool
    others: int = 0

    @property
    def shares(self) -> dict[str, float]:
        """Each stage's part of all seconds of work, 0..1; {} when nothing was built."""
        total = sum(self.stages.values())
        return {stage: seconds / total for stage, seconds in self.stages.items()} if total else {}

    @property
    def taught(self) -> float | None:
        """The teacher's share, 0..1, of the time available to `teachers` parallel forward passes."""
        if not self.teachers or not self.stages:
            return None
        return self.stages["teacher"] / (self.teachers * self.seconds)


class Tally:
    """Counts of committed shards and shapes, written to the log and passed to the caller."""

    def __init__(
        self,
        writer: CacheWriter,
        committed: dict[int, Receipt],
        missing: int,
        own: Collection[str],
        poses: int,
        begun: float,
        on_progress: Callable[[BuildProgress], None] | None,
    ) -> None:
        self.writer, self.own, self.shapes, self.poses = writer, own, len(own), poses
        self.begun, self.on_progress = begun, on_progress
        self.receipts = dict(committed)
        self.before = len(committed)
        self.total = len(committed) + missing
        self.usable = self.refused = self.others = 0
        for receipt in committed.values():
            self._count(receipt)
        self.stages: Counter[str] = Counter()
        self.teachers = 0
        self.tell()

    def add(self, result: Result) -> None:
        """Count a finished shard; a failed one stops the build. Raises BuildError."""
        if isinstance(result, Failure):
            failure = {"event": "failure", "shard": result.shard, "traceback": result.traceback}
            log = join(self.writer.directory, LOG)
            try:
                self.writer.log(failure, flush=True)
                traceback = f"The traceback is in {log}."
            except (OSError, CacheError) as error:  # on a full disk the log finds no room either
                traceback = f"The traceback could not be written to {log} ({error})."
            stopped = BuildError(
                f"shard {result.shard} failed{f' on {result.worker}' if result.worker else ''}: {result.message}\n"
                f"  {traceback}\n"
                f"  The {len(self.receipts)} committed shards are kept; run the build again to resume."
            )
            stopped.add_note(result.traceback)  # what --debug shows
            raise stopped
        receipt = result.receipt
        self.receipts[receipt.shard] = receipt
        self._count(receipt)
        self.stages.update(result.seconds)
        self.writer.log(
            {
                "event": "shard",
                "shard": receipt.shard,
                "records": receipt.records,
                "bytes": receipt.total_bytes,
                "seconds": result.seconds | {"wall": result.wall},
                "quarantined": [{"id": item.id, "reason": item.reason} for item in receipt.quarantined],
            }
        )
        for item in receipt.quarantined:
            logger.info("quarantined %s: %s: %s", item.id, item.source, item.reason)
        self.tell()

    def _count(self, receipt: Receipt) -> None:
        """Add its shapes: those of the experiment by what became of them, and the others."""
        usable = sum(id in self.own for id in receipt.ids[:: self.poses])
        refused = sum(item.id in self.own for item in receipt.quarantined)
        self.usable, self.refused = self.usable + usable, self.refused + refused
        self.others += receipt.records // self.poses + len(receipt.quarantined) - usable - refused

    def tell(self) -> None:
        if self.on_progress is None:
            return
        self.on_progress(
            BuildProgress(
                shards_done=len(self.receipts),
                shards_total=self.total,
                shapes_done=self.usable + self.refused,
                shapes_total=self.shapes,
                quarantined=self.refused,
                seconds=time.perf_counter() - self.begun,
            )
        )

    @property
    def planned(self) -> int | None:
        """Records and quarantine entries of the whole corpus: a refused shape has one entry, whatever its poses.

        None where the cache holds more than the experiment asks for: as many as there are.
        """
        if self.others:
            return None
        return (self.shapes - self.refused) * self.poses + self.refused

    def check_usable(self) -> None:
        """Raise BuildError for a cache without a record, which points to a mistake elsewhere."""
        if self.usable:
            return
        refused = self.quarantined()
        if not refused:
            raise BuildError("the corpus has no shapes; check corpus.uri")
        shown = "\n  ".join(f"{item.source}: {item.reason}" for item in refused[:_REASONS_SHOWN])
        raise BuildError(f"none of the {len(refused)} shapes of the corpus can be used; the first are\n  {shown}")

    def check_share(self, most: float) -> None:
        """Raise TooManyRefused where a larger share of the corpus than ``most`` was refused."""
        if self.refused <= most * self.shapes:
            return
        refused = self.quarantined()
        shown = "\n  ".join(f"{item.source}: {item.reason}" for item in refused[:_REASONS_SHOWN])
        raise TooManyRefused(
            f"{self.refused} of {self.shapes} shapes ({self.refused / self.shapes:.1%}) cannot be used; "
            f"build.max_refused = {most:g} allows {most:.1%}. The first are\n"
            f"  {shown}\n"
            f"  The other {self.usable} are in {self.writer.directory} and are kept. Repair the files and run the "
            "build again, which adds them, or accept the refusals with --set build.max_refused=1.0.",
            str(self.writer.directory),
            self.others,
        )

    def quarantined(self) -> tuple[Quarantined, ...]:
        """Return the experiment's quarantined shapes."""
        refused = (item for shard in sorted(self.receipts) for item in self.receipts[shard].quarantined)
        return tuple(item for item in refused if item.id in self.own)

    def report(self, *, already_complete: bool) -> BuildReport:
        return BuildReport(
            path=self.writer.directory,
            shapes=self.usable,
            shards=len(self.receipts),
            built=len(self.receipts) - self.before,
            quarantined=self.quarantined(),
            seconds=time.perf_counter() - self.begun,
            stages={stage: round(self.stages[stage], 3) for stage in STAGES if stage in self.stages},
            teachers=self.teachers,
            already_complete=already_complete,
            others=self.others,
        )
