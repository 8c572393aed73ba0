"""Sizes that no cache has, in files and in what documents say: refused before memory is taken for them."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import ShardDamaged
from teacher_cache.testing import tree
from tests.support.forge import forge
from tests.support.victims import Victim, read_all, try_everything


def test_absurd_sizes_are_refused_in_little_memory(victim: Victim) -> None:
    """In a process that may not have 600 MB more: files of a terabyte, and sizes up to what a manifest may say."""
    code = f"from tests.faults.test_absurd import be_absurd; be_absurd({str(victim.path)!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    finally:
        victim.restore()


def be_absurd(cache: str) -> None:
    """The body of that process."""
    path = Path(cache)
    opened = teacher_cache.open(path, threads=1)
    config = CacheConfig.from_storage(dict(opened.recipe.storage))
    list(opened)  # what a reader needs in any case
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + 600 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sound = tree(path)
    for names, change in absurd(sound, config):
        for name in names:
            if change is None:
                os.truncate(path / name, 2**40)
            else:
                forge(path / name, change)
        assert try_everything(path, config), (names, "was not refused")
        if change is None and not names[0].endswith(".json"):  # for its length, not because memory ran out
            with pytest.raises(ShardDamaged, match=re.escape(names[0])):
                read_all(path)
        for name in names:
            (path / name).write_bytes(sound[name])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < 100 * 2**10, f"{grown} kB more were used"


def absurd(sound: dict[str, bytes], config: CacheConfig) -> Iterator[tuple[list[str], Any]]:
    """(files, change of their documents; None: they get a length of a terabyte)."""

    def schema(**sizes: int) -> Any:
        return lambda document: document["schema"].update(sizes)

    def rows(document: dict[str, Any]) -> None:
        document["recipe"]["storage"]["shapes_per_shard"] = 65536

    # Zarr's metadata and its mask are written for others and never read here.
    yield from (([name], None) for name in sound if not name.endswith("zarr.json") and not name.startswith("valid"))
    both = ["manifest.json", "recipe.json"]
    yield both, schema(points=2**26)
    yield both, schema(channels=2**20)
    yield both, schema(image_side=2**14, patch_side=2**14)
    yield both, schema(image_side=2**14, patch_side=1, channels=1)
    yield both, rows
    yield both, lambda document: (rows(document), schema(views=2**12)(document))
