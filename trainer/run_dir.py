"""The directory a run owns while it lasts, and what it leaves there when it fails."""

import errno
import fcntl
import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from teacher_cache.commit import read_regular, refuse_links, replace_file
from trainer import checkpoint
from trainer.data import Part
from trainer.distributed import Ranks
from trainer.errors import TrainingError
from trainer.step import Outcome

__all__ = ["known_json", "not_finite", "owned", "save_batch", "write_json"]

logger = logging.getLogger(__name__)

_MAX_METRICS = 1 << 26  # bytes; a real file has some thousand
WRITTEN = ("checkpoints", "tensorboard", "failure")  # folders of a run, written into and removed from


@contextmanager
def owned(run_dir: Path, ranks: Ranks) -> Iterator[None]:
    """Make the run directory and keep other runs out of it; the lock ends with the process, however that ends."""
    if not ranks.main:
        ranks.wait()
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    for folder in WRITTEN:
        refuse_links(run_dir, run_dir / folder / "any")
    with os.fdopen(_lock_file(run_dir / ".lock"), "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"another process is training in {run_dir}; expected to be the only one. "
                "Wait for it to end, or use another directory."
            ) from None
        checkpoint.clean_leftovers(run_dir)
        checkpoint.set_damaged_aside(run_dir)
        ranks.wait()
        yield


def _lock_file(path: Path) -> int:
    """A descriptor of the lock file, made if absent. Raises TrainingError for a link, pipe, device or folder."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o644)
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
    """Replace a small JSON file, durably."""
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def known_json(path: Path, what: str) -> dict[str, Any]:
    """Load a small JSON file of a run; {} where there is none, or where it is not whole (a warning names it then).

    what  the work whose result it holds.
    """
    try:
        content = json.loads(read_regular(path, _MAX_METRICS))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        logger.warning("%s is not whole, and written anew; %s is done again", path, what)
        return {}
    return content


def not_finite(
    folder: Path, rank: int, parts: Sequence[Part], outcome: Outcome, facts: Mapping[str, Any]
) -> TrainingError:
    """Save the batch of a step that blew up -> the error to raise.

    facts  epoch, counted from 0, step, counted from 1, and learning_rate.
    """
    save_batch(folder, rank, parts, facts)
    ids = [id for part in parts for id in part.ids]
    shown = ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
    return TrainingError(
        f"the loss is not finite in step {facts['step']} (epoch {facts['epoch'] + 1}): loss_3d {outcome.loss_3d}, "
        f"loss_2d {outcome.loss_2d}, loss_global {outcome.loss_global}, gradient norm {outcome.gradient_norm}, "
        f"learning rate {facts['learning_rate']:.3g}; shapes {shown}.\n"
        f"The batch is saved in {folder}. Lower trainer.learning_rate, set trainer.clip_gradient, or use float32; "
        "the last checkpoint is not touched."
    )


def save_batch(folder: Path, rank: int, parts: Sequence[Part], facts: Mapping[str, Any]) -> None:
    """Leave one rank's share of a batch for whoever wants to find out what is wrong with it.

    rankR.safetensors: `<part>/<what>` for points, points_canonical, mask, drop_path, the teacher's maps and, with a
    global loss, whole;
    rankR.json: `facts` and the shapes' ids.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        found = {"points": part.points, "points_canonical": part.points_canonical, **part.draws._asdict()}
        if part.maps is not None:
            found |= {"features": part.maps.features, "saliency": part.maps.saliency, **part.maps.geometry._asdict()}
        if part.whole is not None:
            found["whole"] = part.whole
        tensors |= {f"{number}/{name}": value.cpu().contiguous() for name, value in found.items()}
    replace_file(folder / f"rank{rank}.safetensors", save(tensors))
    write_json(folder / f"rank{rank}.json", {**facts, "ids": [id for part in parts for id in part.ids]})
