"""Small builds for tests, and what must not change between them."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pipeline.build.driver import BuildReport, build_cache
from pipeline.config import BuildConfig, CorpusConfig
from teacher_cache import CacheConfig
from teacher_cache.format.paths import VOLATILE
from tests.support.teachers import TINY_PROJECTION, tiny_teacher

COUNT = 23  # shapes: five shards of five, the last one partial
POINTS = 64


def small_build(
    folder: Path,
    *,
    corpus: str = f"synthetic:?count={COUNT}&seed=1",
    format: str = "zarr",
    scheduler: str = "threads",
    workers: int = 2,
    retries: int = 3,
    max_refused: float = 1.0,
    retry_refused: bool = False,
    poses: int = 1,
    teacher: dict[str, Any] | None = None,
    cache: dict[str, Any] | None = None,
    on_progress: Any = None,
    on_fit: Any = None,
    cold: bool = False,
) -> BuildReport:
    """Build a corpus with a random two-block teacher into `folder`/caches; a second call goes on with it.

    cold  workers of scheduler = "processes" are new interpreters, as Dask starts them, and not `warm_workers`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    storage = {"root": str(folder / "caches"), "format": format, "shapes_per_shard": 5} | (cache or {})
    with warm_workers() if scheduler == "processes" and not cold else nullcontext():
        return build_cache(
            CorpusConfig(uri=corpus, points=POINTS, poses=poses),
            TINY_PROJECTION,
            tiny_teacher(folder, **(teacher or {})),
            CacheConfig(**storage),
            BuildConfig(
                scheduler=scheduler,
                workers=workers,
                retries=retries,
                max_refused=max_refused,
                retry_refused=retry_refused,
            ),
            on_progress=on_progress,
            on_fit=on_fit,
        )


@contextmanager
def warm_workers() -> Iterator[None]:
    """Local Dask workers are forked from the server of `tests.support.faults.builders`, which has everything loaded.

    They are processes of their own as ever, with this one's environment; a new interpreter takes five seconds of CPU
    time, which say nothing about a build.
    """
    import dask

    from tests.support.faults import builders

    builders()
    method = {"distributed.worker.multiprocessing-method": "forkserver"}
    with dask.config.set(method | {"distributed.nanny.environ": dict(os.environ)}):
        yield


def tree(path: Path) -> dict[str, str]:
    """sha256 of every file of a cache that is part of it, by relative path: logs and temporaries are not."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = [file.relative_to(path).as_posix() for file in files]
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in zip(names, files, strict=True)
        if name.split("/")[0] not in VOLATILE
    }
