"""One shard from its shapes to its receipt: read, check, normalise, project, teach, encode, commit. No Dask here.

Shapes are taken in small groups, as many as fill one forward pass of the teacher, so memory is the shard's records and
one group. A group always holds the same shapes and each group runs on one thread, so a shard's bytes do not depend on
how many threads, workers or machines take part.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor

from cuda.geometry import ViewGeometry
from pipeline.config import ProjectionConfig
from pipeline.corpora import Corpus, Shape, ShapeError, normalise
from pipeline.errors import BuildError
from pipeline.plan import ShardTask
from pipeline.poses import in_pose, pose_id
from pipeline.teacher import Teacher
from pipeline.untouched import untouched_tokens
from pipeline.views import VIEWS, render_views
from teacher_cache.manifest import Receipt
from teacher_cache.records import Quarantined, TeacherRecord
from teacher_cache.writer import CacheHandle, write_shard

__all__ = ["STAGES", "BuildStopped", "ShardReport", "build_shard"]

STAGES = ("read", "project", "teacher", "write")


class BuildStopped(Exception):
    """The build was asked to stop while this shard was under way; nothing of the shard is kept."""


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """A committed shard. Small: it crosses from worker to driver.

    receipt  what is in it
    seconds  spent in each of STAGES, added up over threads; `write` is encoding, writing and committing
    wall     seconds from start to commit
    """

    receipt: Receipt
    seconds: dict[str, float]
    wall: float


@dataclass
class _Group:
    records: list[TeacherRecord]
    quarantined: list[Quarantined]
    seconds: dict[str, float]


def build_shard(
    task: ShardTask,
    corpus: Corpus,
    projection: ProjectionConfig,
    teacher: Teacher,
    handle: CacheHandle,
    *,
    poses: int = 1,
    threads: int = 1,
    device_lock: AbstractContextManager[object] | None = None,
    stop: threading.Event | None = None,
) -> ShardReport:
    """Build and commit one shard.

    poses        records of each shape, which stand together
    threads      groups in work at once; each computes on one core.
    device_lock  held while a group is projected and taught: for a GPU that several shards share.
    stop         checked before each group; once set, BuildStopped is raised and nothing is committed.

    Sets torch's number of threads to 1 when the teacher is on a CPU. Raises BuildError for teacher output that is not
    finite, and whatever the cache's writer raises. A ShapeError becomes a quarantine entry.
    """
    begun = perf_counter()
    size = max(1, teacher.batch_size // (VIEWS * poses))
    groups = [task.indices[start : start + size] for start in range(0, len(task.indices), size)]

    def run(indices: Sequence[int]) -> _Group:
        if stop is not None and stop.is_set():
            raise BuildStopped
        if teacher.device.type == "cpu":
            # A matrix product split over cores may round differently; and a core a group uses the cores as well.
            torch.set_num_threads(1)
        return _teach_group(indices, corpus, poses, projection, teacher, handle, device_lock or nullcontext())

    if threads > 1:
        with ThreadPoolExecutor(threads, thread_name_prefix=f"shard-{task.shard}") as pool:
            done = list(pool.map(run, groups))
    else:
        done = [run(indices) for indices in groups]

    started = perf_counter()
    records = [record for group in done for record in group.records]
    quarantined = [item for group in done for item in group.quarantined]
    receipt = write_shard(handle, task.shard, records, quarantined)
    now = perf_counter()
    seconds = {stage: sum(group.seconds.get(stage, 0.0) for group in done) for stage in STAGES}
    seconds["write"] = now - started
    return ShardReport(
        receipt=receipt, seconds={stage: round(seconds[stage], 4) for stage in STAGES}, wall=round(now - begun, 4)
    )


def _teach_group(
    indices: Sequence[int],
    corpus: Corpus,
    poses: int,
    projection: ProjectionConfig,
    teacher: Teacher,
    handle: CacheHandle,
    device_lock: AbstractContextManager[object],
) -> _Group:
    seconds: dict[str, float] = {}
    clock = perf_counter()
    ids, labels, clouds, quarantined = [], [], [], []
    for index in indices:
        try:
            shape = corpus[index]
            points = _canonical(shape, corpus.source(index))
        except ShapeError as error:
            quarantined.append(_quarantined(corpus.id(index), error, corpus.uri))
        else:
            for pose in range(poses):
                ids.append(pose_id(shape.id, pose))
                labels.append(-1 if shape.label is None else int(shape.label))
                clouds.append(in_pose(points, shape.id, pose))
    seconds["read"] = perf_counter() - clock
    if not clouds:
        return _Group([], quarantined, seconds)

    with device_lock:
        clock = perf_counter()
        views = render_views(torch.from_numpy(np.stack(clouds)).to(teacher.device), projection)
        depth, lo, cell, offset = (_array(tensor) for tensor in (views.depth, *views.geometry))
        seconds["project"] = perf_counter() - clock
        clock = perf_counter()
        features, saliency = (_array(tensor.unflatten(0, (-1, VIEWS))) for tensor in teacher.encode(views.images))
        seconds["teacher"] = perf_counter() - clock

    if handle.description.storage.untouched == "zero":
        stored = ViewGeometry(*(torch.from_numpy(part) for part in (lo, cell, offset)))
        side = projection.image_side // projection.patch_side
        features[untouched_tokens(np.stack(clouds), stored, image_side=projection.image_side, side=side)] = 0
    keep_depth = handle.description.storage.depth != "none"
    records = []
    for row, (id, label, points) in enumerate(zip(ids, labels, clouds, strict=True)):
        _check_finite(id, features[row], saliency[row])
        records.append(
            TeacherRecord(
                id=id,
                label=label,
                points=points,
                lo=lo[row],
                cell=cell[row],
                offset=offset[row],
                depth=depth[row] if keep_depth else None,
                features=features[row],
                saliency=saliency[row],
            )
        )
    return _Group(records, quarantined, seconds)


def _canonical(shape: Shape, source: str) -> np.ndarray:
    """The shape's points in the unit sphere; a cloud without extent is a ShapeError."""
    try:
        return normalise(shape.points)
    except ValueError as error:
        raise ShapeError(source, str(error)) from error


def _quarantined(id: str, error: ShapeError, uri: str) -> Quarantined:
    """The entry of a refused shape; with paths relative to the corpus, or manifests would differ by machine."""
    location = unquote(uri.partition(":")[2].partition("?")[0])
    source, reason = error.source, error.reason
    if location:
        given = Path(location).expanduser()
        for root in (given, given.resolve()):
            source = source.removeprefix(f"{root}/").removeprefix(f"{root.parent}/")
            if root.is_absolute():
                reason = reason.replace(f"{root}/", "")
    return Quarantined(id=id, source=source, reason=reason)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _check_finite(id: str, features: np.ndarray, saliency: np.ndarray) -> None:
    bad = int((~np.isfinite(features)).sum() + (~np.isfinite(saliency)).sum())
    if bad:
        raise BuildError(
            f"shape {id!r}: {bad} numbers of the teacher's output are not finite; its points were, so the "
            "teacher is at fault.\n  Check its weights, or set teacher.precision = float32."
        )
