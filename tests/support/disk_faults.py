"""A disk that fails at one chosen call: a small library, preloaded into a process of its own, that counts and refuses.

`sweep` is what a test calls. The process builds a cache once for each call to the file system that a build makes; in
the n-th build, the n-th call fails. After each, it builds again on a disk that is well.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["sweep"]

SOURCE = Path(__file__).with_name("disk_faults.c")
COUNT = 4
SECONDS = 20  # for one build; one that waits for a lock that nobody frees takes longer


def sweep(folder: Path, format: str, error: int, *, full: bool, stride: int = 1) -> list[dict[str, Any]]:
    """What happened where call n failed, for n = 0, stride, ...: `call`, `raised` (None: the build went through),
    `finished` (there is a manifest).

    error  the errno of the failing call
    full   every later call that needs space fails as well

    Raises AssertionError when a rerun fails, hangs, or leaves other bytes.
    """
    library = folder / "disk_faults.so"
    subprocess.run(
        ["g++", "-x", "c", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", SOURCE, "-o", library, "-ldl"],
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.disk_faults", folder, format, str(error), str(int(full)), str(stride)],
        env=os.environ | {"LD_PRELOAD": str(library)},
        cwd=SOURCE.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"after {done.stdout.splitlines()[-1:]}:\n{done.stderr[-3000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def _main(folder: Path, format: str, error: int, full: int, stride: int) -> None:
    from teacher_cache import verify
    from teacher_cache.config import CacheConfig
    from teacher_cache.testing import build, tree

    faults = ctypes.CDLL(None)  # the preloaded library's functions are the process' own
    faults.fault_arm.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_int]
    faults.fault_calls.restype = ctypes.c_long
    config = CacheConfig(format=format, shapes_per_shard=3)  # type: ignore[arg-type]
    build(folder / "whole", config, count=COUNT)
    expected = tree(folder / "whole")
    call = 0
    while True:
        path = folder / f"{format}-{call}"
        faults.fault_root(os.fsencode(path))
        raised = None
        signal.alarm(SECONDS)
        faults.fault_arm(call, error, full)
        try:
            build(path, config, count=COUNT)
        except OSError as caught:
            raised = caught.errno
        calls = faults.fault_calls()
        faults.fault_arm(-1, 0, 0)
        print(json.dumps({"call": call, "raised": raised, "finished": (path / "manifest.json").exists()}), flush=True)
        check_committed(path, config)
        if raised is None and (path / "manifest.json").exists():  # what says that it is whole must be
            assert {name: (path / name).read_bytes() for name in expected} == expected, "bytes are missing"
        build(path, config, count=COUNT)
        signal.alarm(0)
        assert tree(path) == expected, "other bytes"
        assert not (path / "tmp").exists()
        assert verify(path, threads=1) == []
        if calls <= call:
            break
        call += stride


def check_committed(path: Path, config: Any) -> None:
    """Whatever counts as committed reads back as it was given."""
    import teacher_cache
    from teacher_cache.testing import assert_same_record, make_record

    if (path / "recipe.json").exists():
        for record in teacher_cache.open(path, allow_incomplete=True, threads=1):
            assert_same_record(record, make_record(int(record.id[-5:])), config)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
