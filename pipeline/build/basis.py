"""Fitting of a cache's basis on a sample of the corpus, for features stored in fewer channels than the teacher's.

Letters as in teacher_cache.basis: C channels as stored, F channels of the teacher.

The sample is the first usable shapes in the order of a hash of their ids, so it depends neither on the order of the
corpus nor on that of the work. Each group of the sample is encoded on one thread and its moments are added in order, so
the number of threads has no effect either. Only tokens that some lookup reads count, since no others are ever a target.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cuda.untouched import untouched_tokens
from pipeline.build.lanes import Lanes
from pipeline.build.poses import in_pose
from pipeline.config import ProjectionConfig
from pipeline.corpora import Corpus, ShapeError, normalise
from pipeline.errors import BuildError
from pipeline.teacher.tower import Teacher
from pipeline.views import VIEWS, render_views
from teacher_cache.format.basis import Basis

__all__ = ["fit_basis", "principal", "sample_order"]

_REASONS_SHOWN = 5

Moments = tuple[int, Tensor, Tensor]
"""Number of features, their sum [F] and the sum of their outer products [F, F], float64."""


def fit_basis(
    corpus: Corpus,
    ids: Sequence[str],
    projection: ProjectionConfig,
    teacher: Teacher,
    *,
    channels: int,
    sample: int,
    poses: int = 1,
    threads: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Basis:
    """Fit the principal components of the teacher's features on a sample of a corpus.

    ids          of the whole corpus, in its order.
    channels     C, at most the teacher's.
    sample       records to fit on; each shape contributes `poses` of them. All shapes if there are fewer.
    poses        per shape; all of them count.
    threads      that teach, where the teacher is on a CPU.
    on_progress  called with (shapes done, shapes wanted) in the calling thread.

    The same for the same shapes, settings and teacher. Holds one F x F matrix, and one more for each thread.
    Raises BuildError for a corpus without one usable shape and for teacher output that is not finite.
    """
    shapes = min(len(ids), max(1, sample // poses))
    size = max(1, teacher.batch_size // (VIEWS * poses))  # shapes, as a shard's groups have
    on_cpu = teacher.device.type == "cpu"
    lanes = Lanes(threads if on_cpu else 1)
    F = teacher.channels
    total: Moments = (0, torch.zeros(F, dtype=torch.float64), torch.zeros(F, F, dtype=torch.float64))
    pending: deque[tuple[int, Future[Moments]]] = deque()
    done = 0
    torch_threads = torch.get_num_threads()  # lanes set it, and it holds for the whole process

    def take() -> None:
        nonlocal total, done
        count, future = pending.popleft()
        moments = future.result()
        total = (total[0] + moments[0], total[1] + moments[1], total[2] + moments[2])
        done += count
        if on_progress is not None:
            on_progress(done, shapes)

    try:
        for clouds in _groups(corpus, ids, size, shapes, poses):
            call = partial(_moments, np.stack(clouds), projection, teacher)
            pending.append((len(clouds) // poses, lanes.submit(0, call)))
            if len(pending) > lanes.count:
                take()
        while pending:
            take()
        return lanes.submit(0, partial(principal, total, channels, done)).result()
    finally:
        lanes.close()
        torch.set_num_threads(torch_threads)


def principal(moments: Moments, channels: int, shapes: int) -> Basis:
    """Compute the leading principal components of features from their moments. Sets torch's number of threads to 1.

    The entry of largest magnitude in each component (the first of equals) is positive, which fixes the sign.

    Raises BuildError for moments that are not finite.
    """
    torch.set_num_threads(1)  # a decomposition on several threads may round differently
    count, first, second = moments
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise BuildError(
            "the teacher's output on the sample of cache.channels has values that are not finite, although the points "
            "are.\n"
            "  Check the teacher's weights, or set teacher.precision = float32."
        )
    mean = first / count
    values, vectors = torch.linalg.eigh(second / count - torch.outer(mean, mean))
    spread = values.flip(0).clamp(min=0)
    rows = vectors.flip(1).T[:channels]
    greatest = rows.abs().argmax(dim=1, keepdim=True)
    rows = rows * rows.gather(1, greatest).sign()
    return Basis(
        mean=mean.float().numpy(),
        components=np.ascontiguousarray(rows.float().numpy()),
        variance=tuple(spread[:channels].tolist()),
        total_variance=float(spread.sum()),
        shapes=shapes,
    )


def sample_order(ids: Sequence[str]) -> np.ndarray:
    """Return the indices of all shapes [n] int64 in sampling order: by a hash of their ids."""
    digests = (hashlib.sha256(b"basis\0" + id.encode("utf-8", "surrogatepass")).digest()[:16] for id in ids)
    keys = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2)
    return np.lexsort((keys[:, 1], keys[:, 0]))


def _groups(corpus: Corpus, ids: Sequence[str], size: int, shapes: int, poses: int) -> Iterator[list[np.ndarray]]:
    """Yield clouds of the first so many usable shapes in sampling order, as many shapes at a time."""
    clouds: list[np.ndarray] = []
    used, refused = 0, []
    for index in sample_order(ids).tolist():
        try:
            shape = corpus[index]
        except ShapeError as error:
            refused.append(str(error))
            continue
        try:
            points = normalise(shape.points)
        except ValueError as error:
            refused.append(f"{corpus.source(index)}: {error}")
            continue
        clouds += [in_pose(points, shape.id, pose) for pose in range(poses)]
        used += 1
        if len(clouds) == size * poses or used == shapes:
            yield clouds
            clouds = []
        if used == shapes:
            return
    if clouds:
        yield clouds
    if not used:
        shown = "\n  ".join(refused[:_REASONS_SHOWN])
        raise BuildError(
            "the corpus has no shapes; check corpus.uri"
            if not refused
            else f"none of the {len(refused)} shapes of the corpus can be used; the first are\n  {shown}"
        )


def _moments(clouds: np.ndarray, projection: ProjectionConfig, teacher: Teacher) -> Moments:
    """Compute the moments of a group's features that lookups read, in a lane."""
    if teacher.device.type == "cpu":
        torch.set_num_threads(1)
    views = render_views(torch.from_numpy(clouds).to(teacher.device), projection)
    features = teacher.encode(views.images)[0].unflatten(0, (-1, VIEWS)).cpu()
    geometry = type(views.geometry)(*(part.cpu() for part in views.geometry))
    side = projection.image_side // projection.patch_side
    untouched = untouched_tokens(clouds, geometry, image_side=projection.image_side, side=side)
    read = features[torch.from_numpy(~untouched)].double()
    return len(read), read.sum(0), read.T @ read
