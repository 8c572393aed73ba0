"""Initialisation of the weights."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from trainer.models.layers.batch_norm import BatchNorm
from trainer.models.layers.transformer import Pointwise

__all__ = ["initialise"]

LAST = ("align_head", "further_heads")
SPREAD = 0.02  # standard deviation of the truncated normal; cut at +-2, so hardly ever


@torch.no_grad()
def initialise(model: nn.Module, rule: Literal["mixed", "xavier"], generator: torch.Generator | None) -> None:
    """Reinitialise every parameter of a pre-training model; norms become the identity.

    "mixed"   the reference's: linear maps and 1 x 1 convolutions of the encoder truncated normal 0.02 with zero bias,
              those of the decoder's blocks Xavier uniform with zero bias, the rest torch's default for their kind.
    "xavier"  Xavier uniform with zero bias throughout.
    Mask tokens are truncated normal 0.02 in both.

    Weights under LAST are drawn when all others are, so these do not depend on whether the former are there.
    """
    modules = [(name, module) for name, module in model.named_modules() if not name.startswith(LAST)]
    _draw(modules, rule, generator)
    for name, value in model.named_parameters():
        if name.rpartition(".")[2] == "mask_token":
            nn.init.trunc_normal_(value, std=SPREAD, generator=generator)
    _draw([(name, module) for name, module in model.named_modules() if name.startswith(LAST)], rule, generator)


def _draw(
    modules: Iterable[tuple[str, nn.Module]], rule: Literal["mixed", "xavier"], generator: torch.Generator | None
) -> None:
    for name, module in modules:
        if isinstance(module, nn.Linear | Pointwise):
            if rule == "xavier" or name.startswith("h_decoder."):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                _zero(module.bias)
            elif name.startswith("h_encoder."):
                nn.init.trunc_normal_(module.weight, std=SPREAD, generator=generator)
                _zero(module.bias)
            else:
                bound = 1 / math.sqrt(module.weight.shape[1])
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.LayerNorm | BatchNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _zero(bias: torch.Tensor | None) -> None:
    if bias is not None:
        nn.init.zeros_(bias)
