"""Training images, drawn once ahead: blocks of views in NPZ files, each written whole or not at all."""

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cuda.project import project
from pipeline.config import ProjectionConfig
from pipeline.corpora import normalise, open_corpus
from pipeline.corpora.synthetic import GENERATOR_VERSION, SyntheticCorpus
from pipeline.errors import TeacherError
from pipeline.tiny_clip.captions import Pose
from pipeline.tiny_clip.config import ViewsConfig
from pipeline.views import VIEWS

__all__ = ["LEVELS", "ViewSet", "draw_cloud", "draw_views", "objects", "open_views", "settings_of"]

LEVELS = 254  # an even number, so that the sigmoid's 0.5 of an empty pixel is stored exactly
BLOCK = 96  # shapes in one file
KINDS = ("upright", "yaw", "tumbled")
_POSE = 71  # this module's stream of random numbers, beside the corpus' own


@dataclass(frozen=True)
class ViewSet:
    """Views in memory.

    images  [n, V, S, S] uint8, the sigmoid's 0..1 as 0..LEVELS
    poses   of each shape
    """

    images: np.ndarray
    poses: list[Pose]

    def __len__(self) -> int:
        return len(self.images)


def objects(config: ViewsConfig) -> SyntheticCorpus:
    """The corpus the views are of: the training stream of the config's seed."""
    corpus = open_corpus(f"synthetic:?count={config.shapes}&seed={config.seed}&split=train", points=config.points[1])
    assert isinstance(corpus, SyntheticCorpus)
    return corpus


def settings_of(config: ViewsConfig) -> dict[str, Any]:
    """What determines the blocks, as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps({**asdict(config), "generator": GENERATOR_VERSION, "block": BLOCK}))
    return values


def draw_cloud(corpus: SyntheticCorpus, index: int, config: ViewsConfig) -> tuple[np.ndarray, Pose, str]:
    """One shape as it will be drawn: points [n, 3] float32 in the canonical frame, its pose, and the reduction.

    A function of (config, index) alone.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([config.seed, _POSE, index])))
    low, high = np.log(config.points[0]), np.log(config.points[1])
    count = int(np.clip(round(np.exp(rng.uniform(low, high))), *config.points))
    cloud = corpus[index].points[:count].astype(np.float64)
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
    return cloud, pose, config.reductions[int(rng.integers(len(config.reductions)))]


def draw_views(config: ViewsConfig, folder: Path, *, on_progress: Callable[[int], None] | None = None) -> None:
    """Draw every view that `folder` does not hold yet; what another run drew of the same settings is kept.

    on_progress  called with the shapes that are done.

    Raises TeacherError for a folder that holds views of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, settings_of(config))
    corpus = objects(config)
    for block, start in enumerate(range(0, config.shapes, BLOCK)):
        indices = range(start, min(start + BLOCK, config.shapes))
        path = _block_path(folder, block)
        if not path.exists():
            images, poses = _draw(corpus, indices, config)
            arrays = {
                "images": images,
                "kind": np.array([KINDS.index(pose.kind) for pose in poses], dtype=np.uint8),
                "degrees": np.array([pose.degrees for pose in poses], dtype=np.float64),
            }
            _write_block(path, arrays)
        if on_progress is not None:
            on_progress(indices.stop)


def open_views(config: ViewsConfig, folder: Path) -> ViewSet:
    """All views of `folder` in memory (150 kB a shape at 224 pixels). Raises TeacherError for a damaged block."""
    S = config.image_side
    images = np.empty((config.shapes, VIEWS, S, S), dtype=np.uint8)
    poses: list[Pose] = []
    for block, start in enumerate(range(0, config.shapes, BLOCK)):
        path = _block_path(folder, block)
        stop = min(start + BLOCK, config.shapes)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                images[start:stop] = arrays["images"]
                poses += [Pose(KINDS[k], float(d)) for k, d in zip(arrays["kind"], arrays["degrees"], strict=True)]
        except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile, EOFError) as error:
            raise TeacherError(
                f"{path}: not a whole block of views ({error}).\n  Delete it and run the same command again."
            ) from error
    return ViewSet(images, poses)


def _draw(corpus: SyntheticCorpus, indices: range, config: ViewsConfig) -> tuple[np.ndarray, list[Pose]]:
    projection = ProjectionConfig(image_side=config.image_side)
    images = np.empty((len(indices), VIEWS, config.image_side, config.image_side), dtype=np.uint8)
    poses = []
    for row, index in enumerate(indices):
        cloud, pose, reduction = draw_cloud(corpus, index, config)
        depth, _ = project(
            torch.from_numpy(cloud)[None], image_side=config.image_side, splat=projection.splat, reduction=reduction
        )
        images[row] = (torch.sigmoid(depth[0]) * LEVELS).round().to(torch.uint8).numpy()
        poses.append(pose)
    return images, poses


def _any_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix [3, 3], uniform over all: the Q of a Gaussian matrix, signs settled (Mezzadri 2007)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else q[:, ::-1]


def _block_path(folder: Path, block: int) -> Path:
    return folder / f"views-{block:05d}.npz"


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note the settings of a folder, or check that they are those noted."""
    path = folder / "views.json"
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        differ = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
        if differ:
            raise TeacherError(
                f"{folder} holds views of other settings: {', '.join(f'views.{key}' for key in differ)} differ.\n"
                "  Use another folder, or delete this one."
            )
        return
    _replace(path, json.dumps(dict(settings), indent=1).encode())


def _write_block(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with tempfile.TemporaryFile() as file:
        np.savez_compressed(file, allow_pickle=False, **dict(arrays))
        file.seek(0)
        _replace(path, file.read())


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole: under another name first, flushed to the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
