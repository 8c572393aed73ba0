"""Token embedding: a mini-PointNet that turns a group of points, or of tokens of the level below, into one token."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.layers.batch_norm import BatchNorm
from trainer.models.layers.token_embedding_cpu import EmbedRows
from trainer.models.layers.transformer import Pointwise

__all__ = ["TokenEmbed"]


class TokenEmbed(nn.Module):
    """Two pointwise layers, the group's maximum beside each member, two more, and the maximum.

    Source: Point-BERT's mini-PointNet; names and widths as in Point-M2AE. Widths are in -> first[0] -> first[1], then
    2 * first[1] -> hidden -> out.
    """

    def __init__(self, width_in: int, first: tuple[int, int], hidden: int, width_out: int):
        super().__init__()
        self.first_conv = nn.Sequential(
            Pointwise(width_in, first[0]), BatchNorm(first[0]), nn.ReLU(inplace=True), Pointwise(first[0], first[1])
        )
        self.second_conv = nn.Sequential(
            Pointwise(2 * first[1], hidden), BatchNorm(hidden), nn.ReLU(inplace=True), Pointwise(hidden, width_out)
        )

    def forward(self, members: Tensor, weight: Tensor | None) -> Tensor:
        """Embed groups, one token per group.

        members  [M, K, in].
        weight   [M] float32, 1 for groups that make the batch statistics, 0 for others; None: all do.
        ->       [M, out].
        """
        M, K, D = members.shape
        if self._by_blocks(members, weight):
            return self._embed_by_blocks(members)
        weight = None if weight is None else weight.repeat_interleave(K, output_size=M * K)
        expand, norm, relu, mix = self.first_conv
        own = mix(relu(norm(expand(members.reshape(M * K, D)), weight))).view(M, K, -1)
        # The layer sees [group maximum; own features]. Its matrix is split, and the maximum, the same for all members,
        # goes through its half once a group: exact, and only (K + 1) / 2K of the multiplications.
        joint, norm, relu, mix = self.second_conv
        assert isinstance(joint, Pointwise)
        group_half, own_half = joint.weight[:, :, 0].split(own.shape[2], dim=1)
        both = F.linear(own, own_half).add_(F.linear(_maximum(own), group_half, joint.bias)[:, None])  # [M, K, hidden]
        both = relu(norm(both.view(M * K, -1), weight))
        return _maximum(mix(both).view(M, K, -1))  # [M, out]

    def _by_blocks(self, members: Tensor, weight: Tensor | None) -> bool:
        norm = self.first_conv[1]
        assert isinstance(norm, BatchNorm)
        rows = members.flatten(0, 1)
        return norm.counts_locally(rows, weight) and _operands(members) in (torch.float32, torch.bfloat16)

    def _embed_by_blocks(self, members: Tensor) -> Tensor:
        dtype = _operands(members)
        expand, norm1, _, mix = self.first_conv
        joint, norm2, _, last = self.second_conv
        assert isinstance(norm1, BatchNorm)
        assert isinstance(norm2, BatchNorm)
        assert isinstance(expand, Pointwise)
        assert isinstance(mix, Pointwise)
        assert isinstance(joint, Pointwise)
        assert isinstance(last, Pointwise)
        group_half, own_half = joint.weight[:, :, 0].chunk(2, dim=1)
        with torch.autocast("cpu", enabled=False):  # EmbedRows rounds what it wants rounded
            token, mean1, variance1, mean2, variance2 = EmbedRows.apply(
                members, expand.weight[:, :, 0], expand.bias, norm1.weight, norm1.bias, mix.weight[:, :, 0], mix.bias,
                group_half, own_half, joint.bias, norm2.weight, norm2.bias, last.weight[:, :, 0], last.bias,
                (norm1.eps, norm2.eps), dtype,
            )  # fmt: skip
        rows = members.shape[0] * members.shape[1]
        norm1.track(mean1, variance1, rows)
        norm2.track(mean2, variance2, rows)
        return token


def _operands(x: Tensor) -> torch.dtype:
    """Return the type of a product's operands: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


def _maximum(x: Tensor) -> Tensor:
    # max, not amax: its gradient goes to one of equal entries, as in the reference, instead of being shared out,
    # where there is one: the search for the entry takes most of the time.
    return x.max(dim=1).values if torch.is_grad_enabled() else x.amax(dim=1)
