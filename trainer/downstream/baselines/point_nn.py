"""Point-NN: an encoder without a single parameter, of sines, farthest points, neighbours and pooling.

Source: R. Zhang, L. Wang, Y. Wang, P. Gao, H. Li, J. Shi, *Parameter is Not All You Need* (CVPR 2023, arXiv
2303.08134), 3.1. It departs from the authors' code in one place: the standard deviation that differences are divided by
is taken over the whole batch there, so that a shape's feature depends on others; here it is taken over the cloud.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cuda.fps import farthest_point_sample

__all__ = ["PointNN", "trigonometric"]

EPSILON = 1e-5  # beside the standard deviation, as the authors have it


@dataclass(frozen=True, kw_only=True)
class PointNN:
    """The encoder: points [B, N, 3] float32 -> [B, width * 2^stages] float32. Row i depends on cloud i alone.

    stages      each halves the points and doubles the channels
    neighbours  points in a group; all there are, where a stage has fewer
    width       channels of a raw point, a multiple of 6
    alpha, beta  of the sines: wavelengths run from 2 pi / beta to nearly 2 pi alpha / beta, in units of the cloud

    The defaults are the authors' for ModelNet40. Their classifier is a memory of training features; here the feature is
    scored as every encoder's is. A cloud of 1,024 points takes 0.3 s of one core.
    """

    stages: int = 4
    neighbours: int = 90
    width: int = 72
    alpha: float = 1000.0
    beta: float = 100.0

    @property
    def feature(self) -> str:
        """Name of the feature in tables."""
        return "point-nn"

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Raises ValueError for clouds of fewer than 2^stages points."""
        _, N, _ = points.shape
        if 2**self.stages > N:
            raise ValueError(
                f"clouds have {N} points; with {self.stages} stages, each of which halves them, at least "
                f"{2**self.stages} are needed"
            )
        cloud = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
        with torch.no_grad():
            # A cloud at a time: a stage of one takes tens of megabytes, of a batch gigabytes.
            return torch.cat([self._encode(one[None]) for one in cloud]).numpy()

    def _encode(self, points: Tensor) -> Tensor:
        features = trigonometric(points, self.width, alpha=self.alpha, beta=self.beta)  # [1, N, width]
        for stage in range(self.stages):
            points, features = self._stage(points, features, self.width * 2 ** (stage + 1))
        return features.amax(1) + features.mean(1)

    def _stage(self, points: Tensor, features: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """points [1, N, 3], features [1, N, D] -> [1, N // 2, 3], [1, N // 2, 2 D]."""
        _, N, _ = points.shape
        chosen = farthest_point_sample(points, N // 2)[0]
        centres, at_centres = points[:, chosen], features[:, chosen]
        dist2 = ((centres[0, :, None] - points[0, None]) ** 2).sum(2)  # [G, N]; the kernel of knn keeps 64 at most
        near = torch.sort(dist2, dim=1, stable=True).indices[:, : self.neighbours]  # [G, K]
        members = _scaled(features[0][near] - at_centres[0, :, None])  # [G, K, D]
        offsets = _scaled(points[0][near] - centres[0, :, None])
        place = trigonometric(offsets, width, alpha=self.alpha, beta=self.beta)  # [G, K, 2 D]
        # A group's channels are its members', then its centre's; the two halves are never put side by side.
        own, of_centre = place.split(width // 2, dim=2)
        weighed = (members.add_(own).mul_(own), (at_centres[0, :, None] + of_centre).mul_(of_centre))
        pooled = torch.cat([half.amax(1) + half.mean(1) for half in weighed], dim=1)
        return centres, F.gelu(pooled)[None]


def trigonometric(points: Tensor, width: int, *, alpha: float, beta: float) -> Tensor:
    """Sines and cosines of each coordinate at width / 6 wavelengths: [..., 3] float32 -> [..., width]."""
    if width % 6:
        raise ValueError(f"width = {width} is not a multiple of 6: a sine and a cosine for each of three coordinates")
    frequencies = width // 6
    wavelength = alpha ** (torch.arange(frequencies, dtype=torch.float32) / frequencies)
    angle = beta * points[..., None] / wavelength  # [..., 3, F]
    waves = angle.new_empty(*angle.shape, 2)
    torch.sin(angle, out=waves[..., 0])
    torch.cos(angle, out=waves[..., 1])
    return waves.flatten(-3)


def _scaled(differences: Tensor) -> Tensor:
    return differences.div_(differences.std() + EPSILON)
