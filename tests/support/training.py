"""A training run small enough for tests: tiny student, made-up teacher, clouds of a few kinds."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import teacher_cache
from cuda.project import project
from teacher_cache.format.records import CacheSchema, TeacherRecord
from tests.support.caches import write_cache
from tests.support.models import TINY, TINY_CHANNELS
from trainer.config import AlignmentConfig, EvaluationConfig, TrainerConfig
from trainer.models.config import MaskingConfig, ModelConfig
from trainer.pretraining.loop import TrainReport, pretrain

MODEL = TINY
SCHEMA = CacheSchema(points=128, views=3, image_side=32, patch_side=8, channels=TINY_CHANNELS)
MASKING = MaskingConfig(ratio=0.7)
KNOWN = ("teacher", "on_event", "alignment", "further", "teachers", "masking")


def trainer_config(**settings: Any) -> TrainerConfig:
    """Two epochs of batches of 8 on the CPU, no TensorBoard; `settings` override."""
    defaults = {
        "epochs": 2,
        "schedule_epochs": 4,
        "warmup_epochs": 1,
        "batch_size": 8,
        "points": 96,
        "device": "cpu",
        "tensorboard": False,
        "readers": 1,
    }
    return TrainerConfig(**{**defaults, **settings})


def clouds(count: int, points: int = SCHEMA.points, seed: int = 0) -> np.ndarray:
    """Boxes and ellipsoids of random proportions, in turn, on the unit sphere's scale. [count, points, 3] float32."""
    rng = np.random.default_rng(seed)
    shapes = rng.standard_normal((count, points, 3))
    shapes /= np.linalg.norm(shapes, axis=2, keepdims=True)
    shapes[::2] /= np.abs(shapes[::2]).max(axis=2, keepdims=True)
    shapes *= rng.uniform(0.3, 1.0, (count, 1, 3))
    shapes -= shapes.mean(axis=1, keepdims=True)
    return (shapes / np.linalg.norm(shapes, axis=2).max(axis=1)[:, None, None]).astype(np.float32)


def training_cache(directory: Path, count: int = 24, *, seed: int = 0, **settings: Any) -> teacher_cache.Cache:
    """A cache whose features say something about the shape: its proportions, and the patch's place in the image."""
    points = clouds(count, seed=seed)
    _, geometry = project(torch.from_numpy(points), image_side=SCHEMA.image_side)
    side = SCHEMA.image_side // SCHEMA.patch_side
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * 2, indexing="ij"), -1).reshape(-1, 2)
    records, rng = [], np.random.default_rng([seed, 7])
    for i in range(count):
        spread = np.broadcast_to(points[i].std(axis=0), (3, place.shape[0], 3))
        kind = np.full((3, place.shape[0], 1), i % 2)
        features = np.concatenate([np.broadcast_to(place, (3, *place.shape)), spread, kind], axis=2)
        records.append(
            TeacherRecord(
                id=f"shape-{i:04d}",
                label=i % 2,
                points=points[i],
                lo=geometry.lo[i].numpy(),
                cell=geometry.cell[i].numpy(),
                offset=geometry.offset[i].numpy(),
                depth=None,
                features=features.astype(np.float16),
                saliency=np.broadcast_to(1.5 - np.abs(place).sum(1), (3, place.shape[0])).astype(np.float32),
                class_token=(features.mean(axis=1) + rng.normal(0, 0.1, SCHEMA.class_shape)).astype(np.float32),
            )
        )
    return write_cache(directory, records, SCHEMA, **{"depth": "none", "shapes_per_shard": 8, **settings})


def train(
    cache: Any, run_dir: Path, *, model: ModelConfig = MODEL, evaluation: Any = None, **settings: Any
) -> TrainReport:
    """`pretrain` with the tiny settings. Keyword arguments that pretrain knows go there, others to trainer_config."""
    known = {"masking": MASKING} | {name: settings.pop(name) for name in KNOWN if name in settings}
    settings["teacher"] = "live" if "teacher" in known else "cached"
    return pretrain(
        cache,
        run_dir,
        model=model,
        trainer=trainer_config(**settings),
        evaluation=evaluation or EvaluationConfig(),
        **known,
    )


def weights_of(report: TrainReport) -> bytes:
    """The bytes of the last checkpoint's weights."""
    return (report.checkpoint / "model.safetensors").read_bytes()


OTHER = CacheSchema(points=SCHEMA.points, views=3, image_side=40, patch_side=8, channels=5)  # a further teacher's sizes


def second_cache(
    directory: Path,
    count: int = 24,
    *,
    more: int = 5,
    order: int = 3,
    first: int = 0,
    shapes: Any = None,
    **settings: Any,
) -> teacher_cache.Cache:
    """Another teacher's cache of the shapes of `training_cache`, and of `more` others, mixed by `order` (0: in order).

    first   number of the first shape, so that some are missing.
    shapes  [count + more, points, 3]; other clouds under the same ids.
    """
    points = clouds(count) if shapes is None else shapes
    points = np.concatenate((points, clouds(more, seed=91))) if more else points
    _, geometry = project(torch.from_numpy(points), image_side=OTHER.image_side)
    rng = np.random.default_rng(17)  # by the shape, whatever the order
    records = []
    for i in range(len(points)):
        features = rng.normal(0, 1, OTHER.shapes["features"]) + points[i].std(axis=0).sum()
        records.append(
            TeacherRecord(
                id=f"shape-{i:04d}" if i < count else f"other-{i}",
                label=-1,
                points=points[i],
                lo=geometry.lo[i].numpy(),
                cell=geometry.cell[i].numpy(),
                offset=geometry.offset[i].numpy(),
                depth=None,
                features=features.astype(np.float16),
                saliency=rng.random(OTHER.shapes["saliency"], np.float32),
                class_token=rng.normal(0, 1, OTHER.class_shape).astype(np.float32),
            )
        )
    mixed = np.random.default_rng(order).permutation(len(records)) if order else np.arange(len(records))
    chosen = [records[i] for i in mixed.tolist() if i >= first]
    stored = {"depth": "none", "shapes_per_shard": 7, "class_token": "float16", "teacher": "another"}
    return write_cache(directory, chosen, OTHER, **{**stored, **settings})


if __name__ == "__main__":
    # python -m tests.support.training CACHE RUN EPOCHS [SCHEDULE_EPOCHS] [global] [and=CACHE]: in processes of its own
    torch.set_num_threads(1)
    path, run, *words = sys.argv[1:]
    names = ("epochs", "schedule_epochs")
    alignment = AlignmentConfig(weight=float("global" in words))
    given: dict[str, Any] = dict(zip(names, map(int, filter(str.isdigit, words)), strict=False))
    given["further"] = [teacher_cache.open(word.removeprefix("and=")) for word in words if word.startswith("and=")]
    train(teacher_cache.open(path), Path(run), alignment=alignment, **given)
