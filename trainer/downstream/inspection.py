"""What can be seen of an encoder and its teacher, as arrays: for reports and notebooks. Nothing here draws.

import teacher_cache
from trainer.checkpoints.models import load_model
from trainer.downstream.inspection import choose_shapes, inspect_shapes

cache = teacher_cache.open("caches/synthetic-…")
model, header = load_model("runs/quickstart")
rows = choose_shapes(cache.ids, cache.labels)
seen = inspect_shapes(model, cache.read(rows), rows, image_side=cache.schema.image_side)
seen.shapes[0].levels[0].visible       # [G] bool: which of the finest tokens the student saw
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cuda.backproject import backproject
from cuda.geometry import ViewGeometry
from cuda.token_maps import TokenMaps
from teacher_cache.format.records import RecordBatch
from trainer.engine.augmentation import renormalised
from trainer.models.random_inputs import Draws
from trainer.models.student import Shown, Student

__all__ = [
    "Features",
    "Groups",
    "Inspected",
    "PrincipalAxes",
    "SeenShape",
    "Tokens",
    "choose_shapes",
    "confusion",
    "embedding_map",
    "inspect_shapes",
    "principal_axes",
    "teacher_at_points",
]

SHAPES = 12
PERCENTILES = (2.0, 98.0)  # of the samples, that span the range of colours
MOST_MAPPED = 2000  # shapes of an embedding map: t-SNE of so many takes some seconds
PERPLEXITY = 30.0


class Tokens(NamedTuple):
    """Tokens of one level of one shape: centres [G, 3] float32 in the student's frame, visible [G] bool."""

    centres: np.ndarray
    visible: np.ndarray


class Groups(NamedTuple):
    """Hidden neighbourhoods of one shape: truth and predicted [H, K, 3] float32, the student's frame."""

    truth: np.ndarray
    predicted: np.ndarray


class Features(NamedTuple):
    """Features at some points of one shape, means over the views.

    points            [P, 3] float32, the student's frame, each once
    truth, predicted  [P, C] float32, the teacher's, and the mean of what the student predicts for that point
    """

    points: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SeenShape:
    """One shape as teacher and student see it; what a student does not show is None (`Inspected.reasons`).

    id, label    of the record; label -1 for none
    points       [n, 3] float32, what the student is given: the first points of the record
    teacher      [n, C] float32, the teacher's features at these points, means over the views
    depth        [V, S, S] float32, the views, 0.5 where empty; None where the cache stores none
    saliency     [V, T] float32, the teacher's attention to each patch
    levels       finest first
    """

    id: str
    label: int
    points: np.ndarray
    teacher: np.ndarray
    depth: np.ndarray | None
    saliency: np.ndarray
    levels: list[Tokens] | None
    groups: Groups | None
    features: Features | None


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """Shapes as teacher and student see them, and why a student does not show "levels", "groups" or "features"."""

    shapes: list[SeenShape]
    reasons: Mapping[str, str]


def choose_shapes(ids: Sequence[str], labels: np.ndarray, count: int = SHAPES) -> np.ndarray:
    """Choose shapes to show: evenly across the classes that there are, and in a class by a hash of the id.

    ids     n names.   labels  [n] whole numbers, -1 for none, which counts as a class of its own.
    ->      [min(count, n)] int64, classes ascending.

    A function of the ids and labels alone, so every run on a corpus shows the same shapes.
    """
    labels = np.asarray(labels)
    if labels.shape != (len(ids),):
        raise ValueError(f"labels have shape {labels.shape} for {len(ids)} ids; expected one per id")
    if count < 1 or not len(ids):
        raise ValueError(f"count is {count} of {len(ids)} shapes; expected at least one of each")
    classes = np.unique(labels)
    if len(classes) > count:
        classes = classes[np.linspace(0, len(classes) - 1, count).round().astype(int)]
    queues = []
    for label in classes.tolist():
        members = np.flatnonzero(labels == label).tolist()
        queues.append(
            sorted(members, key=lambda row: hashlib.sha256(ids[row].encode("utf-8", "surrogatepass")).digest())
        )
    chosen: list[int] = []
    depth = 0
    while len(chosen) < min(count, sum(map(len, queues))):
        chosen += [queue[depth] for queue in queues if depth < len(queue)][: count - len(chosen)]
        depth += 1
    return np.array(sorted(chosen, key=lambda row: (labels[row], chosen.index(row))), np.int64)


