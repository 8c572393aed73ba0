"""The directory of a run and its lock."""

import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from teacher_cache.storage.atomic import read_regular, refuse_links, replace_file
from teacher_cache.system import open_file, try_lock
from trainer.engine.ranks import Ranks
from trainer.errors import TrainingError

__all__ = ["known_json", "owned", "write_json"]

logger = logging.getLogger(__name__)

_MAX_METRICS = 1 << 26  # bytes; a real file has some thousand
WRITTEN = ("checkpoints", "tensorboard", "failure")  # folders of a run, written into and removed from


@contextmanager
def owned(run_dir: Path, ranks: Ranks, prepare: Callable[[Path], None]) -> Iterator[None]:
    """Create the run directory and lock other runs out; the lock ends with the process, however that ends.

    prepare  called with the directory by rank 0 once the lock is held, before any rank continues.
    """
    if not ranks.main:
        ranks.wait()
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    for folder in WRITTEN:
        refuse_links(run_dir, run_dir / folder / "any")
    with os.fdopen(_lock_file(run_dir / ".lock"), "r+") as lock:
        if not try_lock(lock.fileno(), wait=False):
            raise TrainingError(
                f"another process is training in {run_dir}. Wait until it ends, or use another directory."
            )
        prepare(run_dir)
        ranks.wait()
        yield


def _lock_file(path: Path) -> int:
    """Open the lock file, created if absent; -> descriptor. Raises TrainingError for a link, pipe, device or folder."""
    try:
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT, 0o644, follow=False)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        descriptor = -1
    if descriptor < 0 or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        if descriptor >= 0:
            os.close(descriptor)
        raise TrainingError(
            f"{path}: expected the lock file of a run, found a link, a folder or a device.\n"
            "  Remove it, or use another directory."
        )
    return descriptor


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a small JSON file durably."""
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def known_json(path: Path, what: str) -> dict[str, Any]:
    """Load a small JSON file of a run; {} if it is missing, or damaged (which is warned of).

    what  the work whose result it holds, for the warning.
    """
    try:
        content = json.loads(read_regular(path, _MAX_METRICS))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        logger.warning("%s is incomplete and will be replaced; %s is repeated", path, what)
        return {}
    return content
