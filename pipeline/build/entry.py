"""Entry points of a Dask worker, importable without torch: a scheduler unpickles them too."""

from typing import Any

from pipeline.build.job import Job, check_software
from pipeline.build.plan import ShardTask

__all__ = ["can_read", "run_on_worker"]


def can_read(job: Job) -> bool:
    """Check a worker before it is given tasks; any answer means that its Python has this job's classes.

    Raises BuildError where the worker's software is not the driver's.
    """
    check_software(job)
    return bool(job.token)


def run_on_worker(job: Job, task: ShardTask) -> Any:
    """Build one shard on this thread's Dask worker -> ShardReport or Failure, never an exception."""
    from distributed import get_worker

    from pipeline.build.worker import run_task

    worker = get_worker()
    return run_task(job, task, lanes=job.lanes or worker.state.nthreads, address=worker.address)
