"""The worker's side of a build: what a task is, and what a process keeps between tasks. No Dask here.

A teacher never travels. A task carries a `Job`, a few settings; the first task of a build that reaches a process opens
the corpus and loads the teacher there, and the later ones find them.
"""

import hashlib
import threading
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pipeline.config import CorpusConfig, ProjectionConfig, TeacherConfig
from pipeline.corpora import Corpus, open_corpus
from pipeline.errors import BuildError
from pipeline.plan import ShardTask
from pipeline.recipe import recipe_for
from pipeline.shard import ShardReport, build_shard
from pipeline.teacher import Teacher, load_teacher
from teacher_cache import CacheHandle
from teacher_cache.layout import RECIPE
from teacher_cache.storage import storage_at

__all__ = ["Failure", "Job", "Worker", "hold", "ids_digest", "release", "run_task"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One build, as a worker needs to know it. Picklable and small.

    token    of this build: what a process keeps under another token is another build's, and dropped
    ids      `ids_digest` of the corpus that was planned; a worker that sees other shapes refuses
    threads  groups of a shard in work at once, where the teacher is on a CPU
    """

    token: str
    corpus: CorpusConfig
    projection: ProjectionConfig
    teacher: TeacherConfig
    handle: CacheHandle
    ids: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A shard that failed, in words: exceptions of any class cannot be trusted to survive the way to the driver."""

    shard: int
    message: str
    traceback: str


class Worker:
    """What one process holds for one build: corpus, teacher, and a lock for a GPU that several shards share."""

    def __init__(self, corpus: Corpus, teacher: Teacher) -> None:
        self.corpus = corpus
        self.teacher = teacher
        self.stop = threading.Event()
        self.device_lock: AbstractContextManager[object] = (
            nullcontext() if teacher.device.type == "cpu" else threading.Lock()
        )


_held: dict[str, Worker] = {}
_loading = threading.Lock()


def run_task(job: Job, task: ShardTask) -> ShardReport | Failure:
    """Build one shard in this process. Never raises an Exception: what goes wrong comes back as a Failure."""
    try:
        worker = _worker(job)
        return build_shard(
            task,
            worker.corpus,
            job.projection,
            worker.teacher,
            job.handle,
            poses=job.corpus.poses,
            threads=job.threads if worker.teacher.device.type == "cpu" else 1,
            device_lock=worker.device_lock,
            stop=worker.stop,
        )
    except Exception as error:  # the driver stops on it, with this text and this traceback
        return Failure(
            shard=task.shard, message=f"{type(error).__name__}: {error}", traceback="".join(traceback.format_exc())
        )


def hold(token: str, worker: Worker) -> None:
    """Let tasks of a build find what the driver, in whose own process they run, has opened and loaded already."""
    with _loading:
        _held[token] = worker


def release(token: str) -> None:
    """Forget a build: its teacher's memory is freed."""
    with _loading:
        _held.pop(token, None)


def ids_digest(ids: Sequence[str]) -> str:
    """Hash of the ids of a corpus and their order."""
    digest = hashlib.sha256()
    for id in ids:
        digest.update(id.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _worker(job: Job) -> Worker:
    with _loading:
        worker = _held.get(job.token)
        if worker is None:
            _held.clear()
            worker = _held[job.token] = _open(job)
        return worker


def _open(job: Job) -> Worker:
    """Open corpus and teacher, and make sure that they and the cache are what the driver saw."""
    description = job.handle.description
    try:
        storage_at(job.handle.directory).read(RECIPE)
    except FileNotFoundError as error:
        raise BuildError(
            f"this worker does not see the cache at {job.handle.directory}.\n"
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
    return Worker(corpus, teacher)
