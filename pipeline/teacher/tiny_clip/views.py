"""Training images, rendered in advance: blocks of views in NPZ files, each written atomically."""

import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cuda.backproject import pixels
from pipeline.config import ProjectionConfig
from pipeline.corpora import normalise, open_corpus
from pipeline.corpora.kinds.synthetic import GENERATOR_VERSION, SyntheticCorpus
from pipeline.errors import TeacherError
from pipeline.teacher.tiny_clip.captions import Pose
from pipeline.teacher.tiny_clip.config import ViewsConfig
from pipeline.teacher.tiny_clip.folder import claim
from pipeline.views import VIEWS, render_views
from teacher_cache.storage.atomic import replace_file

__all__ = ["LEVELS", "ViewSet", "draw_cloud", "draw_views", "objects", "open_views", "settings_of"]

LEVELS = 254  # an even number, so that the sigmoid's 0.5 of an empty pixel is stored exactly
BLOCK = 96  # shapes in one file
KINDS = ("upright", "yaw", "tumbled")
_POSE = 71  # this module's stream of random numbers, apart from the corpus' own


@dataclass(frozen=True)
class ViewSet:
    """Views in memory.

    images  [n, V, S, S] uint8, the sigmoid's 0..1 as 0..LEVELS
    parts   [n, V, T] int16, the part most points of a patch belong to, into the corpus' part_names; -1 for a patch
            without points
    poses   of each shape
    """

    images: np.ndarray
    parts: np.ndarray
    poses: list[Pose]

    def __len__(self) -> int:
        return len(self.images)


def objects(config: ViewsConfig) -> SyntheticCorpus:
    """Open the corpus that the views show: the training stream of the config's seed."""
    corpus = open_corpus(f"synthetic:?count={config.shapes}&seed={config.seed}&split=train", points=config.points[1])
    assert isinstance(corpus, SyntheticCorpus)
    return corpus


def settings_of(config: ViewsConfig) -> dict[str, Any]:
    """Return what determines the blocks, as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps({**asdict(config), "generator": GENERATOR_VERSION, "block": BLOCK}))
    return values


def draw_cloud(corpus: SyntheticCorpus, index: int, config: ViewsConfig) -> tuple[np.ndarray, np.ndarray, Pose, str]:
    """Draw one shape as it will be rendered; a function of (config, index) alone.

    ->  points [n, 3] float32 in the canonical frame, the part of each [n] int16, its pose, and the reduction.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([config.seed, _POSE, index])))
    low, high = np.log(config.points[0]), np.log(config.points[1])
    count = int(np.clip(round(np.exp(rng.uniform(low, high))), *config.points))
    shape = corpus[index]
    assert shape.part_labels is not None  # every synthetic shape has them
    cloud, parts = shape.points[:count].astype(np.float64), shape.part_labels[:count]
    mark, degrees = rng.random(), rng.uniform(0.0, 360.0)
    matrix = _any_rotation(rng)
    if mark < config.upright:
        pose = Pose("upright", 0.0)
    elif mark < config.upright + config.yaw:
        pose = Pose("yaw", degrees)
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        cloud = cloud @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    else:
        pose = Pose("tumbled", 0.0)
        cloud = cloud @ matrix
    factors = rng.uniform(2 / 3, 3 / 2, 3)
    if rng.random() < config.stretch:
        cloud = cloud * factors
    cloud = normalise(cloud.astype(np.float32))
    cloud = normalise((cloud + rng.normal(0.0, rng.uniform(0.0, config.noise) + 1e-9, cloud.shape)).astype(np.float32))
    return cloud, parts, pose, config.reductions[int(rng.integers(len(config.reductions)))]


