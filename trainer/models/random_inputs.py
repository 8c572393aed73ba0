"""The random numbers of a training step, drawn outside the model and handed to it.

A record's numbers are a pure function of (seed, epoch, record, purpose), so they depend neither on the other records of
the batch nor on the number of ranks or loader workers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.models.config import StudentConfig
from trainer.randomness import Purpose, record_uniforms

__all__ = ["Draws"]


class Draws(NamedTuple):
    """Uniform numbers in (0, 1), both ends excluded.

    mask       [B, M] float32, by which a student chooses what stays visible
    drop_path  [B, R] float32, one a residual branch: it is kept where the number is below its chance

    M and R are the student's: StudentConfig.random_numbers.
    """

    mask: Tensor
    drop_path: Tensor

    @classmethod
    def for_records(
        cls, records: Sequence[int] | np.ndarray, config: StudentConfig, *, seed: int, epoch: int
    ) -> "Draws":
        """Return the draws of the given records in the given epoch, on the CPU.

        records  [B] whole numbers that name the records, for instance their positions in the cache.
        """
        counts = config.random_numbers
        mask = record_uniforms(records, counts.mask, seed=seed, epoch=epoch, purpose=Purpose.MASK)
        paths = record_uniforms(records, counts.drop_path, seed=seed, epoch=epoch, purpose=Purpose.DROP_PATH)
        return cls(torch.from_numpy(mask), torch.from_numpy(paths))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Draws":
        """Return the same numbers on another device."""
        return Draws(*(part.to(device, non_blocking=non_blocking) for part in self))
