"""Transformer blocks of the plain encoder: the standard one, ReCon's with two streams, and Point-FEMAE's adapter."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda.gather import gather
from trainer.models.config import PlainConfig
from trainer.models.layers.batch_norm import BatchNorm
from trainer.models.layers.transformer import Block, Mlp, Unbiased, drop_path_chances, mixed_values

__all__ = ["EncoderBlocks", "Graph"]

SLOPE = 0.2  # of the adapter's leaky ReLUs


class Graph(NamedTuple):
    """What an adapter looks at: members [B, L, K] int64, each token's nearest tokens into axis L, itself included."""

    members: Tensor


class EncoderBlocks(nn.Module):
    """The encoder's stack; positions are added again before each block. Parameter names are the reference's."""

    def __init__(self, config: PlainConfig):
        super().__init__()
        self.two_streams = config.streams == "two"
        self.adapted = config.adapters
        (chances,) = drop_path_chances((config.depth,), config.drop_path)
        kind = TwoStreamBlock if self.two_streams else Block
        self.blocks = nn.ModuleList(kind(config.width, config.heads, config.mlp_ratio, chance) for chance in chances)
        for i in config.adapters:
            self.blocks[i].cls = Adapter(config.width, config.adapter_width or config.width)
            self.blocks[i].cls_norm = nn.LayerNorm(config.width)

    def forward(
        self, x: Tensor, position: Tensor, front: int, draws: Tensor | None, graph: Graph | None
    ) -> list[Tensor]:
        """Apply the stack.

        x, position  [B, F + L, D], tokens and their positions; the first F = `front` stand in front of the cloud's.
        draws        [B, 2 * blocks] uniform numbers for drop path, or None for none.
        graph        of the cloud's tokens, for the adapters; None: they are skipped.
        ->           [B, F + L, D] after each block.
        """
        outputs: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            of_block = None if draws is None else draws[:, 2 * i : 2 * i + 2]
            x = x + position
            x = block(x, front, of_block) if self.two_streams else block(x, None, of_block)
            if graph is not None and i in self.adapted:
                tokens = x[:, front:]
                adapted = tokens + block.cls(block.cls_norm(tokens), graph)  # type: ignore[operator]
                x = torch.cat((x[:, :front], adapted), dim=1) if front else adapted
            outputs.append(x)
        return outputs


class CrossAttention(nn.Module):
    """Multi-head attention from some tokens to others, without bias in the query, key and value projections."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, others: Tensor) -> Tensor:
        """x [B, F, D] attends to others [B, L, D] -> [B, F, D]."""
        B, F_, D = x.shape
        q = self.q(x).view(B, F_, self.heads, -1).transpose(1, 2)
        k, v = self.kv(others).view(B, others.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = mixed_values(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(B, F_, D))


class TwoStreamBlock(Block):
    """The tokens in front look at the cloud's, which never see them. Source: ReCon (Qi et al. 2023), its code.

    Unlike in the standard block the residual path starts from the normed value.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float):
        super().__init__(width, heads, mlp_ratio, drop_path)
        self.norm1_contrast = nn.LayerNorm(width)
        self.norm2_contrast = nn.LayerNorm(width)
        self.mlp_contrast = Mlp(width, int(width * mlp_ratio))
        self.attn_contrast = CrossAttention(width, heads)

    def forward(self, x: Tensor, front: int, draws: Tensor | None) -> Tensor:  # type: ignore[override]
        """Apply the block to x [B, F + L, D], F = `front`; draws as of Block -> [B, F + L, D]."""
        ahead, tokens = self.norm1_contrast(x[:, :front]), self.norm1(x[:, front:])
        ahead = ahead + self._kept(self.attn_contrast(ahead, tokens), draws, 0)
        tokens = tokens + self._kept(self.attn(tokens, None), draws, 0)
        ahead, tokens = self.norm2_contrast(ahead), self.norm2(tokens)
        ahead = ahead + self._kept(self.mlp_contrast(ahead), draws, 1)
        tokens = tokens + self._kept(self.mlp(tokens), draws, 1)
        return torch.cat((ahead, tokens), dim=1)


class Adapter(nn.Module):
    """One layer over each token's nearest tokens, one on the result. Source: Point-FEMAE (Zha et al. 2024), its LEM.

    The reference has both batch norms under two names; here they have the first of them.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.bn1 = BatchNorm(hidden)
        self.bn2 = BatchNorm(width)
        self.conv1 = nn.Sequential(Unbiased(2 * width, hidden, axes=2))
        self.conv2 = nn.Sequential(Unbiased(hidden, width))

    def forward(self, tokens: Tensor, graph: Graph) -> Tensor:
        """tokens [B, L, D] -> [B, L, D]."""
        members = gather(tokens, graph.members)  # [B, L, K, D]
        own = tokens[:, :, None].expand_as(members)
        edges = self.bn1(self.conv1(torch.cat((members - own, own), dim=3)))
        x = F.leaky_relu(edges, SLOPE).max(dim=2).values
        return F.leaky_relu(self.bn2(self.conv2(x)), SLOPE)
