"""The random numbers of a training step, drawn outside the model and handed to it.

A record's numbers are a pure function of (seed, epoch, record, purpose), so they depend neither on who else is in the
batch nor on the number of ranks or loader workers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.model_config import ModelConfig

__all__ = ["STREAMS", "Draws", "record_uniforms"]

STREAMS = {"mask": 1, "drop_path": 2}
"""Purposes that the model draws for; other users of `record_uniforms` take numbers from 16 on."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_UNIFORM_BITS = 23  # (h + 0.5) / 2^23 then has 24 significant bits: exact in float32, and never 0 or 1


class Draws(NamedTuple):
    """Uniform numbers in (0, 1), both ends excluded.

    mask       [B, G] float32, one a top-level token: the order in which tokens are drawn to stay visible
    drop_path  [B, R] float32, R = ModelConfig.residual_branches: a branch is kept where the number is below its chance
    """

    mask: Tensor
    drop_path: Tensor

    @classmethod
    def sample(cls, batch: int, config: ModelConfig, generator: torch.Generator) -> "Draws":
        """Draws for `batch` samples from one generator, on its device; these do depend on the order of the samples."""
        shapes = ((batch, config.groups[-1]), (batch, config.residual_branches))
        bound = 1 << _UNIFORM_BITS
        parts = (torch.randint(bound, shape, generator=generator, device=generator.device) for shape in shapes)
        mask, drop_path = ((part.float() + 0.5) / bound for part in parts)
        return cls(mask, drop_path)

    @classmethod
    def for_records(cls, records: Sequence[int] | np.ndarray, config: ModelConfig, *, seed: int, epoch: int) -> "Draws":
        """Draws for the given records in the given epoch, on the CPU.

        records  [B] whole numbers that name the records, for instance their positions in the cache.
        """
        mask = record_uniforms(records, config.groups[-1], seed=seed, epoch=epoch, stream=STREAMS["mask"])
        paths = record_uniforms(records, config.residual_branches, seed=seed, epoch=epoch, stream=STREAMS["drop_path"])
        return cls(torch.from_numpy(mask), torch.from_numpy(paths))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Draws":
        """The same numbers on another device."""
        return Draws(*(part.to(device, non_blocking=non_blocking) for part in self))


def record_uniforms(
    records: Sequence[int] | np.ndarray, count: int, *, seed: int, epoch: int, stream: int
) -> np.ndarray:
    """`count` uniform numbers for each record.

    records  [B] whole numbers >= 0.
    seed, epoch, stream  whole numbers >= 0 below 2^64; a stream is a purpose, so that purposes do not share numbers.
    ->       [B, count] float32 in (0, 1), both ends excluded; row i depends on records[i] alone.

    Source: splitmix64 (Steele, Lea, Flood 2014) as a hash of the parts and then as a counter-based generator.
    """
    state = np.zeros(len(records), np.uint64)
    with np.errstate(over="ignore"):
        for part in (seed, epoch, stream):
            state = _mix(state + _GOLDEN + np.uint64(part))
        state = _mix(state + _GOLDEN + np.asarray(records, np.uint64))
        steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        bits = _mix(state[:, None] + steps)  # [B, count]
    top = (bits >> np.uint64(64 - _UNIFORM_BITS)).astype(np.float32)
    return (top + np.float32(0.5)) / np.float32(1 << _UNIFORM_BITS)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
