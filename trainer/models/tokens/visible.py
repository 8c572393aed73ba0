"""Layout of a level's tokens in arrays, when each sample shows a different number of them.

Work on single tokens (embeddings, heads, losses) runs on rows, the tokens of all samples one after the other; attention
runs on samples padded to a common length. In the packed layout rows are exactly the visible tokens and the length is
that of the longest sample, which the host has to know. In the static layout rows are all tokens, hidden ones weigh
nothing, the length is the number of groups, and no shape depends on data.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Tokens", "everything", "hidden_rows", "lay_out", "pad", "select", "spread", "unpad"]


class Tokens(NamedTuple):
    """The layout of one level's tokens in arrays. None stands for the identity, an array left as it is.

    visible  [B, G] bool
    valid    [B, L] bool, True where the padded form holds a visible token
    uneven   False when all of `valid` is known to be True, so that attention needs no mask
    rows     [M] int64, the rows' tokens as positions in B * G, ascending; None: all of them
    place    [M] int64, the rows' positions in B * L; None: all of them, L = G
    rank     [B, G] int64, a visible token's position in L (0 for hidden ones); None: its own index
    weight   [M] float32, 1 for rows that are visible and 0 for others; None: all are
    """

    visible: Tensor
    valid: Tensor
    uneven: bool
    rows: Tensor | None
    place: Tensor | None
    rank: Tensor | None
    weight: Tensor | None

    @property
    def length(self) -> int:
        """L."""
        return self.valid.shape[1]


def lay_out(visible: list[Tensor], *, packed: bool) -> list[Tokens]:
    """Lay out every level.

    visible  one [B, G] bool a level.
    packed   drop hidden tokens, for the price of one transfer of two numbers a level to the host.
    """
    if not packed:
        return [Tokens(v, v, True, None, None, None, v.reshape(-1).float()) for v in visible]
    counts = [v.sum(1) for v in visible]
    sizes = torch.stack([torch.stack((count.sum(), count.max())) for count in counts]).tolist()
    return [_packed(v, *size) for v, size in zip(visible, sizes, strict=True)]


def everything(batch: int, groups: int, device: torch.device) -> Tokens:
    """Return the layout of a level where nothing is hidden; needs no transfer."""
    visible = torch.ones(batch, groups, dtype=torch.bool, device=device)
    return Tokens(visible, visible, False, None, None, None, None)


def select(x: Tensor, rows: Tensor | None) -> Tensor:
    """Select rows of x [B, G, ...] -> [M, ...]."""
    flat = x.flatten(0, 1)
    return flat if rows is None else flat.index_select(0, rows)


def pad(rows: Tensor, tokens: Tokens) -> Tensor:
    """Pad rows [M, D] -> [B, L, D], zero where no row belongs."""
    B = tokens.visible.shape[0]
    if tokens.place is None:
        return rows.view(B, tokens.length, -1)
    return rows.new_zeros(B * tokens.length, rows.shape[1]).index_copy(0, tokens.place, rows).view(B, tokens.length, -1)


def unpad(padded: Tensor, tokens: Tokens) -> Tensor:
    """Drop the padding of [B, L, D] -> rows [M, D]."""
    return select(padded, tokens.place)


def spread(padded: Tensor, tokens: Tokens, others: Tensor) -> Tensor:
    """Place visible tokens in index order, among others.

    padded  [B, L, D].
    others  [B, G, D], or broadcastable to it: what stands where a token is hidden.
    ->      [B, G, D], padded's dtype.
    """
    B, G = tokens.visible.shape
    others = others.to(padded.dtype).expand(B, G, padded.shape[2])
    if tokens.rows is None:
        return torch.where(tokens.visible[:, :, None], padded, others) if tokens.uneven else padded
    return others.flatten(0, 1).index_copy(0, tokens.rows, unpad(padded, tokens)).view(B, G, -1)


def hidden_rows(tokens: Tokens) -> tuple[Tensor | None, Tensor | None]:
    """Return the rows of the hidden tokens, [H] int64 positions in B * G, and their weights [H] float32 of Tokens."""
    hidden = ~tokens.visible.reshape(-1)
    if tokens.rows is None:
        return None, hidden.float()
    return torch.nonzero_static(hidden, size=hidden.numel() - tokens.rows.shape[0])[:, 0], None


def _packed(visible: Tensor, total: int, longest: int) -> Tokens:
    B, G = visible.shape
    rows = torch.nonzero_static(visible.reshape(-1), size=total)[:, 0]
    rank = (visible.cumsum(1) - 1).clamp(min=0)  # [B, G]
    rank = rank.masked_fill(~visible, 0)
    sample = torch.div(rows, G, rounding_mode="floor")
    place = sample * longest + rank.reshape(-1).index_select(0, rows)
    valid = torch.arange(longest, device=visible.device) < visible.sum(1, keepdim=True)
    return Tokens(visible, valid, total < B * longest, rows, place, rank, None)