def draw_views(config: ViewsConfig, folder: Path, *, on_progress: Callable[[int], None] | None = None) -> None:
    """Render every view missing in `folder`; what another run rendered with the same settings is kept.

    on_progress  called with the shapes that are done.

    Raises TeacherError for a folder that holds views of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder / "views.json", {"views": settings_of(config)})
    corpus = objects(config)
    for block, start in enumerate(range(0, config.shapes, BLOCK)):
        indices = range(start, min(start + BLOCK, config.shapes))
        path = _block_path(folder, block)
        if not path.exists():
            images, parts, poses = _draw(corpus, indices, config)
            arrays = {
                "images": images,
                "parts": parts,
                "kind": np.array([KINDS.index(pose.kind) for pose in poses], dtype=np.uint8),
                "degrees": np.array([pose.degrees for pose in poses], dtype=np.float64),
            }
            _write_block(path, arrays)
        if on_progress is not None:
            on_progress(indices.stop)


def open_views(config: ViewsConfig, folder: Path) -> ViewSet:
    """Load all views of `folder` (150 kB per shape at 224 pixels). Raises TeacherError for a damaged block."""
    S = config.image_side
    images = np.empty((config.shapes, VIEWS, S, S), dtype=np.uint8)
    parts = np.empty((config.shapes, VIEWS, (S // config.patch_side) ** 2), dtype=np.int16)
    poses: list[Pose] = []
    for block, start in enumerate(range(0, config.shapes, BLOCK)):
        path = _block_path(folder, block)
        stop = min(start + BLOCK, config.shapes)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                images[start:stop], parts[start:stop] = arrays["images"], arrays["parts"]
                poses += [Pose(KINDS[k], float(d)) for k, d in zip(arrays["kind"], arrays["degrees"], strict=True)]
        except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile, EOFError) as error:
            raise TeacherError(
                f"{path}: not a complete block of views ({error}).\n  Delete it and run the same command again."
            ) from error
    return ViewSet(images, parts, poses)


def _draw(corpus: SyntheticCorpus, indices: range, config: ViewsConfig) -> tuple[np.ndarray, np.ndarray, list[Pose]]:
    S, P = config.image_side, config.patch_side
    images = np.empty((len(indices), VIEWS, S, S), dtype=np.uint8)
    parts = np.empty((len(indices), VIEWS, (S // P) ** 2), dtype=np.int16)
    poses = []
    for row, index in enumerate(indices):
        cloud, labels, pose, reduction = draw_cloud(corpus, index, config)
        drawn = ProjectionConfig(
            image_side=S,
            patch_side=P,
            reduction=reduction,  # type: ignore[arg-type]
            depth_offset=config.depth_offset,
        )
        points = torch.from_numpy(cloud)[None]
        depth, _, geometry = render_views(points, drawn)
        images[row] = (depth[0] * LEVELS).round().to(torch.uint8).numpy()
        cells = pixels(points, geometry, image_side=S)[0].numpy() // P  # [V, N, 2]
        for view in range(VIEWS):
            parts[row, view] = _majority(cells[view, :, 0] * (S // P) + cells[view, :, 1], labels, (S // P) ** 2)
        poses.append(pose)
    return images, parts, poses


def _majority(patch: np.ndarray, labels: np.ndarray, patches: int) -> np.ndarray:
    """Return each patch's most frequent label of points, the lowest at a tie, -1 for a patch without points."""
    first = int(labels.min())
    counts = np.zeros((patches, int(labels.max()) - first + 1), dtype=np.int64)
    np.add.at(counts, (patch, labels - first), 1)
    return np.where(counts.any(axis=1), counts.argmax(axis=1) + first, -1).astype(np.int16)


def _any_rotation(rng: np.random.Generator) -> np.ndarray:
    """Draw a rotation matrix [3, 3], uniform over all: Q of a Gaussian matrix, signs fixed (Mezzadri 2007)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else q[:, ::-1]


def _block_path(folder: Path, block: int) -> Path:
    return folder / f"views-{block:05d}.npz"


def _write_block(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with tempfile.TemporaryFile() as file:
        np.savez_compressed(file, allow_pickle=False, **dict(arrays))
        file.seek(0)
        replace_file(path, file.read())
