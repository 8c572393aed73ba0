"""The hierarchical encoder: embed, attend among visible tokens, merge upwards."""

from itertools import pairwise

from torch import Tensor, nn

from trainer.models.config import ModelConfig
from trainer.models.layers.token_embedding import TokenEmbed
from trainer.models.layers.transformer import Blocks, PositionEmbedding, drop_path_chances
from trainer.models.tokens.grouping import Level, gather, neighbourhoods
from trainer.models.tokens.multi_mask import Shared, repeat
from trainer.models.tokens.visible import Tokens, pad, select, spread, unpad

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Token embedding and transformer blocks at every level. Source: Point-M2AE (Zhang et al. 2022), 3.2."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        widths = config.encoder_dims
        # The second pair of layers is as wide inside as its input at the finest level, and as its output above; the two
        # agree only where a level is twice as wide as the one below.
        embeds = [TokenEmbed(3, config.embed_first, 2 * config.embed_first[1], widths[0])]
        embeds += [TokenEmbed(below, (below, below), here, here) for below, here in pairwise(widths)]
        chances = drop_path_chances(config.encoder_depths, config.drop_path)
        self.token_embed = nn.ModuleList(embeds)
        self.encoder_pos_embeds = nn.ModuleList(PositionEmbedding(width) for width in widths)
        self.encoder_blocks = nn.ModuleList(
            Blocks(width, config.heads, config.mlp_ratio, chance) for width, chance in zip(widths, chances, strict=True)
        )
        self.encoder_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)

    def forward(
        self,
        points: Tensor,
        levels: list[Level],
        tokens: list[Tokens],
        draws: Tensor | None,
        shared: Shared | None = None,
    ) -> list[Tensor]:
        """Encode the visible tokens of every level.

        points  [B, N, 3] float32, the cloud the levels were made from; with several masks, of the clouds alone.
        draws   [B, 2 * blocks] uniform numbers for drop path, or None for none.
        shared  what the samples share that are masks of one cloud; None where each cloud has one. Groups of points are
                then embedded once a cloud, and count once in the statistics of batch norms.
        ->      one [B, L, D] a level, normed, padded as `tokens` says; rows that are not valid carry no meaning.
        """
        # Statistics over all groups need all of them embedded, and so the un-encoded hidden tokens in the merge.
        # Without such statistics a hidden token reaches no visible one: every member of a visible group is visible.
        all_groups = self.training and self.config.batch_norm_groups == "all"
        encoded: list[Tensor] = []
        below = points
        first = 0
        for i, (level, here) in enumerate(zip(levels, tokens, strict=True)):
            if i == 0 and shared is not None:
                embedded = self._embed_shared(points, shared, here, all_groups=all_groups)
                x = pad(select(embedded, here.rows), here) if all_groups else embedded
            elif all_groups:
                members = neighbourhoods(points, level) if i == 0 else gather(below, level.members)
                embedded = self.token_embed[i](members.flatten(0, 1), None).view(*here.visible.shape, -1)  # [B, G, D]
                x = pad(select(embedded, here.rows), here)
            else:
                if i == 0:
                    members = select(neighbourhoods(points, level), here.rows)
                else:
                    members = _visible_members(below, level, here, tokens[i - 1])
                x = pad(self.token_embed[i](members, here.weight), here)
            position = self.encoder_pos_embeds[i](pad(select(level.centres, here.rows), here))
            attend = here.valid[:, None, None, :] if here.uneven else None
            last = first + 2 * self.config.encoder_depths[i]
            x = self.encoder_blocks[i](x, position, attend, None if draws is None else draws[:, first:last])
            first = last
            encoded.append(self.encoder_norms[i](x))
            below = encoded[-1] if self.config.merge_input == "normed" else x
            if all_groups:
                below = spread(below, here, embedded)
        return encoded

    def _embed_shared(self, points: Tensor, shared: Shared, here: Tokens, *, all_groups: bool) -> Tensor:
        """Embed the finest groups once a cloud -> of every sample, [B, G, D] with all groups, else padded [B, L, D]."""
        groups, seen = neighbourhoods(points, shared.level), shared.tokens
        if all_groups:
            embedded = self.token_embed[0](groups.flatten(0, 1), None).view(*seen.visible.shape, -1)
            return repeat(embedded, shared.masks)
        embedded = pad(self.token_embed[0](select(groups, seen.rows), seen.weight), seen)
        if shared.place is None:
            return repeat(embedded, shared.masks)
        # by gather, whose gradient is a sum in one order: a group that several masks show is embedded once
        return gather(embedded, shared.place).view(*here.valid.shape, embedded.shape[2])


def _visible_members(below: Tensor, level: Level, here: Tokens, tokens_below: Tokens) -> Tensor:
    """below [B, L, D], padded -> the members of the groups in `here`'s rows, [M, K, D]; all of them are visible."""
    B, G, K = level.members.shape
    at = level.members
    if tokens_below.rank is not None:
        at = tokens_below.rank.gather(1, at.reshape(B, G * K)).view(B, G, K)
    # A member belongs to several groups, so its gradient is a sum. Cloud by cloud, over padded groups, that sum has one
    # order; an index_select over the whole batch would leave it to a GPU's atomics.
    members = gather(below, pad(select(at, here.rows), here))  # [B, L above, K, D]
    return unpad(members.flatten(2), here).view(-1, K, below.shape[2])