def inspect_shapes(
    model: Student,
    batch: RecordBatch,
    records: np.ndarray,
    *,
    image_side: int,
    points: int = 0,
    renormalise: bool = True,
    device: torch.device | None = None,
) -> Inspected:
    """Run the student once over some records of its cache, as it is trained but without augmentation.

    batch        B records, with depth images where those are to be shown.
    records      [B] their numbers, from which the mask is drawn (seed 0, epoch 0): the same for every model of the same
                 tokens.
    image_side   S of the cache's schema.
    points       of each cloud the student is given, the first ones; 0: all that are stored.
    renormalise  centre and scale a cloud of fewer points than are stored, as trainer.renormalise says.

    Of a student with several teachers, the first one's features are shown. The model is left in the mode it was in.

    Raises ValueError where the cache's features do not fit the student.
    """
    device = torch.device("cpu") if device is None else device
    canonical = np.ascontiguousarray(batch.points[:, : points or None])
    cut = canonical.shape[1] < batch.points.shape[1]
    student = renormalised(canonical) if renormalise and cut else canonical
    geometry = ViewGeometry(*(torch.from_numpy(array) for array in (batch.lo, batch.cell, batch.offset)))
    maps = TokenMaps(torch.from_numpy(batch.features), torch.from_numpy(batch.saliency), geometry, image_side)
    teacher = teacher_at_points(maps, canonical)
    draws = Draws.for_records(records, model.config, seed=0, epoch=0)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            plan = model.plan(
                torch.from_numpy(student).to(device),
                torch.from_numpy(canonical).to(device),
                maps.to(device),
                draws.to(device),
                **_further(model, maps, device),
            )
            shown = model.show(plan, model.network(plan, None))
    finally:
        model.train(training)
    return Inspected(
        shapes=[
            SeenShape(
                id=batch.ids[row],
                label=int(batch.label[row]),
                points=student[row],
                teacher=teacher[row],
                depth=None if batch.depth is None else batch.depth[row],
                saliency=batch.saliency[row],
                levels=_levels_of(shown, row),
                groups=_groups_of(shown, row),
                features=_features_of(shown, row),
            )
            for row in range(len(batch.ids))
        ],
        reasons=dict(shown.reasons),
    )


def _further(model: Student, maps: TokenMaps, device: torch.device) -> dict[str, Any]:
    """Maps of zeros for further teachers: a plan asks for their targets, which nothing that is shown depends on."""
    teachers = getattr(model, "further", ())
    if not teachers:
        return {}
    B, _, T, _ = maps.features.shape
    blanks = [
        maps._replace(
            features=torch.zeros(B, teacher.views, T, teacher.channels), saliency=torch.zeros(B, teacher.views, T)
        ).to(device)
        for teacher in teachers
    ]
    return {"further": blanks}


def teacher_at_points(maps: TokenMaps, points: np.ndarray) -> np.ndarray:
    """Read the teacher's features at points [B, n, 3] float32 of the maps' frame, means over views: [B, n, C] float32.

    A cloud at a time: features of all views at once would be V times the result.
    """
    found = []
    for row in range(len(points)):
        geometry = ViewGeometry(*(part[row : row + 1] for part in maps.geometry))
        cloud = torch.from_numpy(points[row : row + 1])
        found.append(backproject(maps.features[row : row + 1], cloud, geometry, image_side=maps.image_side)[0].mean(1))
    return torch.stack(found).numpy()


def _numpy(tensor: Tensor) -> np.ndarray:
    array = tensor.detach().cpu()
    return (array.float() if array.is_floating_point() else array).numpy()


def _levels_of(shown: Shown, row: int) -> list[Tokens] | None:
    if shown.levels is None:
        return None
    return [Tokens(_numpy(level.centres[row]), _numpy(level.visible[row])) for level in shown.levels]


def _groups_of(shown: Shown, row: int) -> Groups | None:
    if shown.groups is None:
        return None
    mine = shown.groups.sample == row
    return Groups(_numpy(shown.groups.truth[mine]), _numpy(shown.groups.predicted[mine]))


