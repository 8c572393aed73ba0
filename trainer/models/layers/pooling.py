"""Pooling of a cloud's tokens to one vector: the features compared by probes, tables and retrieval.

A feature has a name. "levels" describes every level by the maximum, the mean and the standard deviation of each channel
over its tokens; "top", the paper's, is the maximum over the top level alone.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

__all__ = ["FEATURES", "Feature", "Pooled", "feature_columns", "feature_width", "pool", "pooled_feature"]

Feature = Literal["levels", "top"]
FEATURES: tuple[Feature, ...] = get_args(Feature)


class Pooled(NamedTuple):
    """Statistics over the tokens of each cloud, [B, D] float32 each; the deviation divides by all tokens."""

    maximum: Tensor
    mean: Tensor
    deviation: Tensor


def feature_width(encoder_dims: Sequence[int], feature: Feature) -> int:
    """Return the numbers in a feature: 3 per channel of every level, or 1 per channel of the top level.

    Raises ValueError for a name that is not a feature's.
    """
    _check(feature)
    return encoder_dims[-1] if feature == "top" else 3 * sum(encoder_dims)


def feature_columns(encoder_dims: Sequence[int], feature: Feature, within: Feature) -> slice | None:
    """Return where a feature's numbers stand in another feature of the same encoding; None where they do not.

    "top" is a part of "levels": the maximum of the last level, in front of its mean and deviation.
    """
    if feature == within:
        return slice(None)
    if (feature, within) != ("top", "levels"):
        return None
    start = 3 * sum(encoder_dims[:-1])
    return slice(start, start + encoder_dims[-1])


def pool(tokens: Tensor, valid: Tensor | None) -> Pooled:
    """Compute statistics over tokens [B, L, D] of any float dtype, in float32.

    valid  [B, L] bool, True for tokens, at least one per cloud; None: all are. Padding is not read, so a cloud's result
           does not depend on the length that other clouds require.
    """
    x = tokens.float()
    if valid is None:
        centred = x - x.mean(1, keepdim=True)
        # A norm, unlike the root of a variance, has a gradient where all tokens are equal.
        return Pooled(x.amax(1), x.mean(1), torch.linalg.vector_norm(centred, dim=1) / x.shape[1] ** 0.5)
    here = valid[:, :, None]
    count = valid.sum(1, keepdim=True)  # [B, 1]
    mean = x.masked_fill(~here, 0).sum(1) / count
    centred = (x - mean[:, None]).masked_fill(~here, 0)
    maximum = x.masked_fill(~here, -torch.inf).amax(1)
    return Pooled(maximum, mean, torch.linalg.vector_norm(centred, dim=1) / count.sqrt())


def pooled_feature(encoded: Sequence[Tensor], valid: Sequence[Tensor | None], feature: Feature) -> Tensor:
    """Compute the feature of clouds whose tokens are encoded.

    encoded  one [B, L, D] a level, finest first, normed.   valid  as of `pool`, a level.
    ->       [B, feature_width] float32. "levels": maximum, mean, deviation of the finest level, then of the next.

    Raises ValueError for a name that is not a feature's.
    """
    _check(feature)
    if feature == "top":
        return pool(encoded[-1], valid[-1]).maximum
    parts = [pool(tokens, here) for tokens, here in zip(encoded, valid, strict=True)]
    return torch.cat([statistic for part in parts for statistic in part], dim=1)


def _check(feature: str) -> None:
    if feature not in FEATURES:
        raise ValueError(f"feature is {feature!r}; expected one of {', '.join(FEATURES)}")
