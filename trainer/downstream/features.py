"""Features of clouds: a model's, or plain statistics of the coordinates as a baseline."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from trainer.models.layers.batch_norm import BatchNorm
from trainer.models.layers.pooling import Feature

__all__ = [
    "Encoder",
    "EncodesPoints",
    "ModelEncoder",
    "coordinate_statistics",
    "encode",
    "feature_name",
    "model_encoder",
]

Encoder = Callable[[np.ndarray], np.ndarray]
"""[B, N, 3] float32 -> [B, D] float32; row i depends on cloud i alone."""

_QUANTILES = np.linspace(0.05, 0.95, 9)
_CELLS = 4  # a side of the occupancy grid


class EncodesPoints(Protocol):
    """A module with evaluation features: points [B, N, 3] float32 -> [B, D]."""

    training: bool

    def encode(self, points: Tensor, feature: Feature = ...) -> Tensor: ...

    def train(self, mode: bool = True) -> Any: ...


def encode(encoder: Encoder, points: np.ndarray, *, batch_size: int) -> np.ndarray:
    """Features of all clouds [n, N, 3], `batch_size` at a time -> [n, D] float32."""
    parts = [encoder(points[start : start + batch_size]) for start in range(0, len(points), batch_size)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class ModelEncoder:
    """A feature of a model as an Encoder: in float32, in evaluation mode; the mode it was in comes back afterwards."""

    model: EncodesPoints
    device: torch.device
    feature: Feature

    def __call__(self, points: np.ndarray) -> np.ndarray:
        mode = self.model.training
        self.model.train(False)
        try:
            with torch.no_grad():
                cloud = torch.from_numpy(np.ascontiguousarray(points)).to(self.device)
                features = self.model.encode(cloud, self.feature)
        finally:
            self.model.train(mode)
        return features.float().cpu().numpy()


def model_encoder(model: EncodesPoints, device: torch.device, feature: Feature = "levels") -> ModelEncoder:
    """The model's feature of that name, as an Encoder."""
    return ModelEncoder(model, device, feature)


def feature_name(encoder: Encoder) -> str:
    """What a table calls an encoder's feature: a model's by its name, a function's by the function's."""
    return str(getattr(encoder, "feature", None) or getattr(encoder, "__name__", type(encoder).__name__))


def settle_batch_norms(model: nn.Module, points: np.ndarray, device: torch.device, feature: Feature = "levels") -> None:
    """Give a model that was never trained the batch norm statistics of some clouds [B, N, 3], in one forward pass.

    Without it the running averages are those of initialisation, and a random encoder scores far below what its random
    features are worth (0.755 against 0.862 on ModelNet10), which would flatter whatever it is compared with.
    """

    def settle(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x, *weight = arguments
        rows = x.reshape(-1, x.shape[-1]).float()
        if weight and weight[0] is not None:
            rows = rows[weight[0].reshape(-1) > 0]
        module.running_mean.copy_(rows.mean(0))  # type: ignore[operator]
        module.running_var.copy_(rows.var(0, unbiased=False))  # type: ignore[operator]

    # Hooks instead of a pass in training mode: that one would talk to the other ranks, which are not evaluating.
    hooks = [part.register_forward_pre_hook(settle) for part in model.modules() if isinstance(part, BatchNorm)]
    try:
        model_encoder(cast(EncodesPoints, model), device, feature)(points)
    finally:
        for hook in hooks:
            hook.remove()


def coordinate_statistics(points: np.ndarray) -> np.ndarray:
    """What can be read off the coordinates without learning: the bar that an encoder has to clear.

    Of each axis and of the radius: 9 quantiles, standard deviation, skewness, kurtosis; the 6 second moments between
    axes and their eigenvalues; the share of points in each cell of a 4 x 4 x 4 grid over [-1, 1]^3.
    [B, N, 3] float32 -> [B, 121] float32.
    """
    B, N, _ = points.shape
    wide = points.astype(np.float64)
    radius = np.sqrt((wide**2).sum(axis=2, keepdims=True))
    columns = np.concatenate([wide, radius], axis=2)  # [B, N, 4]
    quantiles = np.quantile(columns, _QUANTILES, axis=1).transpose(1, 2, 0).reshape(B, -1)
    spread = columns.std(axis=1)
    standard = (columns - columns.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-9)[:, None]
    moments = np.concatenate([spread, (standard**3).mean(axis=1), (standard**4).mean(axis=1)], axis=1)
    covariance = np.einsum("bni,bnj->bij", wide, wide) / N
    eigenvalues = np.linalg.eigvalsh(covariance)
    upper = covariance[:, *np.triu_indices(3)]
    cell = np.clip(((wide + 1) * (_CELLS / 2)).astype(np.int64), 0, _CELLS - 1) @ np.array([_CELLS**2, _CELLS, 1])
    share = np.stack([np.bincount(row, minlength=_CELLS**3) for row in cell]) / N
    return np.concatenate([quantiles, moments, upper, eigenvalues, share], axis=1).astype(np.float32)