def _features_of(shown: Shown, row: int) -> Features | None:
    if shown.features is None:
        return None
    mine = shown.features.sample == row
    points = _numpy(shown.features.points[mine])
    truth, predicted = (_numpy(part[mine].float().mean(1)) for part in (shown.features.truth, shown.features.predicted))
    unique, first, place = np.unique(points, axis=0, return_index=True, return_inverse=True)
    place = place.reshape(-1)
    sums = np.zeros((len(unique), predicted.shape[1]))
    np.add.at(sums, place, predicted)
    counts = np.bincount(place, minlength=len(unique))
    return Features(unique, truth[first], (sums / np.maximum(counts, 1)[:, None]).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class PrincipalAxes:
    """The three directions in which samples differ most, as colours.

    mean       [C] float64
    axes       [3, C] float64, orthonormal or 0; the sign makes the largest component positive
    low, high  [3] float64, the range that becomes 0..1
    kept       share of the samples' variance along the three, 0..1
    """

    mean: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray
    kept: float

    def colours(self, values: np.ndarray) -> np.ndarray:
        """Turn features [..., C] into colours [..., 3] float64 in 0..1."""
        along = (np.asarray(values, np.float64) - self.mean) @ self.axes.T
        width = np.where(self.high > self.low, self.high - self.low, 1.0)
        return np.clip(np.where(self.high > self.low, (along - self.low) / width, 0.5), 0.0, 1.0)


def principal_axes(samples: np.ndarray) -> PrincipalAxes:
    """Find the first three principal axes of samples [M, C], M >= 1, finite. Raises ValueError for a shape."""
    if samples.ndim != 2 or not len(samples):
        raise ValueError(f"samples have shape {samples.shape}; expected [M, C] with M >= 1")
    wide = samples.astype(np.float64)
    mean = wide.mean(axis=0)
    centred = wide - mean
    values, vectors = np.linalg.eigh(centred.T @ centred)  # ascending
    axes = np.zeros((3, samples.shape[1]))
    top = vectors.T[::-1][:3]
    axes[: len(top)] = top
    largest = np.abs(axes).argmax(axis=1)
    axes *= np.where(axes[np.arange(3), largest] < 0, -1.0, 1.0)[:, None]
    along = centred @ axes.T
    low, high = np.percentile(along, PERCENTILES, axis=0)
    total = float(np.maximum(values, 0).sum())
    kept = float(np.maximum(values[::-1][:3], 0).sum() / total) if total > 0 else 1.0
    return PrincipalAxes(mean=mean, axes=axes, low=low, high=high, kept=kept)


def embedding_map(features: np.ndarray, *, most: int = MOST_MAPPED) -> tuple[np.ndarray, np.ndarray]:
    """Lay features out in the plane by t-SNE (van der Maaten and Hinton 2008), begun from principal components.

    features  [m, D] float32, finite.
    ->        rows [k] int64 into m, ascending: all, or `most` evenly among them; their places [k, 2] float32.

    The features are standardised first, as the linear SVM's are. Distances within a neighbourhood mean something, those
    between far groups do not. Fewer than 4 shapes are laid out by principal components alone.
    """
    m = len(features)
    rows = np.unique(np.linspace(0, m - 1, min(m, most)).round().astype(np.int64))
    wide = features[rows].astype(np.float64)
    spread = wide.std(axis=0)
    wide = (wide - wide.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)
    left, scale, _ = np.linalg.svd(wide, full_matrices=False)
    signs = np.where(np.take_along_axis(left, np.abs(left).argmax(axis=0)[None], axis=0) < 0, -1.0, 1.0)
    reduced = (left * signs * scale)[:, :50]
    if len(rows) < 4 or not scale[0] > 0:
        places = np.zeros((len(rows), 2), np.float32)
        places[:, : reduced.shape[1]] = reduced[:, :2]
        return rows, places
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    start = reduced[:, :2] / max(float(reduced[:, 0].std()), 1e-12) * 1e-4
    if start.shape[1] < 2:
        start = np.hstack((start, np.zeros((len(rows), 1))))
    found = TSNE(perplexity=perplexity, init=start.astype(np.float32), random_state=0, n_jobs=1).fit_transform(
        reduced.astype(np.float32)
    )
    return rows, np.asarray(found, np.float32)


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count pairs of true and predicted classes, [n] whole numbers in 0..classes - 1 each -> [true, predicted] int64.

    Raises ValueError for other numbers or lengths.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.shape != predicted.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape}, predicted {predicted.shape}; expected [n] twice")
    for name, values in (("labels", labels), ("predicted", predicted)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"{name} are in {values.min()}..{values.max()}; expected 0..{classes - 1}")
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
