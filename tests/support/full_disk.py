"""Real disks that are too small: tmpfs mounts in a mount namespace of their own, which ends with its process.

`on_small_disks` is what a test calls; everything below the second line of dashes runs in the other process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["may_mount", "on_small_disks"]

ROOT = Path(__file__).resolve().parents[2]
COUNT = 4
PAGE = 4096


def may_mount(folder: Path) -> bool:
    """Whether a process here may mount a tmpfs, at least in a user namespace of its own."""
    folder.mkdir()
    tried = subprocess.run([*_alone(), "mount", "-t", "tmpfs", "none", folder], capture_output=True, check=False)
    return tried.returncode == 0


def on_small_disks(folder: Path, kind: str, format: str) -> list[dict[str, Any]]:
    """What happened on each disk, one page larger each ("pages") or by one file more ("inodes"), up to one that held.

    Each has `size`, and `said`: the error of the build that met the limit, None where there was none. Raises
    AssertionError where the rerun on the enlarged disk fails or leaves other bytes than a build that met no limit.
    """
    done = subprocess.run(
        [*_alone(), sys.executable, "-m", "tests.support.full_disk", folder, kind, format],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"after {done.stdout.splitlines()[-1:]}:\n{done.stderr[-3000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def _alone() -> Sequence[str]:
    return ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]


# ----------------------------------------------------------------------------------------------------------------------


def _main(folder: Path, kind: str, format: str) -> None:
    from teacher_cache import verify
    from teacher_cache.config import CacheConfig
    from teacher_cache.testing import build, tree

    config = CacheConfig(format=format, shapes_per_shard=3)  # type: ignore[arg-type]
    build(folder / "whole", config, count=COUNT)
    expected = tree(folder / "whole")
    disk = folder / "disk"
    disk.mkdir()
    size = 1 if kind == "pages" else 2  # of inodes, the root of the disk is the first
    while True:
        limit = f"size={size * PAGE}" if kind == "pages" else f"nr_inodes={size}"
        _mount("-t", "tmpfs", "-o", limit, "none", disk)
        said = None
        try:
            build(disk / "c", config, count=COUNT)
        except OSError as error:
            said = os.strerror(error.errno or 0)
        print(json.dumps({"size": size, "said": said}), flush=True)
        _mount("-o", "remount,size=64m,nr_inodes=4096", disk)
        build(disk / "c", config, count=COUNT)
        assert tree(disk / "c") == expected, "other bytes"
        assert not (disk / "c" / "tmp").exists()
        assert verify(disk / "c", threads=1) == []
        subprocess.run(["umount", disk], check=True)
        if said is None:
            break
        size += 1


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
