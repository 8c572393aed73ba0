"""The student's answer to the global loss (`trainer.losses.alignment`)."""

import torch
from torch import Tensor, nn

from trainer.models.layers.pooling import pool

__all__ = ["AlignmentHead"]

HIDDEN = 256


class AlignmentHead(nn.Sequential):
    """Visible top tokens [B, L, W], padded -> the student's answer [B, D], not normalised."""

    def __init__(self, width: int, targets: int):
        super().__init__(nn.Linear(2 * width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, targets))

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """valid  [B, L] bool, True for visible tokens; None: all are."""
        pooled = pool(tokens, valid)
        return super().forward(torch.cat((pooled.maximum, pooled.mean), dim=1))
