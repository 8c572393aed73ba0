"""From the sections [model] and [classifier] or [segmentation] to a fine-tuning model."""

from typing import Any

from trainer.models.config import StudentConfig
from trainer.models.heads.classifier import Classifier
from trainer.models.heads.fine_tuned import PointSegmenter, ShapeClassifier
from trainer.models.heads.part_segmenter import PartSegmenter
from trainer.models.heads.plain import PlainClassifier, PlainSegmenter

__all__ = ["CLASSIFIER_MODELS", "SEGMENTER_MODELS", "new_classifier", "new_segmenter"]

CLASSIFIER_MODELS: dict[str, Any] = {"hierarchical": Classifier, "plain": PlainClassifier}
"""model.architecture -> class; the class of its settings is in trainer.models.heads.config.CLASSIFIERS."""

SEGMENTER_MODELS: dict[str, Any] = {"hierarchical": PartSegmenter, "plain": PlainSegmenter}
"""The same of part segmenters, and SEGMENTATIONS."""


def new_classifier(model: StudentConfig, config: Any) -> ShapeClassifier:
    """Make a classifier on the encoder of [model]. Raises ValueError listing what is wrong with the settings."""
    made: ShapeClassifier = _of(CLASSIFIER_MODELS, model, "classifier")(model, config)
    return made


def new_segmenter(model: StudentConfig, config: Any) -> PointSegmenter:
    """Make a part segmenter on the encoder of [model]. Raises ValueError listing what is wrong with the settings."""
    made: PointSegmenter = _of(SEGMENTER_MODELS, model, "part segmenter")(model, config)
    return made


def _of(known: dict[str, Any], model: StudentConfig, what: str) -> Any:
    if model.architecture not in known:
        raise ValueError(f"no {what} is built on the {model.architecture} student; one is on {', '.join(known)}")
    return known[model.architecture]
