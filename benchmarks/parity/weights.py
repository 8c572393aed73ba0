"""The closed formula for the weights of the full-size models: a hash of name and position, from the folder's README."""

import math
import zlib
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["checksum", "closed_formula", "fill_by_formula"]

_BLOCK = 1 << 16  # positions hashed at a time, so that the intermediate values stay in a core's cache


def closed_formula(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """The values of the state-dict entry `name`, float32 (batch counts: int64)."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("logit_scale"):
        return np.full(shape, np.log(1 / 0.07), np.float32)
    n = math.prod(shape)
    value = _scaling(name, shape)
    start = np.uint32(zlib.crc32(f"{salt}:{name}".encode("ascii")))
    filled = np.empty(n, np.float32)
    for first in range(0, n, _BLOCK):
        filled[first : first + _BLOCK] = value(_uniform(first, min(_BLOCK, n - first), start))
    return filled.reshape(shape)


def fill_by_formula(model: nn.Module, salt: str) -> float:
    """Give a model the formula's values, on the CPU, whatever device it was on ("meta" included); -> their checksum."""
    filled = {
        name: torch.from_numpy(closed_formula(name, tuple(value.shape), salt))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(filled, assign=True)
    return checksum(filled.values())


def checksum(values: Iterable[Tensor]) -> float:
    """The sum of all absolute values, in float64."""
    return float(sum(value.abs().sum(dtype=torch.float64).item() for value in values))


def _scaling(name: str, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """How uniform numbers in [-1, 1) become values, in float64."""
    if name.endswith("running_mean"):
        return lambda u: 0.1 * u
    if name.endswith("running_var"):
        return lambda u: 1 + 0.5 * u
    if len(shape) >= 2:
        bound = math.sqrt(3 / math.prod(shape[1:]))
        return lambda u: u * bound
    if name.endswith("weight"):
        return lambda u: 1 + 0.2 * u
    return lambda u: 0.1 * u


def _uniform(first: int, count: int, start: np.uint32) -> np.ndarray:
    """[count] float64 in [-1, 1) for positions first, first + 1, ...; products wrap around at 2^32."""
    h = np.arange(first, first + count, dtype=np.uint32) * np.uint32(0x9E3779B1)
    h += start
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    return h / 2.0**31 - 1
