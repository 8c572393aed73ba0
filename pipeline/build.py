"""The build: every missing shard of a cache, on threads, processes or a cluster. The only file that imports Dask.

What crosses between driver and workers is small and of plain types: a `Job` (settings) and a `ShardTask` one way, a
`ShardReport` the other. Progress and resume come from the committed shards alone, so they survive any crash.
"""

import importlib.util
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask
import torch

from pipeline.config import BuildConfig, CorpusConfig, ProjectionConfig, TeacherConfig, conflicts
from pipeline.corpora import Corpus, open_corpus
from pipeline.errors import BuildError
from pipeline.plan import ShardTask, plan_shards
from pipeline.poses import check_ids, shapes_of
from pipeline.recipe import recipe_for
from pipeline.shard import ShardReport
from pipeline.teacher import Teacher, load_teacher, resolve_device, size_conflicts, teacher_conflicts
from pipeline.views import VIEWS
from pipeline.worker import Failure, Job, Worker, hold, ids_digest, release, run_task
from teacher_cache import CacheConfig, CacheSchema, CacheWriter, Quarantined, Receipt, cache_directory, create_cache
from teacher_cache.layout import LOG

__all__ = ["BuildProgress", "BuildReport", "build_cache"]

logger = logging.getLogger(__name__)

GPU_THREADS = 4  # shards in flight on one GPU: one teaches, the others read and write
GPU_PROCESSES = 2  # each holds a teacher and a CUDA context
CONNECT_SECONDS = 60  # for a scheduler and its first worker to answer
_REASONS_SHOWN = 5

Result = ShardReport | Failure


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """How far a build is, what was committed before it included.

    shards_done, shards_total  shards committed, and to be
    shapes_done, shapes_total  shapes in committed shards, those in quarantine included, and in the corpus
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
    shapes, shards    in it
    built             shards that this build added
    quarantined       every shape that left no record
    seconds           this build took
    stages            seconds of work in read, project, teacher and write, added up over threads and workers
    already_complete  nothing was missing
    """

    path: Path
    shapes: int
    shards: int
    built: int
    quarantined: tuple[Quarantined, ...]
    seconds: float
    stages: dict[str, float]
    already_complete: bool


