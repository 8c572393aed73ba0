"""Fine-tuning models to test with: the recorded ones with their weights, and tiny ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.parity.models import reference_settings, small_classifier, small_segmenter
from benchmarks.parity.recorded import Recorded
from tests.support.models import TINY
from tests.support.reference import shared_dir
from trainer.checkpoints.files import Header, write_checkpoint_at
from trainer.checkpoints.models import sections_of, software_versions
from trainer.models.config import ModelConfig
from trainer.models.heads.classifier import Classifier
from trainer.models.heads.config import ClassifierConfig, SegmentationConfig
from trainer.models.heads.part_segmenter import PartSegmenter

TINY_HEAD: dict[str, Any] = {"neighbours": (8, 4, 4), "radius": (0.5, 0.8, 1.2)}


def tiny_classifier(seed: int = 0, model: dict[str, Any] | None = None, **settings: Any) -> Classifier:
    """A small classifier of 5 classes, weights drawn from `seed`."""
    config = ClassifierConfig(**{"classes": 5, "hidden": (16, 12), **TINY_HEAD, **settings})
    classifier = Classifier(tiny_sizes(**(model or {})), config)
    classifier.initialise(torch.Generator().manual_seed(seed))
    return classifier


def tiny_segmenter(seed: int = 0, model: dict[str, Any] | None = None, **settings: Any) -> PartSegmenter:
    """A small segmenter of 6 parts and 3 categories, weights drawn from `seed`."""
    sizes = {"parts": 6, "categories": 3, "embedding": 4, "propagation": (16, 12), "hidden": (16, 12, 8)}
    segmenter = PartSegmenter(tiny_sizes(**(model or {})), SegmentationConfig(**{**sizes, **TINY_HEAD, **settings}))
    segmenter.initialise(torch.Generator().manual_seed(seed))
    return segmenter


def tiny_sizes(**settings: Any) -> ModelConfig:
    """The tiny student's sizes, with other settings where given."""
    return ModelConfig(**{**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__}, **settings})


def tiny_clouds(seed: int = 0, batch: int = 4, points: int = 96) -> Tensor:
    """[B, N, 3] random clouds in the unit ball."""
    cloud = torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(seed))
    return cloud / cloud.norm(dim=2).amax(1)[:, None, None]


def recorded_classifier(name: str, **changes: Any) -> Classifier:
    """The recorded small classifier `name` with its weights; drop path and dropout off, as they were.

    changes  of [classifier], instead of the recorded settings.
    """
    return small_classifier(_recorded(), reference_settings(), name, torch.device("cpu"), **changes)


def recorded_segmenter(**model_settings: Any) -> PartSegmenter:
    """The recorded small segmenter with its weights; drop path and dropout off, as they were.

    model_settings  of [model], instead of the reference's.
    """
    settings = reference_settings()
    changed = replace(settings, model=replace(settings.model, **model_settings))
    return small_segmenter(_recorded(), changed, torch.device("cpu"))


def _recorded() -> Recorded:
    return Recorded(shared_dir("reference"))


def classifier_checkpoint(path: Path, **settings: Any) -> Path:
    """A tiny classifier with the weights of seed 0, written as a checkpoint; -> its folder."""
    model = tiny_classifier(**settings)
    header = Header(
        epoch=1, step=1, config=sections_of(model=model.model, classifier=model.config), cache={}, teacher={},
        versions=software_versions(), kind="classifier",
    )  # fmt: skip
    return write_checkpoint_at(path, header, model.state_dict(), None)
