"""The random numbers of a training step, drawn outside the model and handed to it.

A record's numbers are a pure function of (seed, epoch, record, purpose), so they depend neither on who else is in the
batch nor on the number of ranks or loader workers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.models.config import ModelConfig
from trainer.randomness import UNIFORM_BITS, Purpose, record_uniforms

__all__ = ["Draws"]


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
        bound = 1 << UNIFORM_BITS
        parts = (torch.randint(bound, shape, generator=generator, device=generator.device) for shape in shapes)
        mask, drop_path = ((part.float() + 0.5) / bound for part in parts)
        return cls(mask, drop_path)

    @classmethod
    def for_records(cls, records: Sequence[int] | np.ndarray, config: ModelConfig, *, seed: int, epoch: int) -> "Draws":
        """Draws for the given records in the given epoch, on the CPU.

        records  [B] whole numbers that name the records, for instance their positions in the cache.
        """
        mask = record_uniforms(records, config.groups[-1], seed=seed, epoch=epoch, purpose=Purpose.MASK)
        paths = record_uniforms(records, config.residual_branches, seed=seed, epoch=epoch, purpose=Purpose.DROP_PATH)
        return cls(torch.from_numpy(mask), torch.from_numpy(paths))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Draws":
        """The same numbers on another device."""
        return Draws(*(part.to(device, non_blocking=non_blocking) for part in self))
