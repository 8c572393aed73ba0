"""The random numbers of a fine-tuning step, drawn outside the model and handed to it.

Dropout of a per-point head needs millions of numbers a shape, so the draws hold a key for each shape, and the numbers
are a hash of key and position, computed where the values are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainer.models.config import StudentConfig
from trainer.randomness import Purpose, record_uniforms

__all__ = ["Dropout", "HeadDraws"]

_KEY_BITS = 23  # what record_uniforms gives
_GOLDEN, _MIX = -1640531535, (-2048144789, -1028477387)  # 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35 as int32


class HeadDraws(NamedTuple):
    """The random numbers of one training step of a fine-tuning model.

    drop_path  [B, R] float32 uniform in (0, 1), two a transformer block of the encoder, as in `Draws`
    dropout    [B, 2] int64, each shape's key
    """

    drop_path: Tensor
    dropout: Tensor

    @classmethod
    def for_records(
        cls, records: Sequence[int] | np.ndarray, config: StudentConfig, *, seed: int, epoch: int
    ) -> "HeadDraws":
        """Return draws for the given records in the given epoch, on the CPU; row i depends on records[i] alone."""
        paths = record_uniforms(records, config.encoder_branches, seed=seed, epoch=epoch, purpose=Purpose.DROP_PATH)
        keys = record_uniforms(records, 2, seed=seed, epoch=epoch, purpose=Purpose.DROPOUT) * (1 << _KEY_BITS)
        return cls(torch.from_numpy(paths), torch.from_numpy(keys.astype(np.int64)))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "HeadDraws":
        """Return the same numbers on another device."""
        return HeadDraws(*(part.to(device, non_blocking=non_blocking) for part in self))


class Dropout(nn.Module):
    """Dropout whose choice is a hash of a shape's key, so that it depends on neither batch, rank nor device."""

    def __init__(self, chance: float, *, site: int):
        """chance of a value to become 0; `site` tells the dropouts of one model apart."""
        super().__init__()
        self.chance = chance
        self.site = site

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Drop values of x [B, ...] by keys [B, 2] int64 of HeadDraws (None: no dropout); kept values are scaled up."""
        if keys is None or self.chance == 0:
            return x
        keep = _hash(x[0].numel(), keys, self.site) >= int(self.chance * 2**31)
        return x * keep.view(x.shape) * (1 / (1 - self.chance))

    def extra_repr(self) -> str:
        return f"{self.chance}, site={self.site}"


@torch.no_grad()
def _hash(count: int, keys: Tensor, site: int) -> Tensor:
    """Hash keys to [B, count] int32 uniform in 0..2^31-1 by MurmurHash3's finaliser, twice, one half of the key each.

    int32 products wrap around.
    """
    first, second = keys.int()[:, :, None].unbind(1)  # [B, 1] each
    h = _mixed(torch.arange(count, dtype=torch.int32, device=keys.device).mul_(_GOLDEN) + first)
    return _mixed(h.bitwise_xor_(second + site * (1 << _KEY_BITS))).bitwise_and_(0x7FFFFFFF)


def _mixed(h: Tensor) -> Tensor:
    h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF)).mul_(_MIX[0])
    h.bitwise_xor_((h >> 13).bitwise_and_(0x7FFFF)).mul_(_MIX[1])
    return h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF))