def build_cache(
    corpus: CorpusConfig,
    projection: ProjectionConfig,
    teacher: TeacherConfig,
    cache: CacheConfig,
    build: BuildConfig,
    *,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuildReport:
    """Build what is missing of the cache of a recipe; nothing, when it is complete.

    on_progress  called once before the first shard, then after each one, in the calling thread.

    The cache's bytes follow from the recipe and the corpus: not from scheduler, workers, threads or interruptions. Any
    end of the process leaves a cache that the next call completes.

    Raises BuildError for settings that do not fit together, a corpus that lost shapes the cache has, a shard that
    failed (its traceback is in logs/build.jsonl) and a corpus without one usable shape; CorpusError, TeacherError and
    CacheError as opening, loading and creating do.
    """
    begun = time.perf_counter()
    _check_settings(corpus, projection, teacher, cache, build)
    source = open_corpus(corpus.uri, points=corpus.points)
    local = build.scheduler == "threads"
    # Where others run the tasks, the driver needs the teacher's identity only, and keeps its hands off the GPU.
    loaded = load_teacher(teacher, None if local else torch.device("cpu"))
    faults = list(size_conflicts(teacher.architecture, loaded.image_side, loaded.patch_side, projection))
    if faults:
        raise BuildError("\n".join(faults))
    ids = [source.id(index) for index in range(len(source))]
    check_ids(ids, corpus.poses)
    writer = _open_cache(source, corpus, projection, loaded, cache)
    committed = writer.committed()
    tasks = plan_shards(
        ids, shapes_of(committed, corpus.poses), shapes_per_shard=cache.shapes_per_shard // corpus.poses
    )
    tally = _Tally(writer, committed, len(tasks), len(source), corpus.poses, begun, on_progress)
    if tasks:
        worker = Worker(source, loaded)
        in_flight = _in_flight(build, teacher, len(tasks))
        threads = 1 if build.remote else max(1, dask.system.CPU_COUNT // in_flight)
        job = Job(
            token=uuid4().hex,
            corpus=corpus,
            projection=projection,
            teacher=teacher,
            handle=writer.handle,
            ids=ids_digest(ids),
            threads=threads,
        )
        logger.info(
            "%s: %d of %d shards missing; %s%s",
            writer.directory,
            len(tasks),
            tally.total,
            build.scheduler,
            "" if build.remote else f", {in_flight} in flight, {threads} threads each",
        )
        if local:
            _on_threads(job, worker, tasks, in_flight, tally.add)
        else:
            del worker, loaded
            _on_cluster(job, tasks, build, in_flight, tally.add)
    tally.check_usable()
    writer.finish(planned=tally.planned)
    return tally.report(already_complete=not tasks)


def _check_settings(
    corpus: CorpusConfig, projection: ProjectionConfig, teacher: TeacherConfig, cache: CacheConfig, build: BuildConfig
) -> None:
    sections: dict[str, Any] = {
        "corpus": corpus, "projection": projection, "teacher": teacher, "cache": cache, "build": build
    }  # fmt: skip
    faults = [f"{name}.{fault}" for name, section in sections.items() for fault in section.problems()]
    if not faults:
        faults = [*conflicts(corpus, projection), *teacher_conflicts(teacher, projection)]
        if corpus.poses > cache.shapes_per_shard:  # the poses of a shape stand in one shard
            faults.append(
                f"corpus.poses = {corpus.poses} is more than the cache.shapes_per_shard = {cache.shapes_per_shard} "
                "records of a shard"
            )
    if faults:
        raise BuildError(f"{len(faults)} problems in the settings of the build\n  " + "\n  ".join(faults))


def _open_cache(
    source: Corpus, corpus: CorpusConfig, projection: ProjectionConfig, teacher: Teacher, cache: CacheConfig
) -> CacheWriter:
    recipe = recipe_for(source, projection, teacher.identity(), cache, points=corpus.points, poses=corpus.poses)
    schema = CacheSchema(
        points=corpus.points,
        views=VIEWS,
        image_side=projection.image_side,
        patch_side=projection.patch_side,
        channels=teacher.channels,
    )
    directory = cache_directory(cache, recipe, corpus.uri.partition(":")[0])
    return create_cache(directory.resolve(), recipe, schema, cache, label_names=source.label_names)


def _in_flight(build: BuildConfig, teacher: TeacherConfig, tasks: int) -> int:
    """Shards in work at once on this machine; a cluster that someone else started has its own number."""
    chosen = build.workers
    if not chosen:
        gpu = not build.remote and resolve_device(teacher.device).type == "cuda"
        on_gpu = GPU_THREADS if build.scheduler == "threads" else GPU_PROCESSES
        chosen = on_gpu if gpu else dask.system.CPU_COUNT
    return max(1, min(chosen, tasks))


class _Tally:
    """Counts what is committed, writes the log, tells the caller."""

    def __init__(
        self,
        writer: CacheWriter,
        committed: dict[int, Receipt],
        missing: int,
        shapes: int,
        poses: int,
        begun: float,
        on_progress: Callable[[BuildProgress], None] | None,
    ) -> None:
        self.writer, self.shapes, self.poses = writer, shapes, poses
        self.begun, self.on_progress = begun, on_progress
        self.receipts = dict(committed)
        self.before = len(committed)
        self.total = len(committed) + missing
        self.records = sum(receipt.records for receipt in committed.values())
        self.refused = sum(len(receipt.quarantined) for receipt in committed.values())
        self.stages: Counter[str] = Counter()
        self.tell()

    def add(self, result: Result) -> None:
        """Take a finished shard; a failed one stops the build. Raises BuildError."""
        if isinstance(result, Failure):
            self.writer.log({"event": "failure", "shard": result.shard, "traceback": result.traceback})
            raise BuildError(
                f"shard {result.shard} failed: {result.message}\n"
                f"  Its traceback is in {self.writer.directory / LOG}.\n"
                f"  The {len(self.receipts)} committed shards are kept; run the build again to go on."
            )
        receipt = result.receipt
        self.receipts[receipt.shard] = receipt
        self.records += receipt.records
        self.refused += len(receipt.quarantined)
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

    def tell(self) -> None:
        if self.on_progress is None:
            return
        self.on_progress(
            BuildProgress(
                shards_done=len(self.receipts),
                shards_total=self.total,
                shapes_done=self.records // self.poses + self.refused,
                shapes_total=self.shapes,
                quarantined=self.refused,
                seconds=time.perf_counter() - self.begun,
            )
        )

    @property
    def planned(self) -> int:
        """Records and quarantine entries of the whole corpus: a refused shape has one entry, whatever its poses."""
        return (self.shapes - self.refused) * self.poses + self.refused

    def check_usable(self) -> None:
        """A cache without a record is a mistake somewhere else. Raises BuildError."""
        if self.records:
            return
        refused = self.quarantined()
        if not refused:
            raise BuildError("the corpus has no shapes; check corpus.uri")
        shown = "\n  ".join(f"{item.source}: {item.reason}" for item in refused[:_REASONS_SHOWN])
        raise BuildError(f"none of the {len(refused)} shapes of the corpus can be used; the first are\n  {shown}")

    def quarantined(self) -> tuple[Quarantined, ...]:
        return tuple(item for shard in sorted(self.receipts) for item in self.receipts[shard].quarantined)

    def report(self, *, already_complete: bool) -> BuildReport:
        return BuildReport(
            path=self.writer.directory,
            shapes=self.records // self.poses,
            shards=len(self.receipts),
            built=len(self.receipts) - self.before,
            quarantined=self.quarantined(),
            seconds=time.perf_counter() - self.begun,
            stages={stage: round(seconds, 3) for stage, seconds in self.stages.items()},
            already_complete=already_complete,
        )


def _on_threads(
    job: Job, worker: Worker, tasks: Sequence[ShardTask], workers: int, on_result: Callable[[Result], None]
) -> None:
    """Run the tasks on threads of this process, which share the driver's corpus and teacher."""
    from dask.callbacks import Callback

    class Collect(Callback):
        def _posttask(self, key: Any, result: Result, dsk: Any, state: Any, worker_id: Any) -> None:
            on_result(result)

    hold(job.token, worker)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="build")
    # Dask starts equal tasks from the greatest name down; counting down makes that the shards' order (a nicety only).
    graph = [
        dask.delayed(partial(run_task, job, task), pure=False)(dask_key_name=f"shard-{len(tasks) - place:08d}")
        for place, task in enumerate(tasks)
    ]
    try:
        with _torch_threads_kept(), Collect():
            dask.compute(*graph, scheduler="threads", pool=pool, optimize_graph=False)
    finally:  # a failure or Ctrl-C: shards in work stop at their next group and leave nothing behind
        worker.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        release(job.token)


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Shards set torch's threads to 1, a setting of the whole process; afterwards it is the caller's again."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _on_cluster(
    job: Job, tasks: Sequence[ShardTask], build: BuildConfig, workers: int, on_result: Callable[[Result], None]
) -> None:
    """Run the tasks on local processes, or on the cluster whose address is given."""
    from dask.distributed import Client, LocalCluster, as_completed
    from distributed.scheduler import KilledWorker

    with ExitStack() as stack:
        if build.remote:
            client = stack.enter_context(_connected(build.scheduler))
        else:
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": build.retries}))
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=None,  # a shard's memory is bounded; a limit that kills workers is worse than swapping
                dashboard_address=":0" if importlib.util.find_spec("bokeh") else None,
            )
            client = stack.enter_context(Client(stack.enter_context(cluster), set_as_default=False))
        stack.enter_context(client.as_current())
        if client.dashboard_link and importlib.util.find_spec("bokeh"):
            logger.info("Dask dashboard: %s", client.dashboard_link)
        futures = [
            client.submit(run_task, job, task, pure=False, key=f"shard {task.shard} of {job.token}") for task in tasks
        ]
        try:
            for future in as_completed(futures):
                try:
                    error = future.exception()
                except CancelledError as cancelled:
                    raise BuildError(
                        f"the connection to the Dask scheduler at {client.scheduler.address} was lost.\n"
                        "  Committed shards are kept; start the scheduler again and run the build again to go on."
                    ) from cancelled
                if isinstance(error, KilledWorker):
                    raise BuildError(
                        f"{future.key.partition(' of ')[0]}: the workers it was given to died ({error}).\n"
                        "  Most often they ran out of memory: lower build.workers, cache.shapes_per_shard or "
                        "teacher.batch_size. Committed shards are kept; run the build again to go on."
                    )
                on_result(future.result())
                future.release()
        finally:
            client.cancel(futures)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """A client of a scheduler that has at least one worker. Raises BuildError."""
    from dask.distributed import Client

    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise BuildError(
            f"build.scheduler = {address}: no Dask scheduler answers ({error}).\n"
            "  Start one with `dask scheduler`, and workers with `dask worker " + address + "`."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError as error:
            raise BuildError(
                f"build.scheduler = {address}: the scheduler has had no worker for {CONNECT_SECONDS} s.\n"
                f"  Start some with `dask worker {address}`."
            ) from error
        yield client
