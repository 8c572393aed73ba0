"""The worker's side of a build: running a task, and what a process keeps between tasks. No Dask here.

A teacher is never sent. A task carries a `Job`, a few settings; the first task of a build that reaches a process opens
the corpus and loads the teacher there, and later tasks reuse them.
"""

import hashlib
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from pipeline.build.job import Failure, Job, check_software
from pipeline.build.lanes import Lanes
from pipeline.build.plan import ShardTask
from pipeline.build.recipe import recipe_for
from pipeline.build.shard import ShardReport, build_shard
from pipeline.corpora import Corpus, open_corpus
from pipeline.errors import BuildError, PipelineError
from pipeline.teacher.tower import Teacher, load_teacher
from teacher_cache import Basis, CacheError, stored_basis
from teacher_cache.format.paths import RECIPE
from teacher_cache.storage.opening import storage_at

__all__ = ["Worker", "hold", "ids_digest", "release", "run_task"]


class Worker:
    """The state of one process for one build: corpus, teacher, lanes, and a lock for a GPU shared by several shards.

    basis  that features are stored in; None: in the teacher's own channels
    """

    def __init__(self, corpus: Corpus, teacher: Teacher, lanes: Lanes, basis: Basis | None = None) -> None:
        self.corpus = corpus
        self.teacher = teacher
        self.lanes = lanes
        self.basis = basis
        self.stop = threading.Event()
        self.in_work = 0  # tasks; guarded by _loading
        self.device_lock: AbstractContextManager[object] = (
            nullcontext() if teacher.device.type == "cpu" else threading.Lock()
        )


_held: dict[str, Worker] = {}
_loading = threading.Lock()


def run_task(job: Job, task: ShardTask, *, lanes: int, address: str = "") -> ShardReport | Failure:
    """Build one shard in this process. Never raises an Exception: errors are returned as a Failure.

    lanes    threads that teach, for all shards that this process has in work; the first task of a build decides.
    address  of this process, for the Failure
    """
    try:
        with _at_work(job, lanes) as worker:
            return build_shard(
                task,
                worker.corpus,
                job.projection,
                worker.teacher,
                job.handle,
                worker.lanes,
                poses=job.corpus.poses,
                basis=worker.basis,
                device_lock=worker.device_lock,
                stop=worker.stop,
            )
    except Exception as error:  # the driver stops on it, with this text and this traceback
        return Failure(
            shard=task.shard,
            message=_in_words(error),
            traceback="".join(traceback.format_exc()),
            worker=address,
        )


def _in_words(error: Exception) -> str:
    if isinstance(error, PipelineError | CacheError):
        return str(error)
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in reason:
        return f"out of memory ({reason}).\n  Lower build.workers, cache.shapes_per_shard or teacher.batch_size."
    return reason


def hold(token: str, worker: Worker) -> None:
    """Let tasks of a build use what the driver, in whose own process they run, has already opened and loaded."""
    with _loading:
        _held[token] = worker


def release(token: str) -> None:
    """Forget a build: its tasks in work stop at their next group, then its lanes end and its teacher is freed."""
    with _loading:
        worker = _held.pop(token, None)
        if worker is not None:
            worker.stop.set()
            _close_if_idle(worker)


def ids_digest(ids: Sequence[str]) -> str:
    """Hash the ids of a corpus and their order."""
    digest = hashlib.sha256()
    for id in ids:
        digest.update(id.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


@contextmanager
def _at_work(job: Job, lanes: int) -> Iterator[Worker]:
    """Hold a build's worker; its first task opens it. Another build's is dropped unless it is in use."""
    with _loading:
        worker = _held.get(job.token)
        if worker is None:
            for other in [token for token, held in _held.items() if not held.in_work]:
                _close_if_idle(_held.pop(other))
            worker = _held[job.token] = _open(job, lanes)
        worker.in_work += 1
    try:
        yield worker
    finally:
        with _loading:
            worker.in_work -= 1
            # Replaced by another build's worker meanwhile: the last of its tasks closes it.
            if _held.get(job.token) is not worker:
                _close_if_idle(worker)


def _close_if_idle(worker: Worker) -> None:
    if not worker.in_work:
        worker.lanes.close()


def _open(job: Job, lanes: int) -> Worker:
    """Open corpus and teacher, and check that they, the cache and the software match the driver's."""
    check_software(job)
    description = job.handle.description
    storage = storage_at(job.handle.directory)
    for path, sees in ((RECIPE, "does not see the cache"), (job.mark, "sees another cache than the driver")):
        try:
            storage.read(path)
        except FileNotFoundError as error:
            raise BuildError(
                f"this worker {sees} at {job.handle.directory}: there is no {path}.\n"
                "  Name a cache.root on a file system that driver and workers share, or the URL of an object store."
            ) from error
    corpus = open_corpus(job.corpus.uri, points=job.corpus.points)
    if ids_digest([corpus.id(index) for index in range(len(corpus))]) != job.ids:
        raise BuildError(
            f"this worker sees other shapes at {job.corpus.uri} than the driver ({len(corpus)} here).\n"
            "  Give driver and workers the same files, under the same absolute path."
        )
    teacher = load_teacher(job.teacher)
    recipe = recipe_for(
        corpus,
        job.projection,
        teacher.identity(),
        description.storage,
        points=job.corpus.points,
        poses=job.corpus.poses,
    )
    differences = recipe.differences(description.recipe)
    if differences:
        raise BuildError(
            "this worker has another corpus or teacher (here) than the driver (there):\n  " + "\n  ".join(differences)
        )
    basis = stored_basis(job.handle.directory)
    found = "" if basis is None else basis.sha256
    if found != job.basis:
        raise BuildError(
            f"the cache at {job.handle.directory} now has another basis ({found[:12] or 'none'}) than when the driver "
            f"started ({job.basis[:12] or 'none'}).\n"
            "  Two builders created it at once on a store without locks; run the build again."
        )
    return Worker(corpus, teacher, Lanes(lanes), basis)
