"""Initialisation of the weights."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from trainer.models.layers.batch_norm import BatchNorm
from trainer.models.layers.transformer import Pointwise, Unbiased

__all__ = ["initialise"]

LAST = ("align_head", "further_heads")
TOKENS = ("mask_token", "cls_token", "cls_pos", "img_token", "img_pos", "text_token", "text_pos")
SPREAD = 0.02  # standard deviation of the truncated normal; cut at +-2, so hardly ever


@torch.no_grad()
def initialise(
    model: nn.Module,
    rule: Literal["mixed", "xavier"],
    generator: torch.Generator | None,
    *,
    encoder: str | tuple[str, ...] = "h_encoder.",
    decoder: str | tuple[str, ...] = "h_decoder.",
    last: tuple[str, ...] = LAST,
) -> None:
    """Reinitialise every parameter of a pre-training model; norms become the identity.

    "mixed"   the reference's: linear maps and 1 x 1 convolutions of the encoder truncated normal 0.02 with zero bias,
              those of the decoder's blocks Xavier uniform with zero bias, the rest torch's default for their kind.
    "xavier"  Xavier uniform with zero bias throughout.
    Mask tokens, and tokens and positions that stand in front of a cloud's, are truncated normal 0.02 in both.

    encoder, decoder  how the names of the encoder's weights, and of those of the decoder's blocks, begin.
    last              the same of weights that are drawn when all others are, so that these do not depend on whether the
                      former are there.
    """
    modules = [(name, module) for name, module in model.named_modules() if not name.startswith(last)]
    _draw(modules, rule, generator, encoder, decoder)
    for name, value in model.named_parameters():
        if name.rpartition(".")[2] in TOKENS:
            nn.init.trunc_normal_(value, std=SPREAD, generator=generator)
    heads = [(name, module) for name, module in model.named_modules() if name.startswith(last)]
    _draw(heads, rule, generator, encoder, decoder)


def _draw(
    modules: Iterable[tuple[str, nn.Module]],
    rule: Literal["mixed", "xavier"],
    generator: torch.Generator | None,
    encoder: str | tuple[str, ...],
    decoder: str | tuple[str, ...],
) -> None:
    for name, module in modules:
        if isinstance(module, nn.Linear | Pointwise | Unbiased):
            if rule == "xavier" or name.startswith(decoder):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                _zero(module.bias)
            elif name.startswith(encoder):
                nn.init.trunc_normal_(module.weight, std=SPREAD, generator=generator)
                _zero(module.bias)
            else:
                bound = 1 / math.sqrt(module.weight.shape[1])
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.LayerNorm | BatchNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _zero(bias: torch.Tensor | None) -> None:
    if bias is not None:
        nn.init.zeros_(bias)
