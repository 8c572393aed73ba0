"""Schedulers of a build's shard tasks: threads, local processes or a cluster. The only file that imports Dask.

One task is one shard. The messages are in `pipeline.build.job`; a teacher is never sent.
"""

import importlib.util
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import torch

from pipeline.build.entry import can_read, run_on_worker
from pipeline.build.job import Job
from pipeline.build.plan import ShardTask
from pipeline.build.tally import Result
from pipeline.build.worker import Worker, hold, release, run_task
from pipeline.config import BuildConfig
from pipeline.errors import BuildError

__all__ = ["CONNECT_SECONDS", "Crew", "cores", "crew_for", "on_cluster", "on_threads"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 60  # for a scheduler and its first worker to answer
SUBMITTED_AT_ONCE = 1000  # tasks in one message to a scheduler
LONELY_SECONDS = 60  # between warnings that a cluster has no worker
_OWN_PORT = "127.0.0.1:0"  # any free port, on this machine only
_SAME = "Driver, scheduler and workers need the same Python, the same dask and the same version of this package."


GPU_PROCESSES = 2  # each holds a teacher and a CUDA context
GPU_LANES = 2  # one drives the GPU, the other encodes its results
GPU_SHARDS = 4  # one is with the teacher, the others are read and written
SHARDS_BESIDE = 2  # on a CPU, besides those the teacher encodes: one is read, one is written
LANES_OF_A_WRITER = 8  # encoding and writing take up to a tenth of a teacher's time


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The threads and processes of this machine that work on a build.

    processes  1: the driver itself
    lanes      threads of each that teach; 0: a cluster decides
    in_work    shards of each at once
    teachers   forward passes at once in all; 0: not known
    """

    processes: int
    lanes: int
    in_work: int
    teachers: int


def cores() -> int:
    """Return the number of cores that this process may use, by affinity and control group."""
    return dask.system.CPU_COUNT


def crew_for(build: BuildConfig, device: torch.device | None, shards: int, groups: int) -> Crew:
    """Choose the crew for so many shards of so many groups.

    device  the teacher's; None where the workers choose, on a cluster
    """
    if build.remote or device is None:
        return Crew(processes=0, lanes=0, in_work=0, teachers=0)
    gpu, cores = device.type == "cuda", dask.system.CPU_COUNT
    if build.scheduler == "processes":
        processes = min(build.workers or (GPU_PROCESSES if gpu else cores), shards)
        lanes = 1 if gpu else max(1, cores // processes)
        return Crew(processes=processes, lanes=lanes, in_work=2, teachers=0 if gpu else processes * lanes)
    lanes = build.workers or (GPU_LANES if gpu else cores)
    taught = -(-lanes // groups)  # a shard of few groups does not fill the lanes
    in_work = GPU_SHARDS if gpu else taught + SHARDS_BESIDE + lanes // LANES_OF_A_WRITER
    return Crew(processes=1, lanes=lanes, in_work=min(in_work, shards), teachers=1 if gpu else lanes)


def on_threads(
    job: Job, worker: Worker, tasks: Sequence[ShardTask], crew: Crew, on_result: Callable[[Result], None]
) -> None:
    """Run the tasks on threads of this process, which share the driver's corpus and teacher."""
    from dask.callbacks import Callback

    class Collect(Callback):
        def _posttask(self, key: Any, result: Result, dsk: Any, state: Any, worker_id: Any) -> None:
            on_result(result)

    hold(job.token, worker)
    pool = ThreadPoolExecutor(crew.in_work, thread_name_prefix="build")
    # Dask starts equal tasks from the greatest name down; counting down makes that the shards' order (a nicety only).
    graph = [
        dask.delayed(partial(run_task, job, task, lanes=crew.lanes), pure=False)(
            dask_key_name=f"shard-{len(tasks) - place:08d}"
        )
        for place, task in enumerate(tasks)
    ]
    with _torch_threads_kept():  # outermost: a shard that is still stopping may set them
        try:
            with Collect():
                dask.compute(*graph, scheduler="threads", pool=pool, optimize_graph=False)
        finally:  # a failure or Ctrl-C: shards in work stop at their next group and leave nothing behind
            worker.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            release(job.token)


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Restore the caller's torch threads at the end: shards set them to 1, for the whole process."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def on_cluster(
    job: Job, tasks: Sequence[ShardTask], build: BuildConfig, crew: Crew, on_result: Callable[[Result], None]
) -> None:
    """Run the tasks on local processes, or on the cluster whose address is given. Raises BuildError."""
    with ExitStack() as stack:
        client = stack.enter_context(_connected(build.scheduler) if build.remote else _local(crew, build.retries))
        stack.enter_context(client.as_current())
        if client.dashboard_link and importlib.util.find_spec("bokeh"):
            logger.info("Dask dashboard: %s", client.dashboard_link)
        # On local workers Dask itself retries `retries` times; a foreign scheduler has its own limit, after which the
        # driver reschedules the shard.
        again = dict.fromkeys((task.shard for task in tasks), build.retries if build.remote else 0)
        left: dict[Any, ShardTask] = {}
        try:
            if build.remote:
                _check_workers(client, job)
                stack.enter_context(_warned_when_alone(client))
            left = {future: task for task, future in zip(tasks, _submit(client, job, tasks), strict=True)}
            _collect(client, job, left, again, on_result)
        finally:
            if client.status == "running":
                with suppress(OSError, CancelledError):  # the scheduler was lost a moment ago: nothing is left to free
                    client.cancel(list(left))
                    # Frees the teachers, and stops what is still in work.
                    client.run(release, job.token, on_error="ignore")


