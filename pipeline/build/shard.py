"""Build of one shard: read, check, normalise, project, encode with the teacher, compress, commit. No Dask here.

Shapes are taken in small groups, as many as fill one forward pass of the teacher. The shard's own thread reads them and
hands each group to the lanes, which project and teach; when all are taught it writes. So memory is the shard's clouds
and records. A group always holds the same shapes and each group runs on one thread, so a shard's bytes do not depend
on how many lanes, workers or machines take part.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from cuda.geometry import ViewGeometry
from cuda.untouched import untouched_tokens
from pipeline.build.changes import made_of, settled, stamps_digest
from pipeline.build.lanes import Lanes
from pipeline.build.plan import ShardTask
from pipeline.build.poses import in_pose, pose_id
from pipeline.config import ProjectionConfig
from pipeline.corpora import Corpus, CorpusError, MachineFault, Shape, ShapeError, UnreadHere, normalise
from pipeline.corpora.faults import machine_fault_in, patiently
from pipeline.corpora.uri import place_of
from pipeline.errors import BuildError
from pipeline.teacher.channels import in_basis
from pipeline.teacher.tower import Teacher
from pipeline.views import VIEWS, render_views
from teacher_cache.format.basis import Basis
from teacher_cache.format.manifest import Receipt
from teacher_cache.format.records import Quarantined, TeacherRecord
from teacher_cache.writer import CacheHandle, write_shard

__all__ = ["STAGES", "BuildStopped", "ShardReport", "build_shard", "read_shape"]

STAGES = ("read", "project", "teacher", "write")


class BuildStopped(Exception):
    """The build was asked to stop during this shard; nothing of the shard is kept."""


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """A committed shard. Small: it is sent from worker to driver.

    receipt  what is in it
    stamps   `stamps_digest` of its shapes' files as they were read; "" where shapes have no files, or brand-new ones
    seconds  spent in each of STAGES, added up over threads; `write` is zeroing, encoding, writing and committing
    wall     seconds from start to commit
    """

    receipt: Receipt
    stamps: str
    seconds: dict[str, float]
    wall: float


@dataclass(kw_only=True)
class _Group:
    """Shapes of one forward pass as they were read: `poses` entries per usable shape."""

    ids: list[str]
    labels: list[int]
    clouds: list[np.ndarray]
    quarantined: list[Quarantined]
    shapes: list[tuple[str, str]]
    stamps: list[str | None]


def build_shard(
    task: ShardTask,
    corpus: Corpus,
    projection: ProjectionConfig,
    teacher: Teacher,
    handle: CacheHandle,
    lanes: Lanes,
    *,
    poses: int = 1,
    basis: Basis | None = None,
    device_lock: AbstractContextManager[object] | None = None,
    stop: threading.Event | None = None,
) -> ShardReport:
    """Build and commit one shard.

    lanes        threads that project and run the teacher; each group computes on one core. Never call this from a lane.
    poses        records of each shape, which stand together
    basis        that features are stored in; None: in the teacher's own channels
    device_lock  held while a group is projected and taught: for a GPU that several shards share.
    stop         checked before each group; once set, BuildStopped is raised and nothing is committed.

    A lane sets torch's number of threads to 1 when the teacher is on a CPU. Raises BuildError for teacher output that
    is not finite, and whatever the cache's writer raises. A ShapeError becomes a quarantine entry; a
    MachineFault never does.
    """
    begun = perf_counter()
    seconds = dict.fromkeys(STAGES, 0.0)
    size = max(1, teacher.batch_size // (VIEWS * poses))
    records: list[TeacherRecord] = []
    quarantined: list[Quarantined] = []
    shapes: list[tuple[str, str]] = []
    stamps: list[str | None] = []
    taught: list[Future[tuple[list[TeacherRecord], dict[str, float]]]] = []
    try:
        for start in range(0, len(task.indices), size):
            clock = perf_counter()
            _check_stop(stop)
            group = _read_group(task.indices[start : start + size], corpus, poses)
            quarantined += group.quarantined
            shapes += group.shapes
            stamps += group.stamps
            seconds["read"] += perf_counter() - clock
            if group.clouds:
                call = partial(
                    _teach_group, group, projection, teacher, basis, handle, device_lock or nullcontext(), stop
                )
                taught.append(lanes.submit(task.shard, call))
        # In the order of submission, not of completion: records keep the task's order whatever lane ends first.
        for future in taught:
            some, spent = future.result()
            records += some
            for stage, value in spent.items():
                seconds[stage] += value
    except BaseException:
        for future in taught:
            future.cancel()
        raise
    clock = perf_counter()
    receipt = write_shard(handle, task.shard, records, quarantined, shapes=shapes)
    now = perf_counter()
    seconds["write"] += now - clock
    return ShardReport(
        receipt=receipt,
        stamps=stamps_digest(zip((id for id, _ in shapes), stamps, strict=True)),
        seconds={stage: round(seconds[stage], 4) for stage in STAGES},
        wall=round(now - begun, 4),
    )


def _check_stop(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise BuildStopped


def _read_group(indices: Sequence[int], corpus: Corpus, poses: int) -> _Group:
    group = _Group(ids=[], labels=[], clouds=[], quarantined=[], shapes=[], stamps=[])
    for index in indices:
        stamp = corpus.stamp(index)
        made, file_stamp, final = made_of(corpus, index), settled(stamp), True
        try:
            shape, points = patiently(partial(read_shape, corpus, index), corpus.source(index))
        except ShapeError as error:
            group.quarantined.append(_quarantined(corpus.id(index), error, corpus.uri))
            # The installed libraries decided, not the shape's content: without a fingerprint it is tried again.
            final = not isinstance(error, UnreadHere)
        else:
            for pose in range(poses):
                group.ids.append(pose_id(shape.id, pose))
                group.labels.append(-1 if shape.label is None else int(shape.label))
                group.clouds.append(in_pose(points, shape.id, pose))
        if corpus.stamp(index) != stamp:  # the file may have changed between hashing and reading
            made_of(corpus, index)  # raises MachineFault itself if the disk went away
            raise MachineFault(corpus.source(index), "it changed while it was being read", "Run the build again.")
        if final:
            group.shapes.append((corpus.id(index), made))
            group.stamps.append(file_stamp)
    return group


def _teach_group(
    group: _Group,
    projection: ProjectionConfig,
    teacher: Teacher,
    basis: Basis | None,
    handle: CacheHandle,
    device_lock: AbstractContextManager[object],
    stop: threading.Event | None,
) -> tuple[list[TeacherRecord], dict[str, float]]:
    """Project and encode one group, in a lane -> its records, and seconds by stage."""
    _check_stop(stop)
    if teacher.device.type == "cpu":
        # A matrix product split over cores may round differently; and a core a group uses the cores as well.
        torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    stacked = np.stack(group.clouds)
    with device_lock:
        clock = perf_counter()
        views = render_views(torch.from_numpy(stacked).to(teacher.device), projection)
        depth, lo, cell, offset = (_array(tensor) for tensor in (views.depth, *views.geometry))
        seconds["project"] = perf_counter() - clock
        clock = perf_counter()
        class_tokens = None
        if handle.description.storage.class_token == "none":
            tokens, attention = teacher.encode(views.images)
        else:
            tokens, attention, class_tokens = teacher.encode_views(views.images)
        if basis is not None:
            tokens = in_basis(tokens, basis)
            # Image by image, like the teacher's: a shape's bytes must not depend on its batch.
            if class_tokens is not None:
                class_tokens = torch.stack([in_basis(image, basis) for image in class_tokens])
        features, saliency = (_array(tensor.unflatten(0, (-1, VIEWS))) for tensor in (tokens, attention))
        class_token = None if class_tokens is None else _array(class_tokens.unflatten(0, (-1, VIEWS)))
        seconds["teacher"] = perf_counter() - clock
    clock = perf_counter()
    if handle.description.storage.untouched == "zero":
        stored = ViewGeometry(*(torch.from_numpy(part) for part in (lo, cell, offset)))
        side = projection.image_side // projection.patch_side
        features[untouched_tokens(stacked, stored, image_side=projection.image_side, side=side)] = 0
    keep_depth = handle.description.storage.depth != "none"
    records = []
    for row, (id, label, points) in enumerate(zip(group.ids, group.labels, group.clouds, strict=True)):
        _check_finite(id, features[row], saliency[row], *(() if class_token is None else (class_token[row],)))
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
                class_token=None if class_token is None else class_token[row],
            )
        )
    seconds["write"] = perf_counter() - clock
    return records, seconds


def read_shape(corpus: Corpus, index: int) -> tuple[Shape, np.ndarray]:
    """Read a shape and its points in the unit sphere.

    Raises ShapeError, also for a cloud without extent, and MachineFault. Any other exception of a reader is a bug and
    becomes a BuildError that names the shape.
    """
    source = corpus.source(index)
    try:
        shape = corpus[index]
    except (ShapeError, CorpusError):
        raise
    except Exception as error:
        if machine_fault_in(error) is not None:
            raise
        raise BuildError(
            f"shape {corpus.id(index)!r} ({source}): its reader failed with {type(error).__name__}: {error}.\n"
            "  This is a bug of the reader, not a fault of the file; please report it. To build without this shape, "
            "move its file out of the corpus."
        ) from error
    try:
        return shape, normalise(shape.points)
    except ValueError as error:
        raise ShapeError(source, str(error)) from error


def _quarantined(id: str, error: ShapeError, uri: str) -> Quarantined:
    """Return a refused shape's entry; paths are relative to the corpus, or manifests would differ by machine."""
    given = place_of(uri)
    source, reason = error.source, error.reason
    if given is not None:
        for root in (given, given.resolve()):
            source = source.removeprefix(f"{root}/").removeprefix(f"{root.parent}/")
            if root.is_absolute():
                reason = reason.replace(f"{root}/", "")
    return Quarantined(id=id, source=source, reason=reason)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _check_finite(id: str, *outputs: np.ndarray) -> None:
    bad = sum(int((~np.isfinite(array)).sum()) for array in outputs)
    if bad:
        raise BuildError(
            f"shape {id!r}: {bad} values of the teacher's output are not finite, although the points are.\n"
            "  Check the teacher's weights, or set teacher.precision = float32."
        )
