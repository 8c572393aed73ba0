"""Token embedding: a mini-PointNet that turns a group of points, or of tokens of the level below, into one token."""

from torch import Tensor, nn
from torch.nn import functional as F

from trainer.batchnorm import BatchNorm
from trainer.blocks import Pointwise

__all__ = ["TokenEmbed"]


class TokenEmbed(nn.Module):
    """Two pointwise layers, the group's maximum beside each member, two more, and the maximum.

    Source: Point-BERT's mini-PointNet; names and widths as in Point-M2AE. Widths are in -> first[0] -> first[1], then
    2 * first[1] -> 2 * first[1] -> out.
    """

    def __init__(self, width_in: int, first: tuple[int, int], width_out: int):
        super().__init__()
        hidden = 2 * first[1]
        self.first_conv = nn.Sequential(
            Pointwise(width_in, first[0]), BatchNorm(first[0]), nn.ReLU(inplace=True), Pointwise(first[0], first[1])
        )
        self.second_conv = nn.Sequential(
            Pointwise(hidden, hidden), BatchNorm(hidden), nn.ReLU(inplace=True), Pointwise(hidden, width_out)
        )

    def forward(self, members: Tensor, weight: Tensor | None) -> Tensor:
        """Embed groups.

        members  [M, K, in].
        weight   [M] float32, 1 for groups that make the batch statistics, 0 for others; None: all do.
        ->       [M, out].
        """
        M, K, D = members.shape
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


def _maximum(x: Tensor) -> Tensor:
    # max, not amax: its gradient goes to one of equal entries, as in the reference, instead of being shared out
    return x.max(dim=1).values
