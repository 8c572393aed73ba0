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

    mask       [B, T] float32, by which a student chooses what stays visible
    drop_path  [B, R] float32, one a residual branch: it is kept where the number is below its chance

    T and R are the student's: StudentConfig.random_numbers. B counts samples: every mask of a shape is one, with
    numbers of its own.
    """

    mask: Tensor
    drop_path: Tensor

    @classmethod
    def for_records(
        cls, records: Sequence[int] | np.ndarray, config: StudentConfig, *, seed: int, epoch: int, masks: int = 1
    ) -> "Draws":
        """Return the draws of the given records in the given epoch, on the CPU.

        records  whole numbers that name the records, for instance their positions in the cache.
        masks    M of each record: B is M times their number, and those of one record come one after the other. The
                 numbers of a record's mask depend on which one it is, not on how many there are.
        """

        def numbers(count: int, purpose: Purpose) -> torch.Tensor:
            found = record_uniforms(records, masks * count, seed=seed, epoch=epoch, purpose=purpose)
            return torch.from_numpy(found.reshape(len(records) * masks, count))

        counts = config.random_numbers
        return cls(numbers(counts.mask, Purpose.MASK), numbers(counts.drop_path, Purpose.DROP_PATH))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Draws":
        """Return the same numbers on another device."""
        return Draws(*(part.to(device, non_blocking=non_blocking) for part in self))