def _check_workers(client: Any, job: Job) -> None:
    """Check that every connected worker can read its tasks, which would otherwise kill it. Raises BuildError."""
    answers = client.run(can_read, job, on_error="return")
    # An OSError is a broken connection: a worker that has died meanwhile, which does not matter.
    bad = {
        address: answer for address, answer in answers.items() if not (answer is True or isinstance(answer, OSError))
    }
    if bad:
        address, error = next(iter(bad.items()))
        raise BuildError(
            f"{len(bad)} of {len(answers)} workers cannot take part, first {address}: {type(error).__name__}: {error}\n"
            f"  {_SAME}"
        )


@contextmanager
def _warned_when_alone(client: Any) -> Iterator[None]:
    """Warn now and then that no worker is left: they may come back, so the build waits."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LONELY_SECONDS):
            with suppress(OSError, CancelledError):  # a lost scheduler is reported in the main thread
                if client.status == "running" and not client.nthreads():
                    address = client.scheduler.address
                    logger.warning("%s has no worker left; waiting for a new one (`dask worker %s`)", address, address)

    thread = threading.Thread(target=watch, name="lonely", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=1)


def _submit(client: Any, job: Job, tasks: Sequence[ShardTask], attempt: int = 0) -> list[Any]:
    # The part before the comma is the name of a group: the scheduler then holds tasks back until a thread is free, and
    # the death of a worker counts only against the tasks it was running.
    keys = [(f"shard-{job.token}", task.shard, attempt) for task in tasks]
    return list(client.map(partial(run_on_worker, job), tasks, key=keys, pure=False, batch_size=SUBMITTED_AT_ONCE))


def _collect(
    client: Any,
    job: Job,
    left: dict[Any, ShardTask],
    again: dict[int, int],
    on_result: Callable[[Result], None],
) -> None:
    """Take results as they arrive, in this thread; `left` shrinks to what is not done. Raises BuildError."""
    from dask.distributed import as_completed
    from distributed.scheduler import KilledWorker

    done = as_completed(list(left))
    for future in done:
        task = left.pop(future)
        try:
            error = future.exception()
            result: Any = None if error is not None else future.result()
        except CancelledError as cancelled:
            raise BuildError(
                f"the connection to the Dask scheduler at {client.scheduler.address} was lost.\n"
                "  Committed shards are kept; start the scheduler again and run the build again to resume."
            ) from cancelled
        if isinstance(error, KilledWorker):
            if not again[task.shard]:
                raise BuildError(
                    f"shard {task.shard}: the workers that ran it died ({error}).\n"
                    "  The usual cause is memory: lower build.workers, cache.shapes_per_shard or teacher.batch_size; "
                    "the logs of the workers say more. Committed shards are kept; run the build again to resume."
                )
            again[task.shard] -= 1
            logger.warning("shard %d: its worker died, rescheduled: %s", task.shard, error)
            (fresh,) = _submit(client, job, [task], attempt=again[task.shard] + 1)
            left[fresh] = task
            done.add(fresh)
            continue
        if error is not None:  # tasks return their failures, so this one never began
            raise BuildError(
                f"shard {task.shard} could not be started on a worker: {type(error).__name__}: {error}.\n  {_SAME}"
            )
        on_result(result)
        future.release()


@contextmanager
def _local(crew: Crew, retries: int) -> Iterator[Any]:
    """Start a cluster of processes on this machine and yield its client."""
    from dask.distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": retries}),
        LocalCluster(
            n_workers=crew.processes,
            threads_per_worker=crew.in_work,
            processes=True,
            memory_limit=None,  # a shard's memory is bounded; a limit that kills workers is worse than swapping
            dashboard_address=_OWN_PORT if importlib.util.find_spec("bokeh") else None,
            scheduler_kwargs={"dashboard_address": _OWN_PORT},  # its health pages; 8787 may be another cluster's
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect to a scheduler that has at least one worker and yield the client. Raises BuildError."""
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
