"""Masking: visible tokens are drawn at the top level and passed down to the tokens they are made of."""

import torch
from torch import Tensor

from trainer.models.config import MaskingConfig
from trainer.models.tokens.grouping import Level

__all__ = ["block_order", "draw_order", "propagate", "top_visible", "weight_logits"]


def weight_logits(saliency: Tensor, config: MaskingConfig) -> Tensor:
    """Compute the log-weights, up to a constant, with which top-level tokens are drawn to stay visible.

    saliency  [B, G] float32, the mean over views of the attention at each centre.
    ->        [B, G] float32; the weights are its softmax. All zero in the other modes.

    "standardised" saliency has mean 0 and standard deviation 1 in each sample; a flat one makes all weights equal.
    """
    if config.mode != "saliency":
        return torch.zeros_like(saliency)
    if config.saliency == "standardised":
        centred = saliency - saliency.mean(1, keepdim=True)
        saliency = centred / centred.square().mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(saliency.dtype).tiny)
    return saliency / config.temperature


def draw_order(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw all tokens without replacement, each time in proportion to the weights of those that are left.

    logits    [B, G] float32, logarithms of the weights up to a constant.
    uniforms  [B, G] float32 in (0, 1), both ends excluded.
    ->        [B, G] int64 into axis G, first drawn first.

    Source: sorting log-weights plus Gumbel noise draws from the same distribution as drawing one by one (Yellott 1977;
    Kool et al. 2019, Stochastic Beams and Where to Find Them, 2).
    """
    # In float64, so that the logarithms' rounding, which differs between devices, hardly ever changes the order; the
    # stable sort leaves equal keys in index order everywhere.
    gumbel = -torch.log(-torch.log(uniforms.double()))
    return torch.argsort(logits.double() + gumbel, dim=1, descending=True, stable=True)


@torch.no_grad()
def block_order(centres: Tensor, uniforms: Tensor) -> Tensor:
    """Order tokens so that the last ones, whatever their number, are one block: the nearest to a token drawn at random.

    centres   [B, G, 3] float32.
    uniforms  [B, G] float32 in (0, 1); the first of each sample draws the block's token, which comes last.
    ->        [B, G] int64 into axis G, farthest first; among equal distances the lower index is nearer.

    Source: Point-MAE (Pang et al. 2022), block masking.
    """
    G = centres.shape[1]
    start = (uniforms[:, :1].double() * G).long().clamp(max=G - 1)  # [B, 1]
    middle = centres.gather(1, start[:, :, None].expand(-1, -1, 3))
    nearest = torch.argsort((centres - middle).square().sum(2), dim=1, stable=True)
    return nearest.flip(1)


def top_visible(order: Tensor, visible: int) -> Tensor:
    """Select the first `visible` tokens of each order: [B, G] int64 -> [B, G] bool."""
    kept = order[:, :visible]
    return torch.zeros(order.shape, dtype=torch.bool, device=order.device).scatter_(1, kept, True)


def propagate(visible: Tensor, levels: list[Level], *, token0_leak: bool, masks: int = 1) -> list[Tensor]:
    """Pass the top level's choice down: a token is visible if it belongs to a visible group of the level above.

    visible      [B, G] bool, at the top level.
    levels       finest first.
    token0_leak  as the reference does, also show token 0 of sample 0 of the level below wherever anything is hidden.
    masks        samples that are masks of one cloud, one after the other; the leak is in all of the first cloud's.
    ->           one [B, G] bool a level, finest first.
    """
    result = [visible]
    for level, below in zip(reversed(levels[1:]), reversed(levels[:-1]), strict=True):
        B, G, _ = below.centres.shape
        # members of hidden groups go to a spare column, so that every write is True and their order does not matter
        where = level.members.where(result[-1][:, :, None], G).reshape(B, -1)
        shown = torch.zeros(B, G + 1, dtype=torch.bool, device=where.device).scatter_(1, where, True)[:, :G]
        if token0_leak:
            shown[:masks, 0] |= ~result[-1].all()
        result.append(shown)
    result.reverse()
    return result
