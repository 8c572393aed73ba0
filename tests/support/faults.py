"""Builders that can be watched and killed: what each is doing at a moment, and whether a rerun mends what it left.

A builder keeps, in a file of its own that is mapped into memory, how many of its threads are in which stage. The file
outlives a SIGKILL, so that afterwards it says what the kill interrupted. Heavy imports happen in the builder, under the
stage `import`: this module costs nothing to load.
"""

import mmap
import multiprocessing
import os
import shutil
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "COUNT",
    "STAGES",
    "Scenario",
    "builders",
    "cache_of",
    "check_finished",
    "check_unfinished",
    "stages_of",
    "start_builder",
]

# "import" is a process that loads its modules; "open" the corpus, the teacher and the plan; "write" encodes and stages
# a shard; "commit" renames it into place; "finish" is metadata and manifest; "wait" a driver while others work.
STAGES = ("import", "open", "wait", "read", "project", "teach", "write", "commit", "finish", "done")
COUNT = 22  # shapes: eighteen that can be read, in shards of four, and four that cannot
BAD = 4
_MARKS = "I2P_TEST_MARKS"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One way to build the corpus of `make_corpus`; neither `scheduler`, `workers` nor `start` may change a byte.

    start  how the builder's process comes to be: "warm", forked from a server that has imported everything, or "cold",
           a new interpreter that must import first
    """

    scheduler: str = "threads"
    workers: int = 2
    format: str = "zarr"
    features: str = "float16"
    poses: int = 1
    start: str = "warm"

    def __str__(self) -> str:
        more = f", {self.poses} poses" if self.poses > 1 else ""
        more += "" if self.start == "warm" else f", {self.start} start"
        return f"{self.format} {self.features}, {self.scheduler} {self.workers}{more}"


def make_corpus(folder: Path) -> str:
    """URI of a folder of clouds, some of which go into quarantine; made on the first call."""
    made = folder / "shapes"
    if not made.is_dir():
        rng = np.random.default_rng(11)
        staged = folder / f"shapes-{os.getpid()}"
        for index in range(COUNT):
            kind = staged / ("chair", "table")[index % 2]
            kind.mkdir(parents=True, exist_ok=True)
            points = rng.normal(size=(96, 3)).astype(np.float32)
            if index % 6 == 3:
                points[5] = np.nan
            np.save(kind / f"{index:03d}.npy", points)
        try:
            os.rename(staged, made)
        except OSError:  # another builder of this test was faster
            assert made.is_dir()
            shutil.rmtree(staged)
    return f"folder:{made}"


_servers: set[int] = set()  # that this process has started for builders; one runs at a time


def builders(start: str = "warm") -> Any:
    """The multiprocessing context of builders: forked from a server that has everything loaded, or new interpreters."""
    if start == "cold":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    if forkserver._forkserver._forkserver_pid in _servers:
        return context
    context.set_forkserver_preload(["tests.support.warm"])
    # A server that another test has started would stay, and with it what that one preloads.
    forkserver._forkserver._stop()
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads start when it is loaded
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("OPENBLAS_NUM_THREADS")
        if before is not None:
            os.environ["OPENBLAS_NUM_THREADS"] = before
    process = context.Process(target=_check_server)
    process.start()
    process.join(120)
    assert process.exitcode == 0, f"the server of builders is not as it should be ({process.exitcode})"
    _servers.add(forkserver._forkserver._forkserver_pid)
    return context


def start_builder(
    context: Any, folder: Path, scenario: Scenario, marks: Path | None = None, rename_seconds: float = 0.0
) -> Any:
    """A process of `builders()` that has begun `run_builder` with these arguments."""
    server = forkserver._forkserver._forkserver_address if scenario.start == "warm" else None
    process = context.Process(target=run_builder, args=(folder, scenario, marks, rename_seconds, server))
    process.start()
    return process


def _check_server() -> None:
    """A fork copies the locks that other threads hold: the server must have none, and must have loaded everything."""
    sys.exit(0 if sys.modules["tests.support.warm"].THREADS == 1 else 3)


def run_builder(
    folder: Path, scenario: Scenario, marks: Path | None, rename_seconds: float, server: str | None
) -> None:
    """Build the cache of a scenario below `folder`: the body of a builder's process, to be killed at any moment.

    marks           a folder; this process, and each that works for it, leaves a file there that says what it does
    rename_seconds  that each rename of a commit takes in this process, to be met there
    server          address of the server that this process was forked from; its Dask workers come from there too
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.dup2(os.open(folder / "builder.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
    watch = _Watch(marks) if marks is not None else None
    import dask
    import open_clip  # noqa: F401  # what a teacher needs, under the stage that imports

    import pipeline.build.driver
    from pipeline.config import BuildConfig, CorpusConfig
    from teacher_cache import CacheConfig
    from tests.support.teachers import TINY_PROJECTION, tiny_teacher

    if watch is not None:
        watch.install(rename_seconds)
        dask.config.set(
            {"distributed.worker.preload": ["tests.support.faults"], "distributed.nanny.environ": {_MARKS: str(marks)}}
        )
    if server is not None:
        # Dask's own choice, new interpreters, costs seconds a worker. Workers are processes of their own either way.
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
        forkserver._forkserver._forkserver_address = server
        forkserver._forkserver.ensure_running = lambda: None  # it runs, as another process' child
    storage: dict[str, Any] = {"format": scenario.format, "features": scenario.features, "shapes_per_shard": 4}
    pipeline.build.driver.build_cache(
        CorpusConfig(uri=make_corpus(folder.parent), points=64, poses=scenario.poses),
        TINY_PROJECTION,
        tiny_teacher(folder.parent),
        CacheConfig(root=str(folder), name="c", **storage),
        BuildConfig(scheduler=scenario.scheduler, workers=scenario.workers, max_refused=1.0),
    )
    if watch is not None:
        watch.enter("done")


def dask_setup(worker: Any) -> None:
    """Called in each Dask worker that preloads this module."""
    watch = _Watch(Path(os.environ[_MARKS]))
    watch.install()
    watch.enter("wait")


def stages_of(marks: Path) -> dict[int, set[str]]:
    """For each process that left a file: the stages that one of its threads at least is, or was, in."""
    found = {}
    for path in marks.glob("*.stages"):
        data = path.read_bytes()
        if len(data) == _SIZE:
            counts = struct.unpack(_FORMAT, data)
            found[int(path.stem)] = {stage for stage, count in zip(STAGES, counts, strict=True) if count > 0}
    return found


_FORMAT = f"<{len(STAGES)}q"
_SIZE = struct.calcsize(_FORMAT)


class _Watch:
    """Counts this process' threads by stage. A thread is in the innermost stage it has entered."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{os.getpid()}.stages"
        path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._lock = threading.Lock()
        self._own = threading.local()
        self.enter("import")

    def enter(self, stage: str) -> None:
        """This thread has left the stage it was in for another."""
        inside = self._inside()
        if inside:
            self._add(inside.pop(), -1)
        inside.append(stage)
        self._add(stage, 1)

    @contextmanager
    def within(self, stage: str) -> Iterator[None]:
        """This thread is in `stage` until the end, then again where it was."""
        inside = self._inside()
        if inside:
            self._add(inside[-1], -1)
        inside.append(stage)
        self._add(stage, 1)
        try:
            yield
        finally:
            self._add(inside.pop(), -1)
            if inside:
                self._add(inside[-1], 1)

    def install(self, rename_seconds: float = 0.0) -> None:
        """Tell the stages of a build apart, by wrapping what the build calls in each."""
        import pipeline.build.driver
        import pipeline.build.shard
        import pipeline.build.worker
        from pipeline.teacher.tower import Teacher
        from teacher_cache.writer import CacheWriter

        self.enter("open")
        for owner, name, stage in (
            (pipeline.build.driver, "on_threads", "wait"),
            (pipeline.build.driver, "on_cluster", "wait"),
            (pipeline.build.worker, "_open", "open"),
            (pipeline.build.shard, "_read_group", "read"),
            (pipeline.build.shard, "_teach_group", "project"),
            (pipeline.build.shard, "render_views", "project"),
            (Teacher, "encode", "teach"),
            (pipeline.build.shard, "write_shard", "write"),
            (CacheWriter, "finish", "finish"),
        ):
            setattr(owner, name, self._wrapped(getattr(owner, name), stage))
        rename = os.replace

        def replace(*arguments: Any, **named: Any) -> None:
            if self._inside()[-1:] == ["write"]:  # from its first rename on, until it is written
                self.enter("commit")
            if rename_seconds and self._inside()[-1:] == ["commit"]:
                time.sleep(rename_seconds)
            rename(*arguments, **named)

        os.replace = replace  # type: ignore[assignment]

    def _wrapped(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            with self.within(stage):
                return function(*arguments, **named)

        return run

    def _inside(self) -> list[str]:
        if not hasattr(self._own, "stack"):
            self._own.stack = []
        stack: list[str] = self._own.stack
        return stack

    def _add(self, stage: str, change: int) -> None:
        at = 8 * STAGES.index(stage)
        with self._lock:
            (count,) = struct.unpack_from("<q", self._map, at)
            struct.pack_into("<q", self._map, at, count + change)


def cache_of(folder: Path) -> Path | None:
    """The one cache that `run_builder` makes below `folder`; None before it has begun."""
    found = [path for path in folder.glob("c-*") if path.is_dir()]
    assert len(found) <= 1, f"one recipe, and caches {found}"
    return found[0] if found else None


def check_unfinished(folder: Path, records: dict[str, Any]) -> int:
    """What a killed builder has committed reads back as in an undisturbed build; -> its shards.

    records  of the undisturbed build, by id.
    """
    import teacher_cache
    from teacher_cache.format.paths import RECIPE

    path = cache_of(folder)
    if path is None or not (path / RECIPE).exists():
        return 0
    cache = teacher_cache.open(path, allow_incomplete=True, threads=1)
    for record in cache:
        assert same_record(record, records[record.id]), f"{record.id} differs"
    return len(cache.counts)


def check_finished(folder: Path, expected: dict[str, str], ids: list[str]) -> None:
    """A finished cache is the undisturbed one: sound, each shape once, byte for byte, and nothing left lying about.

    expected, ids  files by their SHA-256, and ids, of the undisturbed build.
    """
    import teacher_cache
    from tests.support.builds import tree

    path = cache_of(folder)
    assert path is not None, "no cache was made"
    problems = teacher_cache.verify(path)
    assert not problems, f"verify: {problems}"
    cache = teacher_cache.open(path, threads=1)
    refused = [item.id for item in cache.info().quarantined]
    assert cache.complete
    assert cache.ids == ids
    assert len({*ids, *refused}) == len(ids) + len(refused), "a shape is there twice"
    assert len(ids) == (COUNT - BAD) * cache.poses, "a shape is lost"
    assert len(refused) == BAD
    assert not (path / "tmp").exists(), f"left behind: {list((path / 'tmp').iterdir())}"
    found = tree(path)
    assert found == expected, f"differ: {sorted(dict(found.items() ^ expected.items()))}"


def same_record(a: Any, b: Any) -> bool:
    """Equal to the bit."""
    names = ("points", "lo", "cell", "offset", "depth", "features", "saliency")
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)
    return bool(arrays and (a.id, a.label) == (b.id, b.label))
