"""The basis of features that are stored in fewer channels than the teacher gives: a mean and orthonormal directions.

Letters: C channels as stored, F channels of the teacher, C <= F. A stored feature is ``components @ (feature - mean)``;
``mean + components.T @ stored`` restores the feature, except for its part outside the C directions. The directions are
orthonormal, so distances between stored features equal distances between the features they stand for.
"""

import base64
import binascii
import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.documents import Fields
from teacher_cache.errors import ManifestError

__all__ = ["MAX_TEACHER_CHANNELS", "Basis", "basis_differences"]

MAX_TEACHER_CHANNELS = 8192  # the check for right angles takes C x C numbers
MAX_SHAPES = 1 << 20
_NOT_ORTHONORMAL = 1e-4  # float32 rounding of orthonormal directions leaves 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Basis:
    """The affine basis in which a cache stores the teacher's features.

    mean            [F] float32.
    components      [C, F] float32, orthonormal rows, by falling variance.
    variance        of the sample along each component, C numbers, falling.
    total_variance  of the sample in all F directions.
    shapes          in the sample that it was fitted on.

    Two bases are equal when their mean and components are, to the bit. Raises ValueError for impossible values.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    variance: tuple[float, ...]
    total_variance: float
    shapes: int

    def __post_init__(self) -> None:
        mean, components = self.mean, self.components
        if mean.dtype != np.float32 or mean.ndim != 1 or not 1 <= mean.size <= MAX_TEACHER_CHANNELS:
            raise ValueError(
                f"basis: mean is {list(mean.shape)} {mean.dtype}; expected [F] float32, F in 1..{MAX_TEACHER_CHANNELS}"
            )
        F = mean.size
        if components.dtype != np.float32 or components.ndim != 2 or components.shape[1] != F:
            raise ValueError(
                f"basis: components is {list(components.shape)} {components.dtype}; expected [C, {F}] float32"
            )
        C = len(components)
        if not 1 <= C <= F:
            raise ValueError(f"basis: {C} components; expected 1..{F}, the channels of the teacher")
        if not (np.isfinite(mean).all() and np.isfinite(components).all()):
            raise ValueError("basis: mean and components contain values that are not finite")
        if np.abs(components @ components.T - np.eye(C, dtype=np.float32)).max() > _NOT_ORTHONORMAL:
            raise ValueError("basis: its components are not orthonormal")
        spread = (*self.variance, self.total_variance)
        if len(self.variance) != C or not all(math.isfinite(value) and value >= 0 for value in spread):
            raise ValueError(f"basis: expected {C} variances and their total, finite and at least 0")

    @property
    def channels(self) -> int:
        """C, channels of a stored feature."""
        return len(self.components)

    @property
    def teacher_channels(self) -> int:
        """F, channels of a feature as the teacher gives it."""
        return int(self.mean.size)

    @property
    def kept(self) -> float:
        """Share of the sample's variance that lies along the components, 0..1; 1 where it does not vary at all."""
        return min(1.0, sum(self.variance) / self.total_variance) if self.total_variance else 1.0

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of mean and components as little-endian float32, row by row: 64 hexadecimal digits."""
        return hashlib.sha256(self._bytes()).hexdigest()

    @cached_property
    def rows(self) -> NDArray[np.float32]:
        """[1 + C, F] float32, the mean and then the components: what ``basis.npy`` holds."""
        return np.concatenate([self.mean[None], self.components])

    def project(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Project the teacher's features [..., F] onto the basis: [..., C] float32."""
        return self._float32("project", features, self.teacher_channels, self.mean) @ self.components.T

    def restore(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Restore features [..., F] float32 from stored ones [..., C]; what lies outside the basis is lost."""
        restored: NDArray[np.float32] = self._float32("restore", features, self.channels, None) @ self.components
        return np.add(restored, self.mean, out=restored)

    def _float32(
        self, what: str, features: NDArray[Any], channels: int, mean: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        if features.ndim < 1 or features.shape[-1] != channels or features.dtype.kind != "f":
            raise ValueError(
                f"{what}: features are {list(features.shape)} {features.dtype}; expected [..., {channels}]"
            )
        values = features.astype(np.float32, copy=False)
        return values if mean is None else values - mean  # subtract first: the mean is larger than what is left

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Basis) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def _bytes(self) -> bytes:
        return self.rows.astype("<f4", copy=False).tobytes()

    def to_json(self) -> dict[str, Any]:
        return {
            "shapes": self.shapes,
            "teacher_channels": self.teacher_channels,
            "total_variance": self.total_variance,
            "values": base64.b64encode(self._bytes()).decode("ascii"),
            "variance": list(self.variance),
        }

    @classmethod
    def from_json(cls, values: Fields, channels: int) -> "Basis":
        """Parse the basis of a cache with `channels` stored channels from JSON. Raises ManifestError."""
        F = values.integer("teacher_channels", 1, MAX_TEACHER_CHANNELS)
        try:
            data = base64.b64decode(values.text("values"), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ManifestError(f"{values.where}: expected values to be base64 ({error})") from error
        size = (1 + channels) * F * 4
        if len(data) != size:
            raise ManifestError(
                f"{values.where}: expected values to be {size} bytes, a mean and {channels} components of {F} "
                f"channels; found {len(data)}"
            )
        rows = np.frombuffer(data, "<f4").astype(np.float32).reshape(1 + channels, F)
        try:
            return cls(
                mean=rows[0],
                components=rows[1:],
                variance=values.numbers("variance"),
                total_variance=values.number("total_variance"),
                shapes=values.integer("shapes", 1, MAX_SHAPES),
            )
        except ValueError as error:
            raise ManifestError(f"{values.where}: {error}") from error


def basis_differences(here: Basis | None, there: Basis | None) -> list[str]:
    """Return one line if two caches' bases differ, in the form of ``Recipe.differences``; else an empty list."""
    if here == there:
        return []
    said = [f"{basis.sha256[:12]} of {basis.shapes} shapes" if basis else "none" for basis in (here, there)]
    return [f"basis: {said[0]} here, {said[1]} there"]
