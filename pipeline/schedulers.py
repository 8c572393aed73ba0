"""Where the shard tasks of a build run: threads here, local processes, a cluster. The only file that imports Dask.

What crosses between driver and workers is small and of plain types: a `Job` (settings) and a `ShardTask` one way, a
`ShardReport` the other.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import dask
import torch

from pipeline.config import BuildConfig
from pipeline.errors import BuildError
from pipeline.plan import ShardTask
from pipeline.tally import Result
from pipeline.worker import Job, Worker, hold, release, run_task

__all__ = ["CONNECT_SECONDS", "cores", "on_cluster", "on_threads"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 60  # for a scheduler and its first worker to answer


def cores() -> int:
    """Cores that this process may use, by affinity and control group."""
    return dask.system.CPU_COUNT


def on_threads(
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


def on_cluster(
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
