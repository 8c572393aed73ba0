"""Caches to be attacked, and everything that may then be tried with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError
from teacher_cache.reading.stream import stream
from teacher_cache.testing import SMALL_SCHEMA, build, make_recipe, tree

__all__ = ["CONFIGS", "GOOD", "R", "Victim", "read_all", "try_everything"]

COUNT, GOOD, R = 4, 3, 2  # shapes, records, records of a full shard: shard 0 is full, shard 1 holds one of each
CONFIGS = {
    f"{format}-{compression}-{features}": CacheConfig(
        format=format,  # type: ignore[arg-type]
        compression=compression,  # type: ignore[arg-type]
        features=features,  # type: ignore[arg-type]
        shapes_per_shard=R,
    )
    for format in ("zarr", "webdataset")
    for compression, features in (("zstd", "int8"), ("none", "float16"))
}


class Victim:
    """A finished cache whose files are put back after each attack."""

    def __init__(self, path: Path, config: CacheConfig) -> None:
        self.path, self.config = path, config
        build(path, config, count=COUNT, bad=[3])
        self.files = tree(path)

    def restore(self) -> None:
        for path in self.path.rglob("*"):
            if path.is_file() and path.relative_to(self.path).as_posix() not in self.files:
                path.unlink()
        for name, data in self.files.items():
            (self.path / name).write_bytes(data)


def read_all(path: Path) -> None:
    cache = teacher_cache.open(path, threads=1)
    cache.read(range(len(cache)), depth=True)


def try_everything(path: Path, config: CacheConfig) -> int:
    """Open, read, iterate, stream, verify, list, go on building; -> how often that was refused, by a CacheError."""
    said: list[str] = []

    def attempt(what: Callable[[], Any]) -> Any:
        try:
            return what()
        except CacheError as error:
            said.append(str(error))
            return None

    def drain(cache: teacher_cache.Cache, damaged: Any) -> None:
        with stream(cache, batch_size=1, damaged=damaged, readers=0) as batches:
            for _ in batches:
                pass

    def read(cache: teacher_cache.Cache) -> None:
        batch = cache.read(range(len(cache)), depth=cache.stores_depth)
        for name, shape in cache.schema.shapes.items():
            array = getattr(batch, name)
            assert array is None or array.shape == (len(cache), *shape)
        assert all(isinstance(id, str) for id in batch.ids)

    caches = [attempt(lambda: teacher_cache.open(path, threads=1))]
    manifest, aside = path / "manifest.json", path.parent / "aside"
    manifest.rename(aside)
    caches.append(attempt(lambda: teacher_cache.open(path, allow_incomplete=True, threads=1)))
    attempt(lambda: _go_on(path, config))
    manifest.unlink(missing_ok=True)
    aside.rename(manifest)
    for cache in caches:
        if cache is None:
            continue
        attempt(lambda cache=cache: read(cache))
        attempt(lambda cache=cache: list(cache))
        for name in ("ids", "labels", "poses", "stores_depth"):
            attempt(lambda cache=cache, name=name: getattr(cache, name))
        info = cache.info()
        assert (info.records, repr(cache) != "") == (len(cache), True)
        for damaged in ("raise", "skip") if len(cache) else ():
            attempt(lambda cache=cache, damaged=damaged: drain(cache, damaged))
    attempt(lambda: teacher_cache.verify(path, threads=1))
    teacher_cache.list_caches(path.parent)
    assert all(said), "an error without words"
    return len(said)


def _go_on(path: Path, config: CacheConfig) -> None:
    """What the driver of a build does with a cache that it finds."""
    writer = teacher_cache.create_cache(path, make_recipe(config), SMALL_SCHEMA, config, label_names=list("abcde"))
    writer.committed()
    writer.finish(planned=COUNT)
