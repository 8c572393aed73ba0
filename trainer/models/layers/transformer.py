"""Layers shared by encoder and decoder: pointwise layers, position embedding, transformer blocks."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Attention",
    "Block",
    "Blocks",
    "Mlp",
    "Pointwise",
    "PositionEmbedding",
    "Unbiased",
    "drop_path_chances",
    "mixed_values",
]


class Pointwise(nn.Module):
    """A linear map of the last axis whose weight has the shape of a 1 x 1 convolution, [out, in, 1].

    The shape is the reference's, so that its checkpoints load; the arithmetic is that of nn.Linear.
    """

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in, 1))
        self.bias = nn.Parameter(torch.empty(width_out))
        bound = 1 / math.sqrt(width_in)  # torch's default for a convolution of this size
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.weight[:, :, 0], self.bias)


class Unbiased(nn.Module):
    """A linear map of the last axis without bias; its weight has a convolution's shape, [out, in, 1] or [.., 1, 1]."""

    bias = None

    def __init__(self, width_in: int, width_out: int, *, axes: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in, *(1 for _ in range(axes))))
        bound = 1 / math.sqrt(width_in)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.weight.flatten(1))


class PositionEmbedding(nn.Sequential):
    """Centres [..., 3], or a code of them [..., `code`], -> [..., D]: linear, GELU, linear. `hidden`: D by default."""

    def __init__(self, width: int, *, hidden: int | None = None, code: int = 3):
        hidden = hidden or width
        super().__init__(nn.Linear(code, hidden), nn.GELU(), nn.Linear(hidden, width))


class Mlp(nn.Module):
    """A block's two-layer perceptron with GELU, [..., D] -> [..., D]."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention without bias in the query, key and value projections."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, attend: Tensor | None) -> Tensor:
        """Attend from every token to others.

        x       [B, L, D].
        attend  bool, broadcastable to [B, heads, L, L], True where the query (axis 2) may attend to the key (axis 3);
                None: everywhere. Every query needs at least one key.
        ->      [B, L, D].
        """
        B, L, D = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [B, heads, L, D / heads] each
        mixed = mixed_values(q, k, v, attend)
        return self.proj(mixed.transpose(1, 2).reshape(B, L, D))


def mixed_values(q: Tensor, k: Tensor, v: Tensor, attend: Tensor | None = None) -> Tensor:
    """Mix values by scaled dot-product attention, [B, heads, L, D]; attend as in Attention.

    In float32 where bfloat16 would run on a CPU: torch's backward pass is 17 times slower in it there, and its forward
    pass no faster.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=attend).to(q.dtype)


class Block(nn.Module):
    """A pre-norm transformer block with two residual branches, each of which drop path may skip for a sample."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.attn = Attention(width, heads)

    def forward(self, x: Tensor, attend: Tensor | None, draws: Tensor | None) -> Tensor:
        """Apply the block.

        x [B, L, D]; attend as in Attention; draws [B, 2] uniform numbers, or None for no drop path -> [B, L, D].
        """
        x = x + self._kept(self.attn(self.norm1(x), attend), draws, 0)
        return x + self._kept(self.mlp(self.norm2(x)), draws, 1)

    def _kept(self, branch: Tensor, draws: Tensor | None, which: int) -> Tensor:
        if draws is None or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        factor = (draws[:, which] < keep).to(branch.dtype) / keep  # [B]
        return branch * factor[:, None, None]


class Blocks(nn.Module):
    """A stack of blocks; the position embedding is added again before each."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: list[float]):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, chance) for chance in drop_path)

    def forward(self, x: Tensor, position: Tensor, attend: Tensor | None, draws: Tensor | None) -> Tensor:
        """Apply the stack to x, position [B, L, D]; attend as in Attention; draws [B, 2 * blocks] or None."""
        for i, block in enumerate(self.blocks):
            x = block(x + position, attend, None if draws is None else draws[:, 2 * i : 2 * i + 2])
        return x


def drop_path_chances(depths: tuple[int, ...], largest: float) -> list[list[float]]:
    """Return each block's chance, a list per level: linear from 0 at the very first block to `largest` at the last."""
    total = sum(depths)
    chances = iter(largest * i / max(total - 1, 1) for i in range(total))
    return [[next(chances) for _ in range(depth)] for depth in depths]
