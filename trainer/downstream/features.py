"""Features of clouds: what an encoder is to whoever compares them, and a model as one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trainer.models.heads.fine_tuned import PointSegmenter, ShapeClassifier
from trainer.models.layers.batch_norm import BatchNorm
from trainer.models.layers.pooling import Feature
from trainer.models.student import Student

__all__ = [
    "ClassifierEncoder",
    "Encoder",
    "ModelEncoder",
    "classifier_logits",
    "encode",
    "feature_name",
    "model_encoder",
    "part_scores_of",
    "settle_batch_norms",
    "settle_by",
]

Encoder = Callable[[np.ndarray], np.ndarray]
"""[B, N, 3] float32 -> [B, D] float32; row i depends on cloud i alone."""


def encode(
    encoder: Encoder, points: np.ndarray, *, batch_size: int, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """Features of all clouds [n, N, 3], `batch_size` at a time -> [n, D] float32.

    progress  is called with how many clouds each batch had.
    """
    parts = []
    for start in range(0, len(points), batch_size):
        parts.append(encoder(points[start : start + batch_size]))
        if progress is not None:
            progress(len(points[start : start + batch_size]))
    return np.concatenate(parts)


@dataclass(frozen=True)
class ModelEncoder:
    """A model's feature as an Encoder: in float32 and evaluation mode; the model's mode is restored afterwards."""

    model: Student
    device: torch.device
    feature: Feature

    def __call__(self, points: np.ndarray) -> np.ndarray:
        with _evaluating(self.model), torch.no_grad():
            cloud = torch.from_numpy(np.ascontiguousarray(points)).to(self.device)
            features = self.model.encode(cloud, self.feature)
        return features.float().cpu().numpy()

    def columns_in(self, other: Encoder) -> slice | None:
        """Return the columns of another encoder's features that are this one's, None where it has not got them."""
        if not isinstance(other, ModelEncoder) or other.model is not self.model or other.device != self.device:
            return None
        return self.model.feature_columns(self.feature, other.feature)


def model_encoder(model: Student, device: torch.device, feature: Feature = "levels") -> ModelEncoder:
    """Wrap the model's feature of that name as an Encoder."""
    return ModelEncoder(model, device, feature)


@dataclass(frozen=True)
class ClassifierEncoder:
    """The pooled feature of a fine-tuned classifier, as an Encoder: [B, D of `pooled`]."""

    model: ShapeClassifier
    device: torch.device

    @property
    def feature(self) -> str:
        """Name of the feature in tables."""
        return "pooled"

    def __call__(self, points: np.ndarray) -> np.ndarray:
        with _evaluating(self.model), torch.no_grad():
            cloud = torch.from_numpy(np.ascontiguousarray(points)).to(self.device)
            return self.model.pooled(self.model.plan(cloud)).float().cpu().numpy()


def classifier_logits(model: ShapeClassifier, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """Wrap a classifier as a function of clouds: [B, N, 3] float32 -> [B, classes] float32, in evaluation mode."""

    def logits(points: np.ndarray) -> np.ndarray:
        with _evaluating(model), torch.no_grad():
            cloud = torch.from_numpy(np.ascontiguousarray(points)).to(device)
            found = model(cloud).float().cpu().numpy()
        return np.asarray(found)

    return logits


def part_scores_of(model: PointSegmenter, device: torch.device) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Wrap a segmenter as a function of clouds and categories: [B, N, 3] float32, [B] int64 -> [B, N, parts] float32
    log-probabilities, in evaluation mode.
    """

    def scores(points: np.ndarray, categories: np.ndarray) -> np.ndarray:
        with _evaluating(model), torch.no_grad():
            cloud = torch.from_numpy(np.ascontiguousarray(points)).to(device)
            found = model(cloud, torch.from_numpy(categories).to(device)).float().cpu().numpy()
        return np.asarray(found)

    return scores


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    mode = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(mode)


def feature_name(encoder: Encoder) -> str:
    """Return the name of an encoder's feature in tables: the model's feature, or the function's name."""
    return str(getattr(encoder, "feature", None) or getattr(encoder, "__name__", type(encoder).__name__))


def settle_batch_norms(model: Student, points: np.ndarray, device: torch.device, feature: Feature = "levels") -> None:
    """Set the batch norm statistics of an untrained model from some clouds [B, N, 3], in one forward pass."""
    settle_by(model, model_encoder(model, device, feature), points)


def settle_by(model: nn.Module, encoder: Encoder, points: np.ndarray) -> None:
    """Set the batch norm statistics of an untrained model from the clouds [B, N, 3] that `encoder` takes through it.

    Without it the running averages are those of initialisation, and a random encoder scores far below what its random
    features allow (0.755 against 0.862 on ModelNet10), which would make any comparison with it look too good.
    """

    def settle(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x, *weight = arguments
        rows = x.reshape(-1, x.shape[-1]).float()
        if weight and weight[0] is not None:
            rows = rows[weight[0].reshape(-1) > 0]
        module.running_mean.copy_(rows.mean(0))  # type: ignore[operator]
        module.running_var.copy_(rows.var(0, unbiased=False))  # type: ignore[operator]

    # Hooks instead of a pass in training mode, which would start a collective: the other ranks are not evaluating.
    hooks = [part.register_forward_pre_hook(settle) for part in model.modules() if isinstance(part, BatchNorm)]
    try:
        encoder(points)
    finally:
        for hook in hooks:
            hook.remove()
