"""Propagation of coarse tokens to finer centres, for the decoder. The stages are in `student`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda.knn import knn
from trainer.models.layers.batch_norm import BatchNorm
from trainer.models.layers.transformer import Pointwise

__all__ = ["Propagation", "interpolation_weights"]

NEIGHBOURS = 3
EPSILON = 1e-8  # added to squared distances, so that a centre on top of another one takes all the weight


class Propagation(nn.Module):
    """Interpolation of coarse tokens to finer centres, fused with the encoder's tokens there.

    Source: PointNet++'s feature propagation (Qi et al. 2017) with the residual blocks of PointMLP (Ma et al. 2022).
    """

    def __init__(self, width_fine: int, width_coarse: int, width: int, blocks: int):
        super().__init__()
        self.fuse = _Fuse(width_fine + width_coarse, width)
        self.extraction = _Extraction(width, blocks)

    def forward(self, fine: Tensor, coarse: Tensor, weights: Tensor) -> Tensor:
        """Propagate coarse [B, H, Dc] to fine [B, G, Df] by weights [B, G, H] of interpolation_weights -> [B, G, D]."""
        raised = torch.bmm(weights.to(coarse.dtype), coarse)
        both = torch.cat((fine, raised.to(fine.dtype)), dim=-1)
        return self.extraction.operation(self.fuse.net(both))


@torch.no_grad()
def interpolation_weights(fine: Tensor, coarse: Tensor, *, expanded: bool) -> Tensor:
    """Compute the interpolation weight of every coarse centre at every fine one.

    Weights are inverse squared distances, normalised over the 3 nearest coarse centres, 0 elsewhere.

    fine      [B, G, 3] float32.
    coarse    [B, H, 3] float32, H >= 3.
    expanded  take squared distances as |a|^2 + |b|^2 - 2ab, as the reference does. They can come out slightly negative
              where centres coincide; the weights there are 1 and 0 up to some 1e-6 either way.
    ->        [B, G, H] float32, rows sum to 1. As a matrix, so that interpolation and its gradient are matrix products.

    Raises ValueError for H < 3.
    """
    if expanded:
        dist2 = -2 * (fine[:, :, None] * coarse[:, None]).sum(3)  # [B, G, H]
        dist2 = dist2 + fine.square().sum(2)[:, :, None] + coarse.square().sum(2)[:, None]
        nearest, idx = torch.topk(dist2, NEIGHBOURS, dim=2, largest=False)
    else:
        nearest, idx = knn(coarse, fine, NEIGHBOURS)
    inverse = 1 / (nearest + EPSILON)  # [B, G, 3]
    share = inverse / inverse.sum(2, keepdim=True)
    return torch.zeros(*fine.shape[:2], coarse.shape[1], device=fine.device).scatter_(2, idx, share)


class _Residual(nn.Module):
    """gelu(x + net2(net1(x))) of [..., D]."""

    def __init__(self, width: int):
        super().__init__()
        self.net1 = nn.Sequential(Pointwise(width, width), BatchNorm(width), nn.GELU())
        self.net2 = nn.Sequential(Pointwise(width, width), BatchNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.net2(self.net1(x)))


class _Fuse(nn.Module):
    """[..., in] -> [..., D]. The nesting here and below is that of the reference's parameter names."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.net = nn.Sequential(Pointwise(width_in, width), BatchNorm(width), nn.GELU())


class _Extraction(nn.Module):
    """[..., D] -> [..., D]."""

    def __init__(self, width: int, blocks: int):
        super().__init__()
        self.operation = nn.Sequential(*(_Residual(width) for _ in range(blocks)))
